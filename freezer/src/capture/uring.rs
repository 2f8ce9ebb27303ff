//! What threads have under way in rings of io_uring, and mappings of rings.
//!
//! Requests for regular files and disks end by themselves, in some milliseconds. Their completions are made by the
//! threads that have submitted them when these go back to their program, and, with `IORING_SETUP_DEFER_TASKRUN`,
//! when they ask for them: so a stopped thread makes calls that do nothing until there are none left.
//!
//! What waits for an event is in a list of its ring (`files/uring.rs`) and goes on to wait; so do reads that a worker of the
//! kernel waits in (`files/uring/workers.rs`). What else one does (open(2) of a FIFO, splice(2)) may last as well, which
//! is seen by the worker standing still.

use super::inside::{self, Inside};
use super::process::{Place, in_scratch};
use super::{Finder, mappings};
use crate::files::{self, apart};
use crate::kernel::{self, RingUser, Unreadable};
use crate::proc::{self, Mapping, Status};
use crate::{FreezerError, Frozen};
use persist_mem::manifest::{AddressSpace, RingMapping};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use sys::batch::Batch;
use sys::uring::{
    BUFFERS_SHIFT, ENTER_GETEVENTS, OFFSET_BUFFERS, OFFSET_COMPLETIONS, OFFSET_ENTRIES,
    OFFSET_RINGS, is_of_buffers,
};
use sys::{Pid, Tid};

/// How long requests may take while their process stands still.
const WITHIN: Duration = Duration::from_secs(2);
/// A worker that has not moved for this long does not end soon.
const LASTING: Duration = Duration::from_millis(500);
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
const GETPID: i64 = 39;
const IO_URING_ENTER: i64 = 426;

/// Whether a mapping is one of a ring.
pub(super) fn is_one(map: &Mapping) -> bool {
    map.name == b"anon_inode:[io_uring]"
}

/// A mapping of a ring.
///
/// # Errors
/// Why it is not carried.
pub(super) fn mapping(pid: Pid, map: &Mapping) -> Result<RingMapping, String> {
    let whole = [OFFSET_RINGS, OFFSET_COMPLETIONS, OFFSET_ENTRIES].contains(&map.offset);
    if !whole && !is_of_buffers(map.offset) {
        return Err("a mapping of a part of a ring of io_uring is not carried".into());
    }
    if !files::holds_ring(pid, map.inode) {
        return Err("a ring of io_uring without a descriptor is not carried".into());
    }
    if is_of_buffers(map.offset) {
        let number = (map.offset - OFFSET_BUFFERS) >> BUFFERS_SHIFT;
        if files::has_lost_buffers(pid, map.inode, number) {
            let why = "a ring of buffers that is mapped and not registered any more is not carried";
            return Err(why.into());
        }
    }
    Ok(RingMapping {
        inode: map.inode,
        start: map.start,
        end: map.end,
        prot: map.prot(),
        offset: map.offset,
        dont_fork: map.has(b"dc"),
        dont_dump: map.has(b"dd"),
    })
}

/// What keeps the threads of a process that may run from being carried.
pub(super) fn refusal(pid: Pid) -> Option<String> {
    let tids = proc::threads(pid).ok()?;
    match users(&tids) {
        Ok(users) => unnamed(pid, &users).or_else(|| lasting(pid, &users)),
        // It is changing.
        Err(Unreadable::Inconsistent(_)) => None,
        Err(why) => has_rings(pid).then(|| unreadable(&why)),
    }
}

fn unnamed(pid: Pid, users: &[RingUser]) -> Option<String> {
    let names = users.iter().flat_map(|user| &user.names);
    let names: Vec<u64> = names.map(|(_, file)| *file).collect();
    files::unnamed_ring(pid, &names)
}

fn has_rings(pid: Pid) -> bool {
    let mut tables = apart::tables_of(pid).into_iter();
    tables.any(|table| !files::rings_of(table).is_empty())
}

fn unreadable(why: &Unreadable) -> String {
    format!("io_uring: what is under way in its rings cannot be read: {why}")
}

/// Whether there are requests that workers have been at for a while without having moved.
fn lasting(pid: Pid, users: &[RingUser]) -> Option<String> {
    if under_way(users) == 0 {
        return None;
    }
    let begun = Instant::now();
    let mut same = at_work(pid);
    while !same.is_empty() && begun.elapsed() < LASTING {
        std::thread::sleep(BETWEEN_LOOKS);
        let now = at_work(pid);
        same.retain(|tid, doing| now.get(tid) == Some(doing));
    }
    let waiting = files::waiting_workers(pid);
    same.retain(|_, (work, _)| !waiting.iter().any(|it| it.work == *work));
    let count = same.len();
    (count > 0).then(|| format!("{count} requests of io_uring do not end"))
}

/// Workers of a process that have something to do: what, and how often each has slept. None where that cannot be read.
fn at_work(pid: Pid) -> BTreeMap<Tid, (u64, Option<String>)> {
    let mut tids = proc::threads(pid).unwrap_or_default();
    tids.retain(|tid| proc::is_worker(pid, *tid));
    let found = kernel::look(|kernel| {
        let tasks = kernel.tasks(&tids)?.into_iter().zip(&tids);
        let (tasks, tids): (Vec<u64>, Vec<Tid>) =
            tasks.filter_map(|(task, tid)| Some((task?, *tid))).unzip();
        Ok(tids.into_iter().zip(kernel.ring_works(&tasks)?))
    });
    let slept = |tid: Tid| {
        let status = Status::read(pid, &format!("task/{tid}/status")).ok()?;
        status.value("voluntary_ctxt_switches").map(str::to_owned)
    };
    let found = found.into_iter().flatten().filter(|(_, work)| *work != 0);
    found.map(|(tid, work)| (tid, (work, slept(tid)))).collect()
}

