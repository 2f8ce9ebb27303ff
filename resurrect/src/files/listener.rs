//! Listeners of seccomp: a filter is installed together with its listener, and all others of its process in their
//! order. So they are installed early; that does nothing to what is still to be done, as they are suspended.

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use crate::thread::seccomp::{self, Listening};
use persist_mem::manifest::{DescriptionId, DescriptionKind, Live};
use std::os::fd::{AsFd, OwnedFd};
use sys::batch::Batch;
use sys::{Pid, process};

const DOING: &str = "taking a listener of seccomp";

/// Makes all of them.
pub(super) fn open_all(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let asks = |live: &Live| live.filters.iter().any(|filter| filter.listener.is_some());
    for (pid, live) in restore.lives().filter(|(_, live)| asks(live)) {
        let made = seccomp::confine(restore, pid, live)?;
        restore.confined.insert(pid);
        for listening in made {
            let taken = take(restore, pid, &listening)?;
            let wanted = DescriptionKind::SeccompListener {
                filter: listening.filter,
            };
            if let Some(id) = find(restore, &wanted) {
                restore.files.opened.insert(id, taken);
            }
        }
    }
    Ok(())
}

fn find(restore: &Restore<'_>, wanted: &DescriptionKind) -> Option<DescriptionId> {
    let mut all = restore.manifest.descriptions.iter();
    all.find(|one| one.kind == *wanted).map(|one| one.id)
}

/// Takes it out of the process that has installed its filter.
fn take(
    restore: &mut Restore<'_>,
    pid: Pid,
    listening: &Listening,
) -> Result<OwnedFd, ResurrectError> {
    let failed = || ResurrectError::call(pid, DOING);
    let leader = &mut restore.task(pid)?.first;
    let pidfd = process::pidfd_open(leader.pid()).map_err(failed())?;
    let taken = process::pidfd_getfd(pidfd.as_fd(), listening.fd).map_err(failed())?;
    let mut batch = Batch::new();
    batch.call("closing a listener", nr::CLOSE, [listening.fd.into()]);
    run(pid, DOING, leader, &batch)?;
    Ok(taken)
}
