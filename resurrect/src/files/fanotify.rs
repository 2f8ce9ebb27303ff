//! fanotify(7) groups that are told of events.

use super::creator::as_creator;
use super::{Opening, located};
use crate::ResurrectError;
use persist_mem::manifest::Mark;
use std::ffi::{CStr, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

/// `FAN_MARK_IGNORED_MASK`, `FAN_MARK_IGNORE`, `FAN_MARK_DONT_FOLLOW` (include/uapi/linux/fanotify.h): two ways to
/// ignore events, of which a mark notes the second.
const IGNORED_MASK: u32 = 0x20;
const IGNORE: u32 = 0x400;
const DONT_FOLLOW: u32 = 0x4;
/// `FAN_MARK_IGNORED_SURV_MODIFY`, `FAN_MARK_EVICTABLE`: what belongs to a mark.
const SURVIVES: u32 = 0x40;
const EVICTABLE: u32 = 0x200;
/// `FAN_MARK_MOUNT`, `FAN_MARK_FILESYSTEM`.
const WHOLE: u32 = 0x10 | 0x100;
/// `FAN_EVENT_ON_CHILD`
const ON_CHILD: u32 = 0x0800_0000;

pub(super) fn open(
    opening: &Opening<'_, '_>,
    (flags, event_flags): (u32, u32),
    creator: u32,
) -> Result<OwnedFd, ResurrectError> {
    let fd = as_creator(creator, || sys::files::fanotify(flags, event_flags));
    fd.map_err(opening.failed("making it"))
}

/// Watches, when everything is made that would be seen.
pub(super) fn watch(
    opening: &Opening<'_, '_>,
    fd: &OwnedFd,
    marks: &[Mark],
) -> Result<(), ResurrectError> {
    for mark in marks {
        add(opening, fd, mark).map_err(|errno| located::changed(&mark.place, errno))?;
    }
    Ok(())
}

fn add(opening: &Opening<'_, '_>, fd: &OwnedFd, mark: &Mark) -> sys::Result<()> {
    located::with_path(opening, &mark.place, |path, is_link| {
        let follow = if is_link { 0 } else { DONT_FOLLOW };
        let follow = follow | mark.flags & WHOLE;
        if mark.mask != 0 {
            let flags = follow | mark.flags & EVICTABLE;
            sys::files::add_mark(fd, path, asked_for(path, mark.mask), flags)?;
        }
        if mark.ignored != 0 {
            let by = match mark.flags & IGNORE {
                0 => IGNORED_MASK,
                ignore => ignore,
            };
            let flags = follow | mark.flags & (EVICTABLE | SURVIVES) | by;
            sys::files::add_mark(fd, path, mark.ignored, flags)?;
        }
        Ok(())
    })
}

/// What a program has asked for to have this mask. The kernel notes by itself that a file's mark is told with the
/// file's directory (`FAN_REPORT_DIR_FID`), and groups that are told of targets may not ask for that.
fn asked_for(path: &CStr, mask: u32) -> u32 {
    let path = OsStr::from_bytes(path.to_bytes());
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => mask,
        _ => mask & !ON_CHILD,
    }
}