/// What each thread that uses rings does; nothing of those that have ended.
fn users(tids: &[Tid]) -> Result<Vec<RingUser>, Unreadable> {
    kernel::look(|kernel| {
        let tasks: Vec<u64> = kernel.tasks(tids)?.into_iter().flatten().collect();
        kernel.ring_users(&tasks)
    })
}

/// The number of requests that have not ended.
fn under_way(users: &[RingUser]) -> u64 {
    users.iter().map(|user| user.requests).sum()
}

/// Waits until the stopped processes have nothing under way.
///
/// # Errors
/// [`FreezerError::Refused`] for what does not end.
pub(super) fn settle(frozen: &Frozen, finder: &mut Finder) -> Result<(), FreezerError> {
    let pids: Vec<Pid> = frozen.pids().collect();
    for pid in pids {
        let tids: Vec<Tid> = frozen.threads(pid).iter().map(|(tid, _)| *tid).collect();
        match users(&with_pollers(pid, &tids)) {
            Ok(users) if users.is_empty() => continue,
            // It may have been made since the check.
            Ok(users) => {
                if let Some(why) = unnamed(pid, &users) {
                    return Err(FreezerError::refuse(pid, "io_uring", why));
                }
            }
            // Its counters were about to change.
            Err(Unreadable::Inconsistent(_)) => {}
            Err(_) if !has_rings(pid) => continue,
            Err(why) => return Err(FreezerError::refuse(pid, "io_uring", unreadable(&why))),
        }
        if left(pid, &tids).is_none() {
            continue;
        }
        if !frozen.in_vfork(pid).is_empty() {
            let why = "requests are under way in vfork";
            return Err(FreezerError::refuse(pid, "io_uring", why));
        }
        wait(frozen, pid, finder)?;
    }
    Ok(())
}

/// What stopped threads of a process have under way, in words. None for nothing.
fn left(pid: Pid, tids: &[Tid]) -> Option<String> {
    let all = with_pollers(pid, tids);
    let requests = match users(&all) {
        Ok(users) => under_way(&users),
        Err(why) => return Some(unreadable(&why)),
    };
    let (mut seen, mut waiting) = (BTreeSet::new(), 0);
    for (table, holder) in tables(pid, tids) {
        match files::left_in_rings(table, holder, &all, &mut seen) {
            Ok(left) if left.untaken => {
                return Some("entries of a ring of io_uring are not taken".into());
            }
            Ok(left) if left.queued => {
                return Some("messages to a ring of io_uring do not arrive".into());
            }
            Ok(left) => waiting += left.waiting,
            Err(why) => return Some(unreadable(&why)),
        }
    }
    let workers = files::waiting_workers(pid);
    waiting += workers
        .iter()
        .map(|it| it.requests.len() as u64)
        .sum::<u64>();
    let under_way = requests.saturating_sub(waiting);
    (under_way > 0).then(|| format!("{under_way} requests of io_uring do not end"))
}

/// Threads, and those of the kernel's that take entries for them.
fn with_pollers(pid: Pid, tids: &[Tid]) -> Vec<Tid> {
    let mut others = proc::threads(pid).unwrap_or_default();
    others.retain(|tid| !tids.contains(tid) && proc::is_worker(pid, *tid));
    tids.iter().copied().chain(others).collect()
}

/// The descriptor tables of threads, and one that has each.
fn tables(pid: Pid, tids: &[Tid]) -> BTreeMap<Pid, Tid> {
    let tables = tids.iter().map(|tid| (apart::table_of(pid, *tid), *tid));
    tables.collect()
}

fn wait(frozen: &Frozen, pid: Pid, finder: &mut Finder) -> Result<(), FreezerError> {
    let maps = mappings::of_stopped(pid, frozen.first(pid)?)?;
    let mem = proc::memory(pid).map_err(FreezerError::call(pid, "opening its memory"))?;
    let mut threads = inside::threads(frozen, pid, mem)?;
    let place = Place {
        maps: &maps,
        finder,
    };
    let mut unused = AddressSpace::default();
    in_scratch(pid, &mut threads, place, &mut unused, |threads, _| {
        complete(pid, threads)
    })
}

/// Has every thread complete what has ended, until nothing is left.
fn complete(pid: Pid, threads: &mut [Inside]) -> Result<(), FreezerError> {
    let begun = Instant::now();
    let tids: Vec<Tid> = threads.iter().map(|thread| thread.tracee.tid()).collect();
    let tables = tables(pid, &tids).into_keys();
    let batches: BTreeMap<Pid, Batch> = tables.map(|table| (table, asking(table))).collect();
    loop {
        for thread in threads.iter_mut() {
            let table = apart::table_of(pid, thread.tracee.tid());
            let batch = batches.get(&table).into_iter();
            for batch in batch {
                let ran = thread.tracee.run(batch);
                ran.map_err(FreezerError::tracee(pid))?;
            }
        }
        let Some(left) = left(pid, &tids) else {
            return Ok(());
        };
        if begun.elapsed() > WITHIN {
            return Err(FreezerError::refuse(pid, "io_uring", left));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Calls that do nothing but complete what has ended in the rings of a table.
fn asking(table: Pid) -> Batch {
    let mut batch = Batch::new();
    batch.call("asking for its id", GETPID, []);
    for (fd, _) in files::rings_of(table) {
        let args = [fd.into(), 0.into(), 0.into(), ENTER_GETEVENTS.into()];
        batch.try_call("asking for completions", IO_URING_ENTER, args);
    }
    batch
}
