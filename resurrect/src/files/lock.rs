//! Locks and leases. The kernel notes who takes one: the process that did, or who stands for it.

use crate::ResurrectError;
use crate::calls::{Calls, nr};
use crate::error::Subject;
use crate::restore::Restore;
use persist_mem::manifest::{
    DescriptionId, DescriptionKind, FileTable, Lock, LockHolder, Manifest,
};
use std::os::fd::{AsRawFd, OwnedFd};
use sys::batch::{Arg, Batch};
use sys::files::Range;
use sys::wait::Status;
use sys::{Errno, Pid};

const F_SETLK: i32 = 6;
const F_SETLEASE: i32 = 1024;
const LOCK_SH_NB: i32 = 1 | 4;
const LOCK_EX_NB: i32 = 2 | 4;

/// Takes those of ranges, when tables are whole: to close any descriptor of a file drops the table's locks of it. In
/// the order of the old kernel, which whoever asks for one in the way of another is told of the first of.
pub(super) fn take_ranges(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    let mut locks = manifest.locks.iter().peekable();
    while let Some(lock) = locks.next() {
        let (pid, fd) = match lock.holder {
            LockHolder::Process { pid, fd } => (pid, fd),
            LockHolder::Ofd(id) if restore.files.opened.contains_key(&id) => {
                take_here(restore, id, lock)?;
                continue;
            }
            _ => continue,
        };
        let Some(table) = table_of(manifest, pid, fd) else {
            continue;
        };
        let keeper = restore.keeper(table)?;
        let mut calls = Calls::new(table.pid, "setting up its files", keeper);
        take_range(&mut calls, fd, lock)?;
        let same =
            |next: &&Lock| matches!(next.holder, LockHolder::Process { pid: p, .. } if p == pid);
        while let Some(next) = locks.next_if(same) {
            if let LockHolder::Process { fd, .. } = next.holder {
                take_range(&mut calls, fd, next)?;
            }
        }
        calls.flush()?;
    }
    Ok(())
}

/// The table that a process's lock is of.
fn table_of(manifest: &Manifest, holder: Pid, fd: i32) -> Option<FileTable<'_>> {
    manifest.tables().find(|table| {
        !table.shared
            && table.shown_as() == holder
            && table.files.iter().any(|entry| entry.fd == fd)
    })
}

fn take_range(calls: &mut Calls<'_>, fd: i32, lock: &Lock) -> Result<(), ResurrectError> {
    let flock = calls.batch().data(&range(lock).bytes());
    let args = [fd.into(), F_SETLK.into(), flock.into()];
    calls
        .batch()
        .call("locking a range of a file", nr::FCNTL, args);
    calls.breathe()
}

/// Takes those of whole files, before any process has locks of its own.
pub(super) fn take_whole(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for lock in &manifest.locks {
        let (LockHolder::Whole(id) | LockHolder::Lease(id)) = lock.holder else {
            continue;
        };
        if !comes_last(manifest, lock) {
            take(restore, id, lock)?;
        }
    }
    Ok(())
}

/// Takes leases for writing of files that this process has had open as well: nobody else may.
pub(super) fn take_last(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for lock in &manifest.locks {
        if let LockHolder::Lease(id) = lock.holder
            && comes_last(manifest, lock)
        {
            take(restore, id, lock)?;
        }
    }
    Ok(())
}

fn comes_last(manifest: &Manifest, lock: &Lock) -> bool {
    let LockHolder::Lease(id) = lock.holder else {
        return false;
    };
    let kind = manifest.description(id).map(|found| &found.kind);
    lock.write
        && matches!(
            kind,
            Some(DescriptionKind::Deleted { .. } | DescriptionKind::Memfd { .. })
        )
}

fn take(restore: &mut Restore<'_>, id: DescriptionId, lock: &Lock) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    if !restore.files.opened.contains_key(&id) {
        return Ok(());
    }
    if let Some((table, fd)) = own_number(manifest, id, lock) {
        return lease_by(restore, table, fd, lock);
    }
    if restore.tasks.contains_key(&lock.taker) {
        return take_by(restore, lock.taker, id, lock);
    }
    if take_for_ended(restore, id, lock) {
        return Ok(());
    }
    match manifest.holder(id) {
        Some((holder, _)) => take_by(restore, holder.pid, id, lock),
        None => take_here(restore, id, lock),
    }
}

/// Where who took a lease has the file: the number goes into the signal that tells of its end (`si_fd`).
fn own_number<'a>(
    manifest: &'a Manifest,
    id: DescriptionId,
    lock: &Lock,
) -> Option<(FileTable<'a>, i32)> {
    if !matches!(lock.holder, LockHolder::Lease(_)) {
        return None;
    }
    manifest.tables().find_map(|table| {
        let entry = table.files.iter().find(|entry| entry.description == id)?;
        (table.pid == lock.taker).then_some((table, entry.fd))
    })
}

