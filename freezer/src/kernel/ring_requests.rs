//! Requests in a ring of io_uring that wait for something (`struct io_kiocb`): what would have to be submitted to have
//! them again.

use super::ring_links::Stage;
use super::ring_messages::Message;
use super::uring::RING;
use super::{Kernel, Unreadable, half, word};
use sys::Tid;
use sys::uring::{Entry, op};

pub(super) const REQUEST: &str = "io_kiocb";
pub(super) const WRONG: Unreadable = Unreadable::Inconsistent("a request of io_uring");
/// More than a ring has by far, to end a list that leads nowhere.
pub(super) const MOST: usize = 1 << 20;

// `IOSQE_*`
const FIXED_FILE: u8 = 1 << 0;
const DRAIN: u8 = 1 << 1;
const LINKS: u8 = 1 << 2 | 1 << 3;
const ASYNC: u8 = 1 << 4;
const CHOOSES: u8 = 1 << 5;
const NO_COMPLETION: u8 = 1 << 6;
/// Those that a request is submitted again with, and those of one that has not begun.
const KEPT: u8 = CHOOSES | NO_COMPLETION;
const KEPT_LATER: u8 = KEPT | FIXED_FILE | ASYNC;

// EPOLL* bits that io_uring keeps with the events of a poll.
const LEVEL_IF_CLEAR: u32 = 1 << 31;
const ONCE: u32 = 1 << 30;
const EXCLUSIVE: u32 = 1 << 28;
const EVENTS: u32 = 0xffff;

// IORING_POLL_*, IORING_ACCEPT_*, IORING_TIMEOUT_*
const POLL_MULTISHOT: u32 = 1 << 0;
const ACCEPT_MULTISHOT: u16 = 1 << 0;
/// Flags of `ioprio` of sends and receives; above them the kernel has its own.
const OF_SOCKETS: u16 = 0x3f;
/// `IORING_RECVSEND_FIXED_BUF`: a registered buffer.
const FIXED_BUFFER: u16 = 1 << 2;
/// `IORING_RECV_MULTISHOT`
pub(super) const MULTISHOT: u16 = 1 << 1;
const ABSOLUTE: u32 = 1 << 0;
const BOOTTIME: u32 = 1 << 2;
const REALTIME: u32 = 1 << 3;
const NO_ERROR: u32 = 1 << 5;

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Who has submitted it; 0 for a thread of another namespace.
    pub(crate) tid: Tid,
    /// Its open file, 0 for none.
    pub(crate) file: u64,
    /// What would be submitted, without a file; with the number of one, when it has not begun.
    pub(crate) entry: Entry,
    /// Memory that has several parts.
    pub(crate) vectors: Vec<(u64, u64)>,
    pub(crate) message: Option<Message>,
    /// Futexes, one of which it waits for, and their flags.
    pub(crate) futexes: Vec<(u64, u32)>,
    /// It has not begun.
    pub(crate) later: bool,
    /// It waits for all before it.
    pub(crate) drained: bool,
    /// The buffer that it has taken from its group: address, length, number.
    pub(crate) chosen: Option<(u64, u32, u16)>,
    /// When its time is over, on which clock.
    pub(crate) until: Option<Until>,
    /// It goes on after its first completion.
    pub(crate) repeats: bool,
    /// What it waits for has come, and its thread has not looked yet: nothing is done, and nothing told.
    pub(crate) fired: bool,
    /// Why it cannot be made again.
    pub(crate) obstacle: Option<String>,
}

/// When a time-out ends, in nanoseconds on a clock of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    Monotonic(i64),
    Boottime(i64),
    Realtime(i64),
    /// After it has begun.
    After(i64),
}

/// A request's bytes.
pub(super) struct Bytes<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) bytes: &'a [u8],
}

