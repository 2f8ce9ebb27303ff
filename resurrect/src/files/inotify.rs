//! inotify(7): watches under their old numbers.

use super::{Opening, located};
use crate::ResurrectError;
use persist_mem::manifest::Watch;
use std::os::fd::OwnedFd;
use sys::Errno;

/// `IN_ALL_EVENTS`, `IN_EXCL_UNLINK`, `IN_ONESHOT`: what belongs to a watch.
const MASK: u32 = 0xfff | 0x0400_0000 | 0x8000_0000;
const IN_DONT_FOLLOW: u32 = 0x0200_0000;

pub(super) fn open(
    opening: &Opening<'_, '_>,
    watches: &[Watch],
) -> Result<OwnedFd, ResurrectError> {
    let fd = sys::files::inotify(0).map_err(opening.failed("making it"))?;
    for watch in watches {
        add(opening, &fd, watch).map_err(|errno| located::changed(&watch.place, errno))?;
    }
    Ok(fd)
}

fn add(opening: &Opening<'_, '_>, fd: &OwnedFd, watch: &Watch) -> sys::Result<()> {
    sys::files::next_watch(fd, watch.number)?;
    let number = located::with_path(opening, &watch.place, |path, is_link| {
        let follow = if is_link { 0 } else { IN_DONT_FOLLOW };
        sys::files::add_watch(fd, path, watch.mask & MASK | follow)
    })?;
    if number == watch.number {
        Ok(())
    } else {
        Err(Errno::EEXIST)
    }
}
