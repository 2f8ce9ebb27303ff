//! Rings of io_uring: `struct io_ring_ctx` (include/linux/io_uring_types.h), whose fields have moved and been renamed
//! between Linux 6.1 and 7.3.

use super::btf::{Btf, Field};
use super::ring_groups::Group;
use super::ring_requests::Waiting;
use super::ring_resources::Registered;
use super::{Kernel, Unreadable, half, processors, word};
use persist_mem::manifest::{RingRestrictions, RingSettings};
use sys::Tid;

pub(super) const RING: &str = "io_ring_ctx";
const WRONG: Unreadable = Unreadable::Inconsistent("a ring of io_uring");

/// A ring, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RingState {
    /// Where the kernel has it.
    pub(crate) at: u64,
    /// The memory that what is registered counts for (`struct mm_struct`), 0 for none.
    pub(crate) memory: u64,
    /// `IORING_SETUP_*`
    pub(crate) flags: u32,
    /// Entries of the submission and of the completion queue.
    pub(crate) sizes: (u32, u32),
    /// Entries taken, completions made.
    pub(crate) counts: (u32, u32),
    /// Where fields are ([`sys::uring::Params::offsets`]).
    pub(crate) offsets: [u32; 14],
    pub(crate) drains_no_more: bool,
    /// The only thread that may submit; 0 for one that has ended or is of another namespace.
    pub(crate) submitter: Option<Tid>,
    /// The thread of the kernel's that takes entries.
    pub(crate) poller: Option<Poller>,
    /// What belongs to it and is not carried.
    pub(crate) has: Vec<&'static str>,
    /// Requests wait for something in a way that is not looked into.
    pub(crate) waiting: bool,
    /// Those that wait for a file or a time.
    pub(crate) requests: Vec<Waiting>,
    /// What it is set to.
    pub(crate) settings: RingSettings,
    /// What is registered with it.
    pub(crate) registered: Registered,
    /// Buffers that requests choose among.
    pub(crate) groups: Vec<Group>,
    /// There are completions that the ring has no room for.
    pub(crate) overflown: bool,
    /// Something waits until the thread that submits asks for it (`IORING_SETUP_DEFER_TASKRUN`). From Linux 6.10 on
    /// messages of other rings do, which are no requests of anybody's ([`RingUser::requests`]).
    pub(crate) queued: bool,
    /// So does something else than requests that wait.
    pub(crate) work: bool,
}

/// A thread of the kernel's that takes entries (`struct io_sq_data`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Poller {
    pub(crate) tid: Tid,
    /// The process that it belongs to.
    pub(crate) pid: i32,
    pub(crate) processor: u32,
    /// After how many milliseconds it sleeps.
    pub(crate) idle: u32,
}

/// What a ring may have, by the fields that are zero when it has not; the first one that the kernel knows counts.
const HAS: [(&[&str], &str); 1] = [(&["personalities.xa_head"], "personalities")];

/// The same of fields that some kernels do not have.
const MAY_HAVE: [(&str, &str); 9] = [
    ("restrictions.bpf_filters", "filters"),
    ("napi_enabled", "busy polling"),
    ("ifq", "a queue of an interface"),
    ("zcrx_ctxs.xa_head", "a queue of an interface"),
    ("bpf_filters", "filters"),
    ("bpf_ops", "BPF operations"),
    ("loop_step", "BPF operations"),
    ("cq_wait_arg", "a region of parameters"),
    ("param_region.nr_pages", "a region of parameters"),
];

/// Lists (`struct hlist_head`) of requests that wait.
const SHORT_LISTS: [&str; 1] = ["cancelable_uring_cmd"];
/// What waits for the thread that submits (`struct llist_head`, `struct llist_node *`).
const QUEUED: &str = "work_llist";
const QUEUED_AGAIN: &str = "retry_llist";
/// The same in newer kernels (`struct mpscq`), and where the thread is in it.
const QUEUE: &str = "work_list";
const QUEUE_HEAD: &str = "work_head";
const TABLES: [&str; 2] = ["cancel_table", "cancel_table_locked"];