impl Bytes<'_> {
    pub(super) fn word(&self, structure: &str, path: &str) -> Result<u64, Unreadable> {
        let at = self.kernel.btf.field(structure, path)?;
        match at.size {
            8 => word(self.bytes, at.offset).ok_or(WRONG),
            4 => Ok(half(self.bytes, at.offset).ok_or(WRONG)?.into()),
            2 => Ok((half(self.bytes, at.offset).ok_or(WRONG)? as u16).into()),
            1 => Ok((half(self.bytes, at.offset).ok_or(WRONG)? as u8).into()),
            _ => Err(WRONG),
        }
    }

    pub(super) fn half(&self, structure: &str, path: &str) -> Result<u32, Unreadable> {
        Ok(self.word(structure, path)? as u32)
    }

    fn own(&self, path: &str) -> Result<u64, Unreadable> {
        self.word(REQUEST, path)
    }

    fn has_flag(&self, name: &str) -> Result<bool, Unreadable> {
        let bit = self.kernel.btf.constant(name)?;
        Ok(self.own("flags")? >> bit & 1 != 0)
    }

    /// POLL_ADD
    fn poll(&self, found: &mut Waiting) -> Result<(), Unreadable> {
        let events = match found.later {
            true => self.half("io_poll", "events")?,
            false => self.half(REQUEST, "apoll_events")?,
        };
        found.repeats = events & ONCE == 0;
        if found.repeats && events & LEVEL_IF_CLEAR == 0 {
            found.obstacle = Some("a poll by level that goes on (IORING_POLL_ADD_LEVEL)".into());
        }
        found.entry.len = if found.repeats { POLL_MULTISHOT } else { 0 };
        found.entry.flags_of_op = events & (EVENTS | EXCLUSIVE);
        Ok(())
    }

    fn accept(&self, found: &mut Waiting) -> Result<(), Unreadable> {
        const OF: &str = "io_accept";
        found.repeats = self.has_flag("REQ_F_APOLL_MULTISHOT_BIT")?;
        let priority = match self.word(OF, "iou_flags") {
            Ok(flags) => flags as u16,
            Err(_) if found.repeats => ACCEPT_MULTISHOT,
            Err(_) => 0,
        };
        found.entry.priority = priority;
        found.entry.address = self.word(OF, "addr")?;
        found.entry.offset = self.word(OF, "addr_len")?;
        found.entry.flags_of_op = self.half(OF, "flags")?;
        found.entry.file_index = self.half(OF, "file_slot")?;
        Ok(())
    }

    /// SEND, RECV, SENDMSG, RECVMSG
    fn of_socket(&self, found: &mut Waiting) -> Result<(), Unreadable> {
        const OF: &str = "io_sr_msg";
        if self.word(OF, "done_io")? != 0 {
            found.obstacle = Some("a send or receive that is partly done".into());
        }
        let entry = &mut found.entry;
        entry.priority = self.word(OF, "flags")? as u16 & OF_SOCKETS;
        entry.address = self.word(OF, "buf")?;
        entry.len = self.half(OF, "len")?;
        entry.flags_of_op = self.half(OF, "msg_flags")?;
        let goes_on = entry.priority & MULTISHOT != 0;
        found.repeats = goes_on;
        if entry.priority & FIXED_BUFFER != 0 {
            entry.buffer = self.own("buf_index")? as u16;
        }
        if entry.chooses() {
            // Since Linux 6.16 the request itself does not keep it.
            let keeps = self.kernel.btf.field("io_async_rw", "buf_group").is_err();
            entry.buffer = match keeps && !goes_on {
                true => self.own("buf_index")? as u16,
                false => self.word(OF, "buf_group")? as u16,
            };
        }
        if goes_on {
            // Linux before 6.6 leaves the length of the last buffer there; the entry must have none.
            entry.len = 0;
        }
        if let Ok(len) = self.half(OF, "mshot_len")
            && goes_on
            && len != 0
        {
            entry.len = len;
            entry.file_index = self.half(OF, "mshot_total_len")?;
        }
        let (send, message) = (op::SEND, [op::SENDMSG, op::RECVMSG].contains(&entry.opcode));
        if entry.opcode == send && (self.word(OF, "addr_len").unwrap_or(0) != 0) {
            found.obstacle = Some("a send to a name".into());
        }
        if message {
            found.entry.len = 1;
        }
        Ok(())
    }

    fn read(&self, found: &mut Waiting) -> Result<(), Unreadable> {
        const OF: &str = "io_rw";
        found.entry.address = self.word(OF, "addr")?;
        found.entry.len = self.half(OF, "len")?;
        found.entry.offset = self.word(OF, "kiocb.ki_pos")?;
        found.entry.flags_of_op = self.half(OF, "flags")?;
        found.entry.buffer = self.own("buf_index")? as u16;
        found.repeats = found.entry.opcode == op::READ_MULTISHOT;
        if found.repeats {
            // What is there is of the last buffer; the entry must have none.
            found.entry.address = 0;
            found.entry.len = 0;
        }
        Ok(())
    }

    fn epoll(&self, found: &mut Waiting) -> Result<(), Unreadable> {
        const OF: &str = "io_epoll_wait";
        found.entry.address = self.word(OF, "events")?;
        found.entry.len = self.half(OF, "maxevents")?;
        Ok(())
    }

    /// What a request is by its kind.
    fn kind(&self, stage: Stage, found: &mut Waiting) -> Result<(), Unreadable> {
        let opcode = found.entry.opcode;
        match opcode {
            _ if self.is_time() => found.file = 0,
            op::NOP if stage == Stage::Later => found.file = 0,
            op::POLL_ADD => self.poll(found)?,
            op::ACCEPT => self.accept(found)?,
            op::RECV | op::SEND | op::RECVMSG | op::SENDMSG => self.of_socket(found)?,
            op::READ | op::WRITE | op::READV | op::WRITEV | op::READ_FIXED | op::WRITE_FIXED => {
                self.read(found)?;
            }
            op::READ_MULTISHOT => self.read(found)?,
            op::EPOLL_WAIT => self.epoll(found)?,
            _ if found.entry.has_no_descriptor() => found.file = 0,
            other => found.obstacle = Some(format!("a request of kind {other}")),
        }
        Ok(())
    }

    /// LINK_TIMEOUT and TIMEOUT that have not begun.
    fn is_time(&self) -> bool {
        let opcode = self.own("opcode").unwrap_or(0) as u8;
        [op::TIMEOUT, op::LINK_TIMEOUT].contains(&opcode)
    }
}

