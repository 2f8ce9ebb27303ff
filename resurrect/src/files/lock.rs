//! Locks and leases, taken by a process that has the file: the kernel notes who.

use crate::ResurrectError;
use crate::calls::{Calls, nr};
use crate::restore::Restore;
use persist_mem::manifest::{DescriptionId, Live, Lock, LockHolder, Manifest};
use sys::Pid;
use sys::files::Range;

const F_SETLK: i32 = 6;
const F_OFD_SETLK: i32 = 37;
const F_SETLEASE: i32 = 1024;
const LOCK_SH_NB: i32 = 1 | 4;
const LOCK_EX_NB: i32 = 2 | 4;

/// Takes those that fall to this process, when its table is whole: to close any descriptor of a file
/// drops the process's locks of it.
pub(super) fn take(
    manifest: &Manifest,
    pid: Pid,
    live: &Live,
    calls: &mut Calls<'_>,
) -> Result<(), ResurrectError> {
    // The number to use when this process is the first that has the description.
    let first = |id: DescriptionId| {
        let holder = super::first_holder(manifest, id);
        holder
            .filter(|(holder, _)| *holder == pid)
            .map(|(_, fd)| fd)
    };
    for lock in &manifest.locks {
        let flock = range(lock).bytes();
        match lock.holder {
            LockHolder::Process { pid: holder, fd } if holder == pid => {
                if !live.files.iter().any(|entry| entry.fd == fd) {
                    continue;
                }
                let flock = calls.batch().data(&flock);
                let args = [fd.into(), F_SETLK.into(), flock.into()];
                calls
                    .batch()
                    .call("locking a range of a file", nr::FCNTL, args);
            }
            LockHolder::Process { .. } => {}
            LockHolder::Ofd(id) => {
                let Some(fd) = first(id) else { continue };
                let flock = calls.batch().data(&flock);
                let args = [fd.into(), F_OFD_SETLK.into(), flock.into()];
                calls
                    .batch()
                    .call("locking a range of a file", nr::FCNTL, args);
            }
            LockHolder::Whole(id) => {
                let Some(fd) = first(id) else { continue };
                let kind = if lock.write { LOCK_EX_NB } else { LOCK_SH_NB };
                calls
                    .batch()
                    .call("locking a file", nr::FLOCK, [fd.into(), kind.into()]);
            }
            LockHolder::Lease(id) => {
                let Some(fd) = first(id) else { continue };
                let kind = i32::from(lock.write);
                let args = [fd.into(), F_SETLEASE.into(), kind.into()];
                calls
                    .batch()
                    .call("taking a lease of a file", nr::FCNTL, args);
            }
        }
        calls.breathe()?;
    }
    Ok(())
}

/// Takes those of descriptions that no process has, since they are in flight.
pub(super) fn take_in_flight(restore: &Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for lock in &manifest.locks {
        let (LockHolder::Whole(id) | LockHolder::Ofd(id) | LockHolder::Lease(id)) = lock.holder
        else {
            continue;
        };
        let held = super::first_holder(manifest, id).is_some();
        let Some(fd) = restore.files.opened.get(&id).filter(|_| !held) else {
            continue;
        };
        let taken = match lock.holder {
            LockHolder::Whole(_) => sys::files::lock_whole(fd, lock.write),
            LockHolder::Ofd(_) => sys::files::lock_range(fd, &range(lock)),
            _ => sys::files::lease(fd, i32::from(lock.write)),
        };
        taken.map_err(ResurrectError::own("locking a file that is in flight"))?;
    }
    Ok(())
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
