//! Rings of io_uring(7).
//!
//! What a ring counts and has registered, and which requests wait, only the kernel knows
//! ([`crate::kernel::RingState`]); its memory is read through a mapping of our own. What ends by itself is waited for
//! before anything is described (`capture/uring.rs`). What waits is left alone, and submitted again by a restore.

mod groups;
pub(super) mod names;
mod resources;
pub(super) mod workers;

use super::{Open, Table, apart};
use crate::freeze::{monotonic_ns, vfork};
use crate::kernel::{self, RingState, Unreadable, Until};
use crate::{FreezerError, landlock, proc};
use persist_mem::manifest::{Description, DescriptionKind, Ring, RingPoller};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use sys::uring::{Memory, OFFSET_ENTRIES, OFFSET_RINGS, flags, op};
use sys::{Pid, Tid};

const LINK: &[u8] = b"anon_inode:[io_uring]";
/// Flags whose rings are made again.
const CARRIED: u32 = flags::IOPOLL
    | flags::HYBRID_IOPOLL
    | flags::SQPOLL
    | flags::SQ_AFF
    | flags::CQSIZE
    | flags::CLAMP
    | flags::ATTACH_WQ
    | flags::R_DISABLED
    | flags::SUBMIT_ALL
    | flags::COOP_TASKRUN
    | flags::TASKRUN_FLAG
    | flags::SQE128
    | flags::CQE32
    | flags::SINGLE_ISSUER
    | flags::DEFER_TASKRUN
    | flags::NO_SQARRAY;
/// Names of the others, by their bits (include/uapi/linux/io_uring.h).
const NAMES: [(u32, &str); 5] = [
    (1 << 14, "IORING_SETUP_NO_MMAP"),
    (1 << 15, "IORING_SETUP_REGISTERED_FD_ONLY"),
    (1 << 18, "IORING_SETUP_CQE_MIXED"),
    (1 << 19, "IORING_SETUP_SQE_MIXED"),
    (1 << 20, "IORING_SETUP_SQ_REWIND"),
];
/// Indices into [`sys::uring::Params::offsets`].
const SQ_HEAD: usize = 0;
const SQ_DROPPED: usize = 5;
const ARRAY: usize = 6;
const CQ_HEAD: usize = 7;
const CQ_TAIL: usize = 8;
const CQES: usize = 12;
/// A new ring's counts begin at 0 and are brought to where they were by requests that do nothing, each of which
/// takes 0.15 µs. More than these take too long.
const MOST: u32 = 100_000_000;
const DROPPED: &str = "its ring has dropped entries, which is not carried";

/// Where the kernel has a ring that is open here.
fn state(ring: &OwnedFd) -> Result<RingState, Unreadable> {
    kernel::look(|kernel| {
        let file = kernel.own_file(ring.as_fd())?;
        kernel.ring(file)
    })
}

/// Refuses what is not carried of a process that may run.
/// `inside` are the processes of its tree, None for a whole host.
pub(super) fn check(open: &Open<'_>, inside: Option<&[Pid]>) -> Result<(), FreezerError> {
    let state = match state(open.copy) {
        // It is changing.
        Err(Unreadable::Inconsistent(_)) => return Ok(()),
        state => state.map_err(|why| unreadable(open, &why))?,
    };
    let submitter = submitter_obstacle(&state, inside)
        .or_else(|| poller_obstacle(&state, inside).map(str::to_owned));
    if let Some(why) = obstacle(&state).or(submitter) {
        return Err(open.refuse(why));
    }
    if let Some(why) = lasting(open, &state).or_else(|| unheld(open, &state)) {
        return Err(open.refuse(why));
    }
    if dropped(&state, open.copy) {
        return Err(open.refuse(DROPPED));
    }
    if state.overflown {
        return Err(open.refuse("it has completions that its ring has no room for"));
    }
    match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
        Ok(text) if text.trim() == "2" => {
            Err(open.refuse("kernel.io_uring_disabled is 2: nobody may make a ring"))
        }
        _ => Ok(()),
    }
}

fn unreadable(open: &Open<'_>, why: &Unreadable) -> FreezerError {
    open.refuse(format!(
        "io_uring: what its ring holds cannot be read: {why}"
    ))
}