impl Kernel {
    /// The requests of a ring that wait, in no order, of which nothing has happened yet.
    pub(super) fn waiting(
        &mut self,
        ring: u64,
        tables: &[(u64, u64)],
    ) -> Result<Vec<Waiting>, Unreadable> {
        let mut found = Vec::new();
        for table in tables {
            for request in self.in_table(*table)? {
                found.extend(self.linked(request, Stage::Waits)?);
            }
        }
        for request in self.of_no_file(ring)? {
            found.extend(self.linked(request, Stage::Waits)?);
        }
        for request in self.time_outs(ring)? {
            found.extend(self.linked(request, Stage::Times)?);
        }
        found.extend(self.drained(ring)?);
        Ok(found)
    }

    /// Time-outs that are over and that these threads have not looked at, and the rings they are of.
    pub(crate) fn over(&mut self, tasks: &[u64]) -> Result<Vec<(u64, Waiting)>, Unreadable> {
        let place = self.btf.field("task_struct", "io_uring")?.offset;
        let list = self.btf.field("io_uring_task", "task_list")?.offset;
        let mut found = Vec::new();
        for task in tasks {
            let user = self.word(task.wrapping_add(place), "a user of io_uring")?;
            if user != 0 {
                let first = match self.btf.field("io_uring_task", "task_head") {
                    Ok(head) => self.first_queued(user + list, user + head.offset)?,
                    Err(_) => self.word(user.wrapping_add(list), "work of a thread")?,
                };
                found.extend(self.over_in(first)?.0);
            }
        }
        Ok(found)
    }