/// Fields of `struct io_rings`; the entry `array` is behind the completions.
const OF_RINGS: [Option<&str>; 14] = [
    Some("sq.head"),
    Some("sq.tail"),
    Some("sq_ring_mask"),
    Some("sq_ring_entries"),
    Some("sq_flags"),
    Some("sq_dropped"),
    None,
    Some("cq.head"),
    Some("cq.tail"),
    Some("cq_ring_mask"),
    Some("cq_ring_entries"),
    Some("cq_overflow"),
    Some("cqes"),
    Some("cq_flags"),
];
const ARRAY: usize = 6;

/// A ring's bytes.
struct Bytes<'a> {
    btf: &'a Btf,
    at: u64,
    bytes: Vec<u8>,
}

impl Bytes<'_> {
    fn field(&self, path: &str) -> Result<Field, Unreadable> {
        self.btf.field(RING, path)
    }

    fn number(&self, path: &str) -> Result<u32, Unreadable> {
        half(&self.bytes, self.field(path)?.offset).ok_or(WRONG)
    }

    fn pointer(&self, path: &str) -> Result<u64, Unreadable> {
        word(&self.bytes, self.field(path)?.offset).ok_or(WRONG)
    }

    fn is_zero(&self, field: Field) -> bool {
        let (from, len) = (field.offset as usize, field.size as usize);
        let bytes = self.bytes.get(from..from + len);
        bytes.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0))
    }

    /// A list with nothing in it leads to itself.
    fn is_empty_list(&self, path: &str) -> Result<bool, Unreadable> {
        let head = self.at.wrapping_add(self.field(path)?.offset);
        Ok(self.pointer(path)? == head)
    }

    /// What it has of what is not carried.
    fn has(&self) -> Result<Vec<&'static str>, Unreadable> {
        let mut found = Vec::new();
        for (paths, what) in HAS {
            let known = paths.iter().find_map(|path| self.field(path).ok());
            let known = known.ok_or_else(|| Unreadable::NoField(format!("{RING}.{}", paths[0])))?;
            if !self.is_zero(known) {
                found.push(what);
            }
        }
        for (path, what) in MAY_HAVE {
            if self.field(path).is_ok_and(|field| !self.is_zero(field)) {
                found.push(what);
            }
        }
        // IO_URING_NAPI_TRACKING_INACTIVE
        if let Ok(mode) = self.field("napi_track_mode")
            && self.bytes.get(mode.offset as usize) != Some(&0xff)
        {
            found.push("busy polling");
        }
        found.dedup();
        Ok(found)
    }

    fn settings(&self) -> Result<RingSettings, Unreadable> {
        const MONOTONIC: u32 = 1;
        let clock = match self.field("clockid") {
            Ok(_) => Some(self.number("clockid")?).filter(|clock| *clock != MONOTONIC),
            Err(_) => None,
        };
        let workers = self.field("iowq_limits")?.offset;
        let workers = [workers, workers + 4].map(|at| half(&self.bytes, at).unwrap_or(0));
        Ok(RingSettings {
            clock,
            workers,
            places: None,
            restrictions: self.restrictions()?,
        })
    }

    fn restrictions(&self) -> Result<Option<RingRestrictions>, Unreadable> {
        const OF: &str = "restrictions";
        // Linux 7 tells requests from what is registered.
        let is_set = ["registered", "op_registered", "reg_registered"];
        let mut is_set = is_set
            .iter()
            .filter_map(|one| self.field(&format!("{OF}.{one}")).ok());
        if is_set.all(|one| self.is_zero(one)) {
            return Ok(None);
        }
        let bits = |path: &str| {
            let field = self.field(&format!("{OF}.{path}"))?;
            let (from, len) = (field.offset as usize, (field.size as usize).min(16));
            let mut bytes = self.bytes.get(from..from + len).ok_or(WRONG)?.to_vec();
            bytes.resize(16, 0);
            Ok::<_, Unreadable>(bytes.first_chunk().map_or(0, |it| u128::from_le_bytes(*it)))
        };
        Ok(Some(RingRestrictions {
            register: bits("register_op")? as u64,
            requests: bits("sqe_op")?,
            allowed: bits("sqe_flags_allowed")? as u8,
            required: bits("sqe_flags_required")? as u8,
        }))
    }

    fn drains_no_more(&self) -> Result<bool, Unreadable> {
        if let Ok((at, bit)) = self.btf.flag(RING, "drain_disabled") {
            let byte = self.bytes.get(at as usize).ok_or(WRONG)?;
            return Ok(byte & bit != 0);
        }
        // Bits of a word since Linux 7.
        let bit = self.btf.constant("IO_RING_F_DRAIN_DISABLED")?;
        Ok(self.number("int_flags")? & bit != 0)
    }

    fn any_in_lists(&self) -> bool {
        let short = SHORT_LISTS.iter().filter_map(|list| self.field(list).ok());
        short.into_iter().any(|list| !self.is_zero(list))
    }

    /// Where the buckets of its tables of requests are, and how many.
    fn tables(&self) -> Result<Vec<(u64, u64)>, Unreadable> {
        let mut found = Vec::new();
        for table in TABLES {
            let Ok(first) = self.pointer(&format!("{table}.hbs")) else {
                continue;
            };
            let bits = self.number(&format!("{table}.hash_bits"))?;
            if bits > 16 {
                return Err(WRONG);
            }
            found.push((first, 1 << bits));
        }
        if found.is_empty() {
            return Err(Unreadable::NoField(format!("{RING}.{}", TABLES[0])));
        }
        Ok(found)
    }

    fn offsets(&self) -> Result<[u32; 14], Unreadable> {
        let mut found = [0; 14];
        for (at, path) in found.iter_mut().zip(OF_RINGS) {
            if let Some(path) = path {
                let offset = self.btf.field("io_rings", path)?.offset;
                *at = u32::try_from(offset).map_err(|_| WRONG)?;
            }
        }
        let array = self.pointer("sq_array")?;
        if array != 0 {
            let offset = array.checked_sub(self.pointer("rings")?);
            let offset = offset.and_then(|offset| u32::try_from(offset).ok());
            found[ARRAY] = offset.ok_or(WRONG)?;
        }
        Ok(found)
    }
}

