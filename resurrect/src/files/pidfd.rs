//! pidfd_open(2). All processes are there already, also those that will be zombies; threads are not.

use super::Opening;
use crate::ResurrectError;
use crate::calls::{Calls, nr};
use crate::restore::Restore;
use persist_mem::manifest::{Description, DescriptionId, DescriptionKind, Live};
use std::os::fd::{AsRawFd, OwnedFd};
use sys::{Errno, Pid, Tid, process};

/// `PIDFD_THREAD` (include/uapi/linux/pidfd.h).
const PIDFD_THREAD: u32 = 0o200;

pub(super) fn open(opening: &Opening<'_, '_>, target: Pid) -> Result<OwnedFd, ResurrectError> {
    let (process, flags) = match process_of(opening.restore, target) {
        // There are no threads yet: the process stands for it.
        Some(process) if process != target => (process, 0),
        _ => (target, opening.description.flags & PIDFD_THREAD),
    };
    let task = opening.restore.tasks.get(&process);
    let task = task
        .ok_or(Errno::ESRCH)
        .map_err(opening.failed("finding its process"))?;
    process::pidfd_open_with(task.host_pid(), flags).map_err(opening.failed("opening it"))
}

/// The process that has a thread.
fn process_of(restore: &Restore<'_>, target: Pid) -> Option<Pid> {
    let has = |live: &Live| live.threads.iter().any(|thread| thread.tid.0 == target.0);
    let mut lives = restore.lives();
    let found = lives.find(|(_, live)| has(live));
    found.map(|(pid, _)| pid)
}

/// Puts those of threads, which are there by now, in place of those that stood for them.
pub(super) fn of_threads(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for description in &restore.manifest.descriptions {
        let DescriptionKind::PidFd {
            target: Some(target),
            ..
        } = description.kind
        else {
            continue;
        };
        let Some(process) = process_of(restore, target).filter(|process| *process != target) else {
            continue;
        };
        let thread = restore.task(process)?.threads.get(&Tid(target.0));
        let thread = thread.map(|thread| Pid(thread.tid().0));
        let opening = Opening {
            restore,
            description,
        };
        let opened = thread
            .ok_or(Errno::ESRCH)
            .and_then(|thread| process::pidfd_open_with(thread, PIDFD_THREAD))
            .map_err(opening.failed("opening it"))?;
        sys::fds::set_status_flags(&opened, description.flags & super::SETTABLE)
            .map_err(opening.failed("setting its flags"))?;
        hand_over(restore, description.id, &opened)?;
        restore.files.opened.insert(description.id, opened);
    }
    Ok(())
}

/// Gives every table that has a description another one in its place.
fn hand_over(
    restore: &mut Restore<'_>,
    id: DescriptionId,
    opened: &OwnedFd,
) -> Result<(), ResurrectError> {
    let own_pidfd = restore.self_pidfd.as_raw_fd();
    let manifest = restore.manifest;
    for table in manifest.tables().filter(|table| !table.shared) {
        let mut calls = Calls::new(table.pid, "taking a pidfd", restore.keeper(table)?);
        let batch = calls.batch();
        for entry in table.files.iter().filter(|entry| entry.description == id) {
            let args = [own_pidfd.into(), opened.as_raw_fd().into(), 0.into()];
            let got = batch.call("taking a descriptor", nr::PIDFD_GETFD, args);
            let flags = if entry.cloexec { super::O_CLOEXEC } else { 0 };
            let args = [got.into(), entry.fd.into(), flags.into()];
            batch.call("numbering a descriptor", nr::DUP3, args);
            batch.call("closing a copy", nr::CLOSE, [got.into()]);
        }
        calls.flush()?;
    }
    Ok(())
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
