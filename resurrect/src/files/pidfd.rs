//! pidfd_open(2). All processes and threads are there already, also those that will be zombies.

use super::{Opening, failed};
use crate::ResurrectError;
use crate::restore::Restore;
use persist_mem::manifest::{Description, DescriptionId, DescriptionKind, Live};
use std::os::fd::OwnedFd;
use sys::{Errno, Pid, Tid, process};

/// `PIDFD_THREAD` (include/uapi/linux/pidfd.h).
const PIDFD_THREAD: u32 = 0o200;

pub(super) fn open(opening: &Opening<'_, '_>, target: Pid) -> Result<OwnedFd, ResurrectError> {
    let restore = opening.restore;
    let process = process_of(restore, target).unwrap_or(target);
    let task = restore.tasks.get(&process);
    let found = task.map(|task| match task.threads.get(&Tid(target.0)) {
        Some(thread) => (thread.tid(), PIDFD_THREAD),
        // The thread that acts for its process is not among the others.
        None if process != target => (task.first.tid(), PIDFD_THREAD),
        None => {
            let flags = opening.description.flags & PIDFD_THREAD;
            (task.host_pid().leader(), flags)
        }
    });
    let (id, flags) = found
        .ok_or(Errno::ESRCH)
        .map_err(opening.failed("finding its process"))?;
    process::pidfd_open_with(Pid(id.0), flags).map_err(opening.failed("opening it"))
}

/// The process that has a thread.
fn process_of(restore: &Restore<'_>, target: Pid) -> Option<Pid> {
    let has = |live: &Live| live.all_threads().any(|thread| thread.tid.0 == target.0);
    let mut lives = restore.lives();
    let found = lives.find(|(_, live)| has(live));
    found.map(|(pid, _)| pid)
}

/// Descriptions of processes that are gone: a child that ends stands in for each.
pub(super) fn open_gone(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let mut gone: Vec<(u64, &Description)> = Vec::new();
    for description in &restore.manifest.descriptions {
        if let DescriptionKind::PidFd {
            target: None,
            identity,
        } = description.kind
        {
            gone.push((identity, description));
        }
    }
    gone.sort_by_key(|(identity, _)| *identity);
    // Where the kernel does not tell them apart each is one of its own.
    for same in gone.chunk_by(|a, b| a.0 == b.0 && a.0 != 0) {
        let about = same.iter().map(|(_, description)| *description).next();
        let opened = stand_in(restore, same);
        let opened = match about {
            Some(about) => opened.map_err(failed(about, "making a pidfd of an ended process"))?,
            None => continue,
        };
        restore.files.opened.extend(opened);
    }
    Ok(())
}

fn stand_in(
    restore: &Restore<'_>,
    same: &[(u64, &Description)],
) -> sys::Result<Vec<(DescriptionId, OwnedFd)>> {
    let child = restore.spawn_among(None, || 0)?;
    let open = |(_, description): &(u64, &Description)| {
        let flags = description.flags & PIDFD_THREAD;
        Ok((description.id, process::pidfd_open_with(child, flags)?))
    };
    let opened = same.iter().map(open).collect();
    sys::wait::wait_for(child.leader())?;
    opened
}