impl Kernel {
    /// A ring, by its `struct file`.
    pub(crate) fn ring(&mut self, file: u64) -> Result<RingState, Unreadable> {
        let private = self.btf.field("file", "private_data")?.offset;
        let at = self.word(file.wrapping_add(private), "a ring of io_uring")?;
        let size = self.btf.size_of(RING)? as usize;
        let bytes = self.read(&[(at, size)])?.pop().flatten().ok_or(WRONG)?;
        let mut queued = Vec::new();
        let places = [QUEUE, QUEUE_HEAD].map(|name| self.btf.field(RING, name));
        if let [Ok(queue), Ok(head)] = places {
            queued.push(self.first_queued(at + queue.offset, at + head.offset)?);
        }
        let btf = &self.btf;
        let ring = Bytes { btf, at, bytes };
        let (tables, submitter) = (ring.tables()?, ring.pointer("submitter_task")?);
        if queued.is_empty() {
            queued.push(ring.pointer(QUEUED)?);
            queued.push(ring.pointer(QUEUED_AGAIN).unwrap_or(0));
        }
        let mut state = RingState {
            at,
            memory: ring.pointer("mm_account")?,
            flags: ring.number("flags")?,
            sizes: (ring.number("sq_entries")?, ring.number("cq_entries")?),
            counts: (
                ring.number("cached_sq_head")?,
                ring.number("cached_cq_tail")?,
            ),
            offsets: ring.offsets()?,
            drains_no_more: ring.drains_no_more()?,
            submitter: None,
            poller: None,
            has: ring.has()?,
            waiting: ring.any_in_lists(),
            requests: Vec::new(),
            settings: ring.settings()?,
            registered: Registered::default(),
            groups: Vec::new(),
            overflown: !ring.is_empty_list("cq_overflow_list")?,
            queued: false,
            work: false,
        };
        state.requests = self.waiting(at, &tables)?;
        for first in queued.into_iter().filter(|first| *first != 0) {
            let (over, others) = self.over_in(first)?;
            state.requests.extend(over.into_iter().map(|(_, it)| it));
            (state.queued, state.work) = (true, state.work | others);
        }
        state.groups = self.groups(at)?;
        state.registered = self.registered(at)?;
        state.settings.places = state.registered.places;
        if submitter != 0 {
            state.submitter = Some(self.submitter(submitter)?);
        }
        let poller = self.btf.field(RING, "sq_data")?.offset;
        let poller = self.word(at.wrapping_add(poller), "a thread that takes entries")?;
        if poller != 0 {
            state.poller = Some(self.poller(poller)?);
        }
        Ok(state)
    }