    /// What comes first in a queue of work (`struct mpscq`), whose reader is at what `head` points to: 0 in an empty
    /// one. While somebody adds to it or takes from it nothing is told.
    pub(super) fn first_queued(&mut self, queue: u64, head: u64) -> Result<u64, Unreadable> {
        let field = |path| Ok(self.btf.field("mpscq", path)?.offset);
        let (tail, stub) = (queue + field("tail")?, queue + field("stub")?);
        let [Some(tail), Some(first), Some(head)] = self.words(&[tail, stub, head])?[..] else {
            return Err(WRONG);
        };
        let rests = head == stub && (tail == stub) == (first == 0);
        rests.then_some(first).ok_or(WRONG)
    }

    /// Those of them in a list of work (`struct llist_node`), and whether there is other work than that of requests
    /// that wait for files.
    pub(super) fn over_in(
        &mut self,
        mut next: u64,
    ) -> Result<(Vec<(u64, Waiting)>, bool), Unreadable> {
        let node = self.btf.field(REQUEST, "io_task_work.node")?.offset;
        let size = self.btf.size_of(REQUEST)? as usize;
        let (mut found, mut others, mut count) = (Vec::new(), false, 0);
        while next != 0 {
            count += 1;
            if count > MOST {
                return Err(WRONG);
            }
            let at = next.wrapping_sub(node);
            let bytes = self.read(&[(at, size)])?.pop().flatten().ok_or(WRONG)?;
            let request = Bytes {
                kernel: self,
                bytes: &bytes,
            };
            let (opcode, ring) = (request.own("opcode")? as u8, request.own("ctx")?);
            let waits = request.own("poll_refs.counter")? != 0;
            if opcode == op::TIMEOUT {
                let mut chain = self.linked(at, Stage::Times)?;
                chain[0].fired = true;
                found.extend(chain.into_iter().map(|waiting| (ring, waiting)));
            } else {
                others |= !waits;
            }
            next = self.word(next, "work of a thread")?;
        }
        Ok((found, others))
    }

    fn in_table(&mut self, (first, buckets): (u64, u64)) -> Result<Vec<u64>, Unreadable> {
        let size = self.btf.size_of("io_hash_bucket")?;
        let list = self.btf.field("io_hash_bucket", "list")?.offset;
        let node = self.btf.field(REQUEST, "hash_node")?.offset;
        let places: Vec<u64> = (0..buckets)
            .map(|n| first.wrapping_add(n * size + list))
            .collect();
        let lists: Option<Vec<u64>> = self.words(&places)?.into_iter().collect();
        let mut found = Vec::new();
        for next in lists.ok_or(WRONG)? {
            self.add_list(next, node, &mut found)?;
        }
        Ok(found)
    }

    /// Requests in a list (`struct hlist_head`), which has `node` bytes behind the beginning of each.
    fn add_list(
        &mut self,
        mut next: u64,
        node: u64,
        found: &mut Vec<u64>,
    ) -> Result<(), Unreadable> {
        while next != 0 {
            if found.len() == MOST {
                return Err(WRONG);
            }
            found.push(next.wrapping_sub(node));
            next = self.word(next, "a list of requests")?;
        }
        Ok(())
    }

    /// Those that wait for a futex or a child, where the kernel has such requests.
    fn of_no_file(&mut self, ring: u64) -> Result<Vec<u64>, Unreadable> {
        let node = self.btf.field(REQUEST, "hash_node")?.offset;
        let mut found = Vec::new();
        for list in ["futex_list", "waitid_list"] {
            if let Ok(list) = self.btf.field(RING, list) {
                let first = self.word(ring.wrapping_add(list.offset), "a list of requests")?;
                self.add_list(first, node, &mut found)?;
            }
        }
        Ok(found)
    }

    fn time_outs(&mut self, ring: u64) -> Result<Vec<u64>, Unreadable> {
        let head = self.btf.field(RING, "timeout_list")?.offset;
        let link = self.btf.field("io_timeout", "list")?.offset;
        let head = ring.wrapping_add(head);
        let mut next = self.word(head, "a list of time-outs")?;
        let mut found = Vec::new();
        while next != head {
            if found.len() == MOST {
                return Err(WRONG);
            }
            found.push(next.wrapping_sub(link));
            next = self.word(next, "a list of time-outs")?;
        }
        Ok(found)
    }

