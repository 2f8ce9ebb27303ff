//! pidfd_open(2). All processes are there already, also those that will be zombies.

use super::Opening;
use crate::ResurrectError;
use crate::restore::Restore;
use persist_mem::manifest::{Description, DescriptionId, DescriptionKind};
use std::os::fd::OwnedFd;
use sys::{Errno, Pid, process};

/// `PIDFD_THREAD` (include/uapi/linux/pidfd.h).
const PIDFD_THREAD: u32 = 0o200;

pub(super) fn open(opening: &Opening<'_, '_>, target: Pid) -> Result<OwnedFd, ResurrectError> {
    let task = opening.restore.tasks.get(&target);
    let task = task
        .ok_or(Errno::ESRCH)
        .map_err(opening.failed("finding its process"))?;
    let flags = opening.description.flags & PIDFD_THREAD;
    process::pidfd_open_with(task.host_pid(), flags).map_err(opening.failed("opening it"))
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
        let opened = stand_in(restore, same)
            .map_err(ResurrectError::own("making a pidfd of an ended process"))?;
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