    /// Whether a thread of the kernel's has entries to take and does not wait to be woken.
    pub(crate) fn has_untaken(&mut self, ring: &RingState) -> Result<bool, Unreadable> {
        const NEED_WAKEUP: u64 = 1;
        let rings = self.btf.field(RING, "rings")?.offset;
        let rings = self.word(ring.at.wrapping_add(rings), "a ring of io_uring")?;
        let at = |index: usize| rings.wrapping_add(ring.offsets[index].into());
        let found = self.words(&[at(1), at(4)])?;
        let [Some(tail), Some(flags)] = found[..] else {
            return Err(WRONG);
        };
        Ok(tail as u32 != ring.counts.0 && flags & NEED_WAKEUP == 0)
    }

    fn poller(&mut self, at: u64) -> Result<Poller, Unreadable> {
        const WHAT: &str = "a thread that takes entries";
        let field = |of, path| Ok(self.btf.field(of, path)?.offset);
        let (thread, leader) = (
            field("io_sq_data", "thread")?,
            field("task_struct", "group_leader")?,
        );
        let numbers = [
            field("io_sq_data", "sq_cpu")?,
            field("io_sq_data", "sq_thread_idle")?,
        ];
        let task = self.word(at.wrapping_add(thread), WHAT)?;
        if task == 0 {
            return Err(Unreadable::Inconsistent(WHAT));
        }
        let leader = self.word(task.wrapping_add(leader), WHAT)?;
        let tick = self.length_of_ticks().unwrap_or(0);
        let [processor, ticks] = self.words(&numbers.map(|place| at.wrapping_add(place)))?[..]
        else {
            return Err(Unreadable::Inconsistent(WHAT));
        };
        let idle = i64::from(ticks.unwrap_or(0) as u32).saturating_mul(tick) / 1_000_000;
        Ok(Poller {
            tid: self.submitter(task)?,
            pid: self.submitter(leader)?.0,
            processor: processor.unwrap_or(0) as u32,
            idle: u32::try_from(idle).unwrap_or(u32::MAX),
        })
    }

    fn submitter(&mut self, task: u64) -> Result<Tid, Unreadable> {
        let number = self.btf.field("task_struct", "thread_pid")?.offset;
        let pid = self.word(task.wrapping_add(number), "a thread that submits")?;
        self.number_of(pid).map(Tid)
    }

    /// What each of these threads that uses rings has under way (`struct io_uring_task`), in all of them: the number of
    /// requests, and the rings among its own numbers (`IORING_REGISTER_RING_FDS`).
    pub(crate) fn ring_users(&mut self, tasks: &[u64]) -> Result<Vec<RingUser>, Unreadable> {
        const WHAT: &str = "a user of io_uring";
        let place = self.btf.field("task_struct", "io_uring")?.offset;
        let places: Vec<u64> = tasks.iter().map(|task| task.wrapping_add(place)).collect();
        let users: Option<Vec<u64>> = self.words(&places)?.into_iter().collect();
        let users = users.ok_or(Unreadable::Inconsistent(WHAT))?;
        let users = users.into_iter().filter(|at| *at != 0);
        users.map(|user| self.ring_user(user)).collect()
    }

