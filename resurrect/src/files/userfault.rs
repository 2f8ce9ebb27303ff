//! userfaultfd(2): each is made by a process whose memory it is for, and told last where that memory is, when nobody
//! touches it any more before the processes go on.

use super::{Opening, failed};
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::error::Subject;
use crate::restore::Restore;
use persist_mem::manifest::{Description, DescriptionKind, PageRange, Userfault};
use std::os::fd::{AsFd, OwnedFd};
use sys::batch::Batch;
use sys::userfault::{self, UFFD_USER_MODE_ONLY};
use sys::{Errno, PAGE_SIZE_U64, process};

const O_CLOEXEC: i32 = 0o2_000_000;

fn all<'a>(
    restore: &Restore<'a>,
) -> impl Iterator<Item = (&'a Description, &'a Userfault)> + use<'a> {
    let descriptions = restore.manifest.descriptions.iter();
    descriptions.filter_map(|description| match &description.kind {
        DescriptionKind::Userfault(fault) => Some((description, fault)),
        _ => None,
    })
}

/// Makes all of them.
pub(super) fn open_all(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (description, fault) in all(restore) {
        let about = Subject::Description(description.id);
        let made = open(restore, description, fault).map_err(|error| error.about(about))?;
        restore.files.opened.insert(description.id, made);
    }
    Ok(())
}

fn open(
    restore: &mut Restore<'_>,
    description: &Description,
    fault: &Userfault,
) -> Result<OwnedFd, ResurrectError> {
    const DOING: &str = "making a userfaultfd";
    let failed = |errno| failed(description, DOING)(errno);
    let owner = fault.owner;
    let task = restore.task(owner)?;
    let only = if fault.user_only {
        UFFD_USER_MODE_ONLY
    } else {
        0
    };
    let mut batch = Batch::new();
    let made = batch.call(DOING, nr::USERFAULTFD, [(O_CLOEXEC | only).into()]);
    let made = run(owner, DOING, &mut task.first, &batch)?.result(made);
    let number = made.ok().and_then(|fd| i32::try_from(fd).ok());
    let number = number.ok_or_else(|| failed(Errno::EBADF))?;
    let pidfd = process::pidfd_open(task.host_pid()).map_err(failed)?;
    let taken = process::pidfd_getfd(pidfd.as_fd(), number).map_err(failed)?;
    let mut batch = Batch::new();
    batch.call("closing a userfaultfd", nr::CLOSE, [number.into()]);
    run(owner, DOING, &mut task.first, &batch)?;
    if let Some(features) = fault.features {
        userfault::set_up(&taken, features).map_err(failed)?;
    }
    Ok(taken)
}

/// Has the faults told that are to be.
pub(crate) fn register(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (description, fault) in all(restore) {
        let Some(fd) = restore.files.opened.get(&description.id) else {
            continue;
        };
        let opening = Opening {
            restore,
            description,
        };
        let about = Subject::Description(description.id);
        register_one(&opening, fd, fault).map_err(|error| error.about(about))?;
    }
    Ok(())
}

fn register_one(
    opening: &Opening<'_, '_>,
    fd: &OwnedFd,
    fault: &Userfault,
) -> Result<(), ResurrectError> {
    let bytes = |range: &PageRange| (range.va, range.pages * PAGE_SIZE_U64);
    for range in &fault.ranges {
        let place = (range.start, range.end - range.start);
        userfault::register(fd, place, range.modes)
            .map_err(opening.failed("having page faults told"))?;
    }
    for zeros in &fault.zeros {
        userfault::put_zeros(fd, bytes(zeros)).map_err(opening.failed("mapping pages of zeros"))?;
    }
    for range in &fault.protected {
        userfault::protect(fd, bytes(range)).map_err(opening.failed("having writes told"))?;
    }
    Ok(())
}
