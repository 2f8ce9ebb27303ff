//! What threads have under way in rings of io_uring, and mappings of rings.
//!
//! Requests for regular files and disks end by themselves, in some milliseconds. Their completions are made by the
//! threads that have submitted them when these go back to their program, and, with `IORING_SETUP_DEFER_TASKRUN`,
//! when they ask for them: so a stopped thread makes calls that do nothing until there are none left.

use super::inside::{self, Inside};
use super::process::{Place, in_scratch};
use super::{Finder, mappings};
use crate::files;
use crate::kernel::{self, RingUser, Unreadable};
use crate::proc::{self, Mapping};
use crate::{FreezerError, Frozen};
use persist_mem::manifest::{AddressSpace, RingMapping};
use std::time::{Duration, Instant};
use sys::batch::Batch;
use sys::uring::{ENTER_GETEVENTS, OFFSET_COMPLETIONS, OFFSET_ENTRIES, OFFSET_RINGS};
use sys::{Pid, Tid};

/// How long requests may take.
const WITHIN: Duration = Duration::from_secs(10);
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
    if ![OFFSET_RINGS, OFFSET_COMPLETIONS, OFFSET_ENTRIES].contains(&map.offset) {
        return Err("a mapping of a part of a ring of io_uring is not carried".into());
    }
    if !files::holds_ring(pid, map.inode) {
        return Err("a ring of io_uring without a descriptor is not carried".into());
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
    let users = users(&tids).ok()?;
    names_rings(&users)
}

fn names_rings(users: &[RingUser]) -> Option<String> {
    let names = users.iter().any(|user| user.names_rings);
    names.then(|| "registered descriptors of rings (io_uring) are not carried".into())
}

/// What each thread does; nothing of those that have ended.
fn users(tids: &[Tid]) -> Result<Vec<RingUser>, Unreadable> {
    kernel::look(|kernel| {
        let tasks: Vec<u64> = kernel.tasks(tids)?.into_iter().flatten().collect();
        kernel.ring_users(&tasks)
    })
}

/// Waits until the stopped processes have nothing under way.
///
/// # Errors
/// [`FreezerError::Refused`] for what does not end.
pub(super) fn settle(frozen: &Frozen, finder: &mut Finder) -> Result<(), FreezerError> {
    let pids: Vec<Pid> = frozen.pids().collect();
    for pid in pids {
        let tids: Vec<Tid> = frozen.threads(pid).iter().map(|(tid, _)| *tid).collect();
        // Who cannot look refuses rings.
        let Ok(users) = users(&tids) else { continue };
        if let Some(why) = names_rings(&users) {
            return Err(FreezerError::refuse(pid, "io_uring", why));
        }
        if users.iter().all(|user| user.requests == 0) {
            continue;
        }
        if frozen.in_vfork(pid).is_some() {
            return Err(FreezerError::refuse(
                pid,
                "io_uring",
                "requests are under way in vfork",
            ));
        }
        wait(frozen, pid, finder)?;
    }
    Ok(())
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
    let rings = files::rings_of(pid);
    let mut batch = Batch::new();
    batch.call("asking for its id", GETPID, []);
    for (fd, _) in rings {
        let args = [fd.into(), 0.into(), 0.into(), ENTER_GETEVENTS.into()];
        batch.try_call("asking for completions", IO_URING_ENTER, args);
    }
    loop {
        for thread in threads.iter_mut() {
            thread
                .tracee
                .run(&batch)
                .map_err(FreezerError::tracee(pid))?;
        }
        let left = match users(&tids) {
            Ok(users) => users.iter().map(|user| user.requests).sum::<u64>(),
            // Its counters were about to change.
            Err(_) => 1,
        };
        if left == 0 {
            return Ok(());
        }
        if begun.elapsed() > WITHIN {
            let why = format!("{left} requests of io_uring do not end");
            return Err(FreezerError::refuse(pid, "io_uring", why));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