/// Why a ring of this kind is not carried, whatever is under way.
fn obstacle(state: &RingState) -> Option<String> {
    if state.flags & !CARRIED != 0 {
        let names = NAMES.iter().filter(|(bit, _)| state.flags & bit != 0);
        let names: Vec<_> = names.map(|(_, name)| *name).collect();
        return Some(format!("a ring with {} is not carried", names.join(", ")));
    }
    if !state.has.is_empty() {
        let what = state.has.join(", ");
        return Some(format!("a ring with {what} is not carried"));
    }
    if state.poller.is_some() && (state.submitter.is_some() || !state.groups.is_empty()) {
        let what = "one thread that submits, or with provided buffers";
        return Some(format!(
            "a ring with IORING_SETUP_SQPOLL and {what}, is not carried"
        ));
    }
    if let Some(why) = restricted(state) {
        return Some(format!("a ring with restrictions and {why} is not carried"));
    }
    let (submitted, completed) = state.counts;
    if submitted.max(completed) > MOST {
        return Some(format!(
            "its ring has counted {submitted} requests and {completed} completions; more than {MOST} are not made up for"
        ));
    }
    (state.drains_no_more && submitted == 0).then(|| "its ring has counted 2^32 requests".into())
}

/// What an enabled ring has that its restrictions keep from being made again.
fn restricted(state: &RingState) -> Option<&'static str> {
    let restrictions = state.settings.restrictions?;
    let required = restrictions.required;
    let mut requests = state.requests.iter();
    if state.flags & flags::R_DISABLED != 0 {
        None
    } else if state.poller.is_some() {
        Some("IORING_SETUP_SQPOLL")
    } else if !state.groups.is_empty() {
        Some("provided buffers")
    } else if state.drains_no_more {
        // What is not allowed always has a completion.
        Some("requests without completions")
    } else if requests.any(|request| request.entry.flags & required != required) {
        Some("flags that requests must have")
    } else {
        None
    }
}

/// How often what changes is looked at, and the time between.
const LOOKS: usize = 8;
const BETWEEN: Duration = Duration::from_millis(5);

/// What keeps what the ring of a process that may run holds from being carried, whenever one looks: a request that ends
/// as it is read, and whose memory is another one's by then, can look like anything.
fn lasting(open: &Open<'_>, first: &RingState) -> Option<String> {
    let mut found = resources::obstacle(first);
    for _ in 0..LOOKS {
        found.as_ref()?;
        std::thread::sleep(BETWEEN);
        match state(open.copy) {
            Ok(now) => found = resources::obstacle(&now),
            Err(Unreadable::Inconsistent(_)) => return None,
            Err(why) => log::debug!("a ring that is looked at again: {why}"),
        }
    }
    found
}

/// Why a file that the ring of a process that may run needs would not be there: no descriptor is open on it, whenever
/// one looks.
fn unheld(open: &Open<'_>, first: &RingState) -> Option<String> {
    let mut missing = resources::unheld(open, first);
    for _ in 0..LOOKS {
        if missing.is_empty() {
            return None;
        }
        std::thread::sleep(BETWEEN);
        if let Ok(now) = state(open.copy) {
            let still = resources::unheld(open, &now);
            missing.retain(|file| still.contains(file));
        }
    }
    (!missing.is_empty()).then(|| resources::UNHELD.to_owned())
}

/// Why the process whose memory the kernel's thread has that takes entries would not do the same again.
fn poller_obstacle(state: &RingState, inside: Option<&[Pid]>) -> Option<&'static str> {
    let pid = Pid(state.poller?.pid);
    if inside.is_some_and(|inside| !inside.contains(&pid)) || pid.0 == 0 {
        return Some("the process that takes entries of its ring is not part of the tree");
    }
    // Its thread keeps the credentials that its process had, which has ours as long as it is rebuilt.
    let read = |pid| proc::Status::read(pid, "status").ok();
    let (status, ours) = (read(pid)?, read(Pid(std::process::id().cast_signed()))?);
    let mut keys = ["Uid", "Gid", "CapPrm", "CapEff"].into_iter();
    let same = keys.all(|key| status.value(key) == ours.value(key));
    (!same || landlock::concerns(&[pid])).then_some(
        "a ring with IORING_SETUP_SQPOLL of a process without all privileges is not carried",
    )
}

