//! inotify(7): watches under their old numbers, and events that were not read.

mod queue;
mod stand_ins;

use super::creator::as_creator;
use super::{Opening, located};
use crate::ResurrectError;
use persist_mem::manifest::{Watch, WatchEvent};
use std::os::fd::OwnedFd;
use sys::Errno;

/// `IN_ALL_EVENTS`, `IN_EXCL_UNLINK`, `IN_ONESHOT`: what belongs to a watch.
const MASK: u32 = 0xfff | 0x0400_0000 | 0x8000_0000;
/// `IN_DELETE_SELF`: a watch tells of its end whatever it is for.
const ANY: u32 = 0x400;
const IN_DONT_FOLLOW: u32 = 0x0200_0000;

pub(super) fn open(
    opening: &Opening<'_, '_>,
    unread: &[WatchEvent],
    creator: u32,
) -> Result<OwnedFd, ResurrectError> {
    let fd = as_creator(creator, || sys::files::inotify(0)).map_err(opening.failed("making it"))?;
    if !unread.is_empty() {
        queue::fill(&fd, unread).map_err(opening.failed("queueing its events"))?;
    }
    Ok(fd)
}

/// Watches, when everything is made that would be seen.
pub(super) fn watch(
    opening: &Opening<'_, '_>,
    fd: &OwnedFd,
    watches: &[Watch],
    next: Option<i32>,
) -> Result<(), ResurrectError> {
    for watch in watches {
        let added = add(opening, fd, watch);
        let added = added.map_err(|errno| located::changed(&watch.place, errno));
        match added {
            Err(why) if opening.restore.is_upgrade() => {
                log::error!("{why}: who watches it is told that it is gone");
                let gone = located::gone().and_then(|gone| watch_as(fd, &gone, watch.number, ANY));
                gone.map_err(opening.failed("telling that it is gone"))?;
            }
            added => added?,
        }
    }
    // The kernel looks for a free number from here on.
    let last = watches.last().map_or(0, |watch| watch.number);
    let next = next.unwrap_or(last.saturating_add(1)).max(1);
    sys::files::next_watch(fd, next).map_err(opening.failed("numbering its next watch"))
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

/// Watches what a descriptor of this process refers to under a number.
fn watch_as(notify: &OwnedFd, file: &OwnedFd, number: i32, mask: u32) -> sys::Result<()> {
    sys::files::next_watch(notify, number)?;
    change(notify, file, number, mask)
}

/// Changes the mask of the watch of what a descriptor of this process refers to.
fn change(notify: &OwnedFd, file: &OwnedFd, number: i32, mask: u32) -> sys::Result<()> {
    let got = located::through(file, |link| sys::files::add_watch(notify, link, mask))?;
    if got == number {
        Ok(())
    } else {
        Err(Errno::EEXIST)
    }
}