    /// What each of these threads works at, when it is one of the kernel's that work for rings: where the kernel has
    /// it (`struct io_wq_work`), 0 for nothing.
    pub(crate) fn ring_works(&mut self, tasks: &[u64]) -> Result<Vec<u64>, Unreadable> {
        const WHAT: &str = "a worker of io_uring";
        let place = self.btf.field("task_struct", "worker_private")?.offset;
        let work = self.btf.field("io_worker", "cur_work")?.offset;
        let places: Vec<u64> = tasks.iter().map(|task| task.wrapping_add(place)).collect();
        let workers: Option<Vec<u64>> = self.words(&places)?.into_iter().collect();
        let workers = workers.ok_or(Unreadable::Inconsistent(WHAT))?;
        let mut found = Vec::new();
        for worker in workers {
            found.push(match worker {
                0 => 0,
                worker => self.word(worker.wrapping_add(work), WHAT)?,
            });
        }
        Ok(found)
    }

    fn ring_user(&mut self, user: u64) -> Result<RingUser, Unreadable> {
        let of = |path| Ok(self.btf.field("io_uring_task", path)?.offset);
        let (size, cached) = (self.btf.size_of("io_uring_task")?, of("cached_refs")?);
        let (count, parts) = (of("inflight.count")?, of("inflight.counters")?);
        let registered = self.btf.field("io_uring_task", "registered_rings")?;
        let read = self.read(&[(user, size as usize)])?.pop().flatten();
        let bytes = read.ok_or(WRONG)?;
        let (from, len) = (registered.offset as usize, registered.size as usize);
        let rings = bytes.get(from..from + len).ok_or(WRONG)?;
        let words = rings.as_chunks::<8>().0.iter();
        let names = (0..).zip(words.map(|file| u64::from_le_bytes(*file)));
        let whole = word(&bytes, count).ok_or(WRONG)?.cast_signed();
        let parts = match self.of_processors(word(&bytes, parts).ok_or(WRONG)?) {
            Ok(parts) => parts.into_iter().map(|part| part.cast_signed()).collect(),
            // Where they cannot be read: what is added is too much for the parts, and only what others than the
            // thread itself take away may be there. So more may seem to be under way than is.
            Err(Unreadable::NoField(_)) if processors::few() => Vec::new(),
            Err(other) => return Err(other),
        };
        let parts: i64 = parts.into_iter().map(i64::from).sum();
        // Some are taken ahead of the requests they are for.
        let ahead = half(&bytes, cached).ok_or(WRONG)?.cast_signed();
        let requests = (whole + parts).saturating_sub(ahead.into());
        Ok(RingUser {
            requests: u64::try_from(requests).unwrap_or(0),
            names: names.filter(|(_, file)| *file != 0).collect(),
        })
    }
}

/// What a thread does with rings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RingUser {
    /// Requests that have not ended.
    pub(crate) requests: u64,
    /// Rings among its own numbers: the number, and `struct file`.
    pub(crate) names: Vec<(u32, u64)>,
}

#[cfg(test)]
mod tests {
    use super::super::ring_resources::Registered;
    use super::super::{look, readable};
    use std::os::fd::AsFd;
    use sys::uring::{Memory, OFFSET_RINGS, Params, enter, flags, setup};

    #[test]
    fn a_ring_of_this_process_is_seen() {
        let mut params = Params::new(128, flags::CQSIZE);
        let Ok(ring) = setup(16, &mut params) else {
            return;
        };
        let offsets = params.offsets();
        let memory = Memory::map(&ring, OFFSET_RINGS, offsets[6] as usize + 64).unwrap();
        memory.set_word(offsets[1], 5);
        enter(&ring, 5, 0, 0).unwrap();
        let found = look(|kernel| {
            let file = kernel.own_file(ring.as_fd())?;
            let me = kernel.own_task()?;
            Ok((kernel.ring(file)?, kernel.ring_users(&[me])?))
        });
        let Some((state, users)) = readable(found) else {
            return;
        };
        assert_eq!((state.flags, state.sizes), (flags::CQSIZE, (16, 128)));
        assert_eq!((state.counts, state.offsets), ((5, 5), offsets));
        assert_eq!((state.submitter, state.has), (None, vec![]));
        assert!(state.requests.is_empty() && state.registered == Registered::default());
        assert!(!state.waiting && !state.overflown && !state.drains_no_more && !state.queued);
        assert_eq!((users[0].requests, &users[0].names), (0, &vec![]));
    }
}