    /// A request, and the address of the one that waits for it.
    pub(super) fn request(&mut self, at: u64, stage: Stage) -> Result<(Waiting, u64), Unreadable> {
        let size = self.btf.size_of(REQUEST)? as usize;
        let bytes = self.read(&[(at, size)])?.pop().flatten().ok_or(WRONG)?;
        let request = Bytes {
            kernel: self,
            bytes: &bytes,
        };
        let (mut found, flags) = request.begin(stage)?;
        request.kind(stage, &mut found)?;
        let chose = request.has_flag("REQ_F_BUFFER_SELECTED_BIT")?;
        let chosen = match chose {
            true if !request.has_flag("REQ_F_BUFFER_RING_BIT")? => request.own("kbuf")?,
            true => {
                found.obstacle = Some("a request that has chosen its buffer".into());
                0
            }
            false => 0,
        };
        let creds = match request.has_flag("REQ_F_CREDS_BIT")? {
            true => request.own("creds")?,
            false => 0,
        };
        let link = request.own("link")?;
        if link != 0 {
            found.entry.flags |= flags & LINKS;
            if flags & LINKS == 0 {
                return Err(WRONG);
            }
        }
        let (task, data) = (request.task()?, request.own("async_data")?);
        if chosen != 0 {
            let (group, buffer) = self.chosen(chosen)?;
            found.chosen = Some(buffer);
            found.entry.buffer = group;
        }
        let request = Bytes {
            kernel: self,
            bytes: &bytes,
        };
        let is_copied = request.has_flag("REQ_F_ASYNC_DATA_BIT")?;
        if request.is_time() {
            self.time_out(&bytes, data, stage, &mut found)?;
        } else if found.entry.has_no_descriptor() {
            self.add_awaited(&bytes, data, &mut found)?;
        } else if is_copied {
            self.add_copied(&bytes, data, &mut found)?;
        }
        let task = match task {
            (task, None) => task,
            (user, Some(field)) => self.word(user.wrapping_add(field), "who has submitted")?,
        };
        let field = |path| Ok(self.btf.field("task_struct", path)?.offset);
        let (pid, own) = (field("thread_pid")?, field("cred")?);
        let pid = self.word(task.wrapping_add(pid), "who has submitted")?;
        if creds != 0 && creds != self.word(task.wrapping_add(own), "who has submitted")? {
            found.obstacle = Some("a request with other credentials than its thread's".into());
        }
        found.tid = Tid(self.number_of(pid)?);
        Ok((found, link))
    }