fn lease_by(
    restore: &mut Restore<'_>,
    table: FileTable<'_>,
    fd: i32,
    lock: &Lock,
) -> Result<(), ResurrectError> {
    let tolerant = restore.is_upgrade();
    let keeper = restore.keeper(table)?;
    let mut calls = Calls::new(table.pid, LEASING, keeper);
    lease(calls.batch(), fd.into(), lock, tolerant);
    calls.flush()
}

const LEASING: &str = "taking a lease of a file";

/// File systems of other kernels need not have leases: who has one there is not told of its end.
fn lease(batch: &mut Batch, fd: Arg, lock: &Lock, tolerant: bool) {
    let args = [fd, F_SETLEASE.into(), i32::from(lock.write).into()];
    if tolerant {
        batch.try_call(LEASING, nr::FCNTL, args);
    } else {
        batch.call(LEASING, nr::FCNTL, args);
    }
}

/// By a process, which need not have the file.
fn take_by(
    restore: &mut Restore<'_>,
    pid: Pid,
    id: DescriptionId,
    lock: &Lock,
) -> Result<(), ResurrectError> {
    let pidfd = restore.self_pidfd.as_raw_fd();
    let Some(fd) = restore.files.opened.get(&id).map(AsRawFd::as_raw_fd) else {
        return Ok(());
    };
    let tolerant = restore.is_upgrade();
    let mut calls = Calls::new(pid, "locking a file", &mut restore.task(pid)?.first);
    let batch = calls.batch();
    let args = [pidfd.into(), fd.into(), 0.into()];
    let fd = batch.call("taking a descriptor", nr::PIDFD_GETFD, args);
    if matches!(lock.holder, LockHolder::Lease(_)) {
        lease(batch, fd.into(), lock, tolerant);
    } else {
        let kind = if lock.write { LOCK_EX_NB } else { LOCK_SH_NB };
        batch.call("locking a file", nr::FLOCK, [fd.into(), kind.into()]);
    }
    batch.call("closing a copy", nr::CLOSE, [fd.into()]);
    calls.flush()
}

/// By a child with the id of a process that has ended, where that leads to nobody else. Whether it could: in
/// another PID namespace the kernel forgets it with the child.
fn take_for_ended(restore: &Restore<'_>, id: DescriptionId, lock: &Lock) -> bool {
    let Some(fd) = restore.files.opened.get(&id) else {
        return false;
    };
    if restore.is_upgrade() || lock.taker.0 <= 0 {
        return false;
    }
    let body = || take_own(fd, lock).map_or_else(|errno| errno as i32, |()| 0);
    let done = restore
        .spawn_among(Some(lock.taker), body)
        .and_then(|child| sys::wait::wait_for(child.leader()));
    done == Ok(Status::Exited(0))
}

fn take_here(restore: &Restore<'_>, id: DescriptionId, lock: &Lock) -> Result<(), ResurrectError> {
    let fd = restore.files.opened.get(&id).ok_or(Errno::ENOENT);
    let taken = match fd.and_then(|fd| take_own(fd, lock)) {
        Err(Errno::EINVAL)
            if matches!(lock.holder, LockHolder::Lease(_)) && restore.is_upgrade() =>
        {
            Ok(())
        }
        taken => taken,
    };
    let failed = ResurrectError::own("locking a file");
    taken.map_err(|errno| failed(errno).about(Subject::Description(id)))
}

fn take_own(fd: &OwnedFd, lock: &Lock) -> sys::Result<()> {
    match lock.holder {
        LockHolder::Whole(_) | LockHolder::Mapping { .. } => sys::files::lock_whole(fd, lock.write),
        LockHolder::Lease(_) => sys::files::lease(fd, i32::from(lock.write)),
        LockHolder::Ofd(_) | LockHolder::Process { .. } => sys::files::lock_range(fd, &range(lock)),
    }
}

fn range(lock: &Lock) -> Range {
    let (start, end) = lock.range;
    let start = start.cast_signed();
    Range {
        kind: i16::from(lock.write),
        start,
        len: end.map_or(0, |end| end.cast_signed() - start),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let holder = LockHolder::Ofd(DescriptionId(0));
        let lock = Lock {
            holder,
            write: true,
            range: (5, Some(15)),
            taker: Pid(1),
        };
        assert_eq!(
            range(&lock),
            Range {
                kind: 1,
                start: 5,
                len: 10
            }
        );
        let lock = Lock {
            range: (7, None),
            write: false,
            ..lock
        };
        assert_eq!(
            range(&lock),
            Range {
                kind: 0,
                start: 7,
                len: 0
            }
        );
    }
}