/// Why the only thread that may submit to a ring would not be there to do so where these processes are built again.
/// `inside` are those processes, None for a whole host.
fn submitter_obstacle(state: &RingState, inside: Option<&[Pid]>) -> Option<String> {
    let tid = state.submitter?;
    let submitter = Pid(tid.0);
    let lives = proc::Stat::read(submitter, "stat")
        .is_ok_and(|stat| tid.0 != 0 && !matches!(stat.state(), 'Z' | 'X'));
    let why = match proc::tgid(submitter).filter(|_| lives) {
        None => "is not there any more",
        Some(pid) if inside.is_some_and(|inside| !inside.contains(&pid)) => {
            "is not part of the tree"
        }
        Some(pid) if vfork::waits(pid, tid) => "waits in vfork(2)",
        Some(_) => return None,
    };
    Some(format!("the only thread that may submit to its ring {why}"))
}

/// Entries that name no entry are dropped, and have no completion.
fn dropped(state: &RingState, ring: &OwnedFd) -> bool {
    let rings = Memory::map(ring, OFFSET_RINGS, sys::PAGE_SIZE);
    rings.map_or(true, |rings| rings.word(state.offsets[SQ_DROPPED]) != 0)
}

/// A ring whose contents are still to come ([`resolve`]).
pub(super) fn capture(open: &Open<'_>) -> DescriptionKind {
    DescriptionKind::Ring(Box::new(Ring {
        inode: open.stat.st_ino,
        ..Ring::default()
    }))
}

/// Reads what is in every ring, now that nothing runs. `inside` are the processes that live.
pub(super) fn resolve(table: &mut Table, inside: &[Pid]) -> Result<(), FreezerError> {
    let is_ring = |it: &Description| matches!(it.kind, DescriptionKind::Ring(_));
    if !table.descriptions.iter().any(is_ring) {
        return Ok(());
    }
    let known = resources::Known::of(table);
    let mut over = resources::over(inside);
    let makers = makers(inside);
    let mut waits = 0;
    for description in &mut table.descriptions {
        let DescriptionKind::Ring(ring) = &mut description.kind else {
            continue;
        };
        let Some(copy) = table.copies.get(&description.id) else {
            continue;
        };
        let holder = table.numbers.iter().find(|(_, id)| **id == description.id);
        let (pid, fd) = holder.map_or((Pid(0), -1), |(place, _)| *place);
        let refuse = |why: String| {
            FreezerError::refuse(pid, format!("fd {fd} (anon_inode:[io_uring])"), why)
        };
        let mut state = state(copy)
            .map_err(|why| refuse(format!("what its ring holds cannot be read: {why}")))?;
        state
            .requests
            .extend(over.remove(&state.at).unwrap_or_default());
        if let Some(why) = obstacle(&state).or_else(|| submitter_obstacle(&state, Some(inside))) {
            return Err(refuse(why));
        }
        let poller = poller_obstacle(&state, Some(inside)).map(str::to_owned);
        if let Some(why) = resources::obstacle(&state).or(poller) {
            return Err(refuse(why));
        }
        if state.overflown || state.work {
            return Err(refuse("requests are under way in its ring".into()));
        }
        if dropped(&state, copy) {
            return Err(refuse(DROPPED.into()));
        }
        **ring = contents(ring.inode, &state, copy)
            .map_err(|why| refuse(format!("reading its ring: {why}")))?;
        ring.maker = makers.get(&state.memory).copied();
        let holders = table
            .numbers
            .iter()
            .filter(|(_, id)| **id == description.id);
        let holders = holders.map(|((pid, _), _)| *pid).collect();
        resources::add(ring, &state, &known, &holders).map_err(&refuse)?;
        groups::read(&mut ring.groups, copy)
            .map_err(|why| refuse(format!("reading its buffers: {why}")))?;
        let (head, tail) = (word(ring, SQ_HEAD), word(ring, CQ_TAIL));
        let (submitted, completed) = state.counts;
        let (waiting, told) = waiting(ring);
        let (ended, told_by_others) = (
            submitted.wrapping_sub(waiting),
            completed.wrapping_sub(told),
        );
        let behind = ended > told_by_others && !state.drains_no_more
            || waiting > submitted
            || told > completed.min(ring.completions);
        let unread = word(ring, CQ_HEAD).map(|head| completed.wrapping_sub(head));
        let fits = unread.is_some_and(|unread| unread <= completed.min(ring.completions));
        if (head, tail) != (Some(submitted), Some(completed)) || behind || !fits {
            return Err(refuse("its ring is not consistent".into()));
        }
        waits += u64::from(waiting);
    }
    names::add(table, &known, inside)?;
    resources::are_all(inside, waits)
}