    fn time_out(
        &mut self,
        bytes: &[u8],
        data: u64,
        stage: Stage,
        found: &mut Waiting,
    ) -> Result<(), Unreadable> {
        const OF: &str = "io_timeout_data";
        let kernel = &*self;
        let request = Bytes { kernel, bytes };
        let (after, target) = (
            request.half("io_timeout", "off")?,
            request.half("io_timeout", "target_seq")?,
        );
        let ring = request.own("ctx")?;
        let field = |of, path| Ok(self.btf.field(of, path)?.offset);
        let (made, timed_out) = (
            field(RING, "cached_cq_tail")?,
            field(RING, "cq_timeouts.counter").or_else(|_| field(RING, "cq_timeouts"))?,
        );
        let (flags, expires) = (field(OF, "flags")?, field(OF, "timer._softexpires")?);
        let size = self.btf.size_of(OF)? as usize;
        let data = self.read(&[(data, size)])?.pop().flatten().ok_or(WRONG)?;
        let counts = self.words(&[ring.wrapping_add(made), ring.wrapping_add(timed_out)])?;
        let [Some(made), Some(timed_out)] = counts[..] else {
            return Err(WRONG);
        };
        let flags = half(&data, flags).ok_or(WRONG)?;
        found.entry.len = 1;
        if stage == Stage::Later {
            found.entry.flags_of_op = flags;
            found.entry.offset = after.into();
            found.until = Some(Until::After(self.duration(&data)?));
            if flags & !(BOOTTIME | NO_ERROR) != 0 {
                found.obstacle = Some("a time-out that has not begun, for a point of time".into());
            }
            return Ok(());
        }
        let expires = word(&data, expires).ok_or(WRONG)?.cast_signed();
        if flags & !(ABSOLUTE | BOOTTIME | REALTIME | NO_ERROR) != 0 {
            found.obstacle = Some("a time-out that goes on (IORING_TIMEOUT_MULTISHOT)".into());
        }
        found.until = Some(match flags & (ABSOLUTE | BOOTTIME | REALTIME) {
            flags if flags & BOOTTIME != 0 => Until::Boottime(expires),
            flags if flags == ABSOLUTE | REALTIME => Until::Realtime(expires),
            _ => Until::Monotonic(expires),
        });
        let clock = match found.until {
            Some(Until::Boottime(_)) => BOOTTIME,
            Some(Until::Realtime(_)) => ABSOLUTE | REALTIME,
            _ => 0,
        };
        found.entry.flags_of_op = flags & NO_ERROR | clock;
        if found.entry.opcode == op::TIMEOUT && after != 0 {
            let left = target.wrapping_sub((made as u32).wrapping_sub(timed_out as u32));
            found.entry.offset = left.into();
            if left.cast_signed() <= 0 && found.obstacle.is_none() {
                // It is about to end.
                found.obstacle = Some("a time-out that has counted enough".into());
            }
        }
        Ok(())
    }
}

impl Kernel {
    /// What a time-out that has not begun is set to.
    fn duration(&self, data: &[u8]) -> Result<i64, Unreadable> {
        const OF: &str = "io_timeout_data";
        if let Ok(time) = self.btf.field(OF, "time") {
            return Ok(word(data, time.offset).ok_or(WRONG)?.cast_signed());
        }
        let parts = ["ts.tv_sec", "ts.tv_nsec"].map(|path| self.btf.field(OF, path));
        let [Ok(seconds), Ok(rest)] = parts else {
            return Err(Unreadable::NoField(format!("{OF}.ts")));
        };
        let [seconds, rest] = [seconds, rest].map(|field| word(data, field.offset));
        let seconds = seconds.ok_or(WRONG)?.cast_signed();
        let rest = rest.ok_or(WRONG)?.cast_signed();
        Ok(seconds.saturating_mul(1_000_000_000).saturating_add(rest))
    }
}

impl Bytes<'_> {
    /// What every request has, and its flags.
    fn begin(&self, stage: Stage) -> Result<(Waiting, u8), Unreadable> {
        let (flags, later) = (self.own("flags")? as u8, stage == Stage::Later);
        let kept = match later {
            true => KEPT_LATER,
            false => KEPT,
        };
        let found = Waiting {
            tid: Tid(0),
            file: if later { 0 } else { self.own("file")? },
            entry: Entry {
                opcode: self.own("opcode")? as u8,
                flags: flags & kept | if later { flags & DRAIN } else { 0 },
                data: self.own("cqe.user_data")?,
                fd: match later {
                    true => self.half(REQUEST, "cqe.fd")?.cast_signed(),
                    false => 0,
                },
                ..Entry::default()
            },
            vectors: Vec::new(),
            message: None,
            futexes: Vec::new(),
            later,
            drained: false,
            chosen: None,
            until: None,
            repeats: false,
            fired: stage == Stage::Waits && self.own("poll_refs.counter")? != 0,
            obstacle: None,
        };
        Ok((found, flags))
    }

    /// Who has submitted it: a thread, or what leads to it and where that is in there.
    fn task(&self) -> Result<(u64, Option<u64>), Unreadable> {
        // Since Linux 6.13 by way of what it has of io_uring.
        match self.own("tctx") {
            Ok(user) => {
                let task = self.kernel.btf.field("io_uring_task", "task")?.offset;
                Ok((user, Some(task)))
            }
            Err(_) => Ok((self.own("task")?, None)),
        }
    }
}