/// Processes by where the kernel has their memory; of several with the same one the first.
fn makers(inside: &[Pid]) -> BTreeMap<u64, Pid> {
    let first: Vec<Tid> = inside.iter().map(|pid| pid.leader()).collect();
    let found = kernel::look(|kernel| {
        let mut found = BTreeMap::new();
        for (task, pid) in kernel.tasks(&first)?.into_iter().zip(inside) {
            let memory = task.map_or(Ok(0), |task| kernel.memory_of(task))?;
            if memory != 0 {
                found.entry(memory).or_insert(*pid);
            }
        }
        Ok(found)
    });
    found.unwrap_or_default()
}

/// How many requests wait, and how many of them have been told of what they would tell at once.
fn waiting(ring: &Ring) -> (u32, u32) {
    let told = ring.requests.iter().filter(|request| request.told);
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    (count(ring.requests.len()), count(told.count()))
}

fn word(ring: &Ring, index: usize) -> Option<u32> {
    let at = usize::try_from(ring.offsets[index]).ok()?;
    Some(u32::from_le_bytes(*ring.rings.get(at..)?.first_chunk()?))
}

/// Bytes of the rings, and of the entries.
fn sizes(state: &RingState) -> (usize, usize) {
    let has = |flag| u32::from(state.flags & flag != 0);
    let (entries, completions) = state.sizes;
    let rings = match state.offsets[ARRAY] {
        0 => state.offsets[CQES] + completions * (16 << has(flags::CQE32)),
        array => array + entries * 4,
    };
    let sqes = entries * (64 << has(flags::SQE128));
    (rings as usize, sqes as usize)
}

fn contents(inode: u64, state: &RingState, ring: &OwnedFd) -> sys::Result<Ring> {
    let (rings, sqes) = sizes(state);
    let read = |offset, len| Ok(Memory::map(ring, offset, len)?.read(len));
    Ok(Ring {
        inode,
        flags: state.flags,
        entries: state.sizes.0,
        completions: state.sizes.1,
        offsets: state.offsets,
        counts: state.counts,
        drains_no_more: state.drains_no_more,
        settings: state.settings,
        submitter: state.submitter,
        poller: state.poller.map(|poller| RingPoller {
            pid: Pid(poller.pid),
            tid: poller.tid,
            processor: poller.processor,
            idle: poller.idle,
        }),
        rings: read(OFFSET_RINGS, rings)?,
        sqes: read(OFFSET_ENTRIES, sqes)?,
        ..Ring::default()
    })
}

/// The rings that a table has descriptors of: numbers and inodes.
pub(crate) fn of_table(pid: Pid) -> Vec<(i32, u64)> {
    let Ok(links) = proc::Links::open(pid) else {
        return Vec::new();
    };
    let ring = |fd: &i32| {
        let is_one = links.read(*fd).is_ok_and(|link| link == LINK);
        let inode = is_one.then(|| links.info(*fd).ok()?.number("ino", 10));
        Some((*fd, inode??))
    };
    links.numbers().iter().filter_map(ring).collect()
}

/// What threads have left in rings.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Left {
    /// Something waits until one of them asks for it.
    pub(crate) queued: bool,
    /// The kernel's thread has entries to take, and does not sleep.
    pub(crate) untaken: bool,
    /// Requests of theirs that wait for a file or a time.
    pub(crate) waiting: u64,
}

/// What some threads have left in the rings of a table, which `holder` has, but for those rings that have been `seen`.
pub(crate) fn left(
    table: Pid,
    holder: Tid,
    threads: &[Tid],
    seen: &mut BTreeSet<u64>,
) -> Result<Left, Unreadable> {
    let mut found = Left::default();
    let rings = of_table(table);
    if rings.is_empty() {
        return Ok(found);
    }
    kernel::look(|kernel| {
        let Some(task) = kernel.tasks(&[holder])?.into_iter().flatten().next() else {
            return Ok(found);
        };
        let files = kernel.files(task)?;
        let is_ring = |fd: i32| rings.iter().any(|(ring, _)| *ring == fd);
        for (_, file) in files.into_iter().filter(|(fd, _)| is_ring(*fd)) {
            if !seen.insert(file) {
                continue;
            }
            let ring = kernel.ring(file)?;
            found.untaken |= ring.poller.is_some() && kernel.has_untaken(&ring)?;
            let asks = ring.submitter.is_some_and(|tid| threads.contains(&tid));
            found.queued |= ring.queued && asks;
            let requests = ring.requests.iter().filter(|it| !it.fired);
            let own = requests.filter(|it| threads.contains(&it.tid));
            found.waiting += own.count() as u64;
        }
        Ok(found)
    })
}

/// Nanoseconds until the first time-out of a ring is over that counts by CLOCK_MONOTONIC: a thread has it open so.
pub(crate) fn first_time_out(tid: Tid, fd: i32) -> Option<u64> {
    // One that is over just now may be met in neither of the places where it is looked for.
    (0..3).find_map(|_| time_out(tid, fd))
}

fn time_out(tid: Tid, fd: i32) -> Option<u64> {
    let found = kernel::look(|kernel| {
        let task = kernel.tasks(&[tid])?.into_iter().flatten().next();
        let files = task.map_or(Ok(Vec::new()), |task| kernel.files(task))?;
        let file = files.into_iter().find(|(its, _)| *its == fd);
        let mut requests = Vec::new();
        if let (Some((_, file)), Some(task)) = (file, task) {
            let ring = kernel.ring(file)?;
            requests = ring.requests;
            // Those that are over wait for their thread.
            let over = kernel.over(&[task])?.into_iter();
            requests.extend(over.filter(|(its, _)| *its == ring.at).map(|(_, it)| it));
        }
        Ok((requests, kernel.clock_offsets()?))
    });
    let (requests, [monotonic, _]) = found.ok()?;
    let now = i64::try_from(monotonic_ns()).ok()?;
    let begun = requests
        .iter()
        .filter(|it| it.entry.opcode == op::TIMEOUT && !it.later);
    let ends = begun.filter_map(|it| match it.until {
        Some(Until::Monotonic(at)) => Some((at - monotonic).saturating_sub(now).max(0)),
        _ => None,
    });
    ends.min().and_then(|left| u64::try_from(left).ok())
}

/// Whether a ring that a process has a descriptor of has lost the ring of buffers with this number, which the kernel has
/// made: its memory stays as long as it is mapped.
pub(crate) fn has_lost_buffers(pid: Pid, inode: u64, number: u64) -> bool {
    let mut holders = apart::tables_of(pid).into_iter().filter_map(|table| {
        let rings = of_table(table);
        let (fd, _) = rings.into_iter().find(|(_, its)| *its == inode)?;
        Some((Tid(table.0), fd))
    });
    let Some((holder, fd)) = holders.next() else {
        return false;
    };
    let found = kernel::look(|kernel| {
        let Some(task) = kernel.tasks(&[holder])?.into_iter().flatten().next() else {
            return Ok(true);
        };
        let mut files = kernel.files(task)?.into_iter();
        let Some((_, file)) = files.find(|(its, _)| *its == fd) else {
            return Ok(true);
        };
        let groups = kernel.ring(file)?.groups;
        let own = groups.iter().find(|group| u64::from(group.id) == number);
        let ring = own.and_then(|group| group.ring.as_ref());
        Ok(ring.is_some_and(|ring| ring.is_kernels))
    });
    found.is_ok_and(|is_there| !is_there)
}

/// Whether a process or one of its threads has a descriptor of a ring.
pub(crate) fn holds(pid: Pid, inode: u64) -> bool {
    let tables = apart::tables_of(pid).into_iter();
    tables.flat_map(of_table).any(|(_, its)| its == inode)
}
