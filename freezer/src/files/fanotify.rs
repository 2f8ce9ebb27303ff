//! fanotify(7) groups that are told of events. Those that permit or deny them are not carried: this
//! process would wait for their answer, and they are stopped.

use super::located::{self, Fields, Finder};
use super::{Open, creator, place};
use crate::{FreezerError, kernel};
use nix::sys::stat::makedev;
use persist_mem::manifest::{DescriptionKind, Mark, Place};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// `FAN_CLASS_CONTENT`, `FAN_CLASS_PRE_CONTENT` (include/uapi/linux/fanotify.h).
const CLASSES: u64 = 0xc;
/// `FAN_OPEN_PERM`, `FAN_ACCESS_PERM`, `FAN_OPEN_EXEC_PERM`, `FAN_PRE_ACCESS`: events that wait for an answer.
const ASKED: u32 = 0x10_0000 | 0x1_0000 | 0x2_0000 | 0x4_0000;
/// Marks of whole mounts and file systems.
const FAN_MARK_MOUNT: u32 = 0x10;
const FAN_MARK_FILESYSTEM: u32 = 0x100;

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    if others_wait(open)? {
        return Err(
            open.refuse("fanotify events have not been read yet; they cannot be queued again")
        );
    }
    let finder = Finder::new(open);
    let (mut group, mut marks) = (None, Vec::new());
    for line in open
        .info
        .lines()
        .filter_map(|line| line.strip_prefix("fanotify "))
    {
        let fields = Fields::parse(line.split_whitespace());
        if let (Some(flags), Some(event_flags)) = (fields.hex("flags"), fields.hex("event-flags")) {
            group = Some((flags, event_flags));
        } else {
            marks.push(mark(open, &finder, &fields)?);
        }
    }
    let (flags, event_flags) = group.ok_or_else(|| open.format())?;
    if flags & CLASSES != 0 && marks.iter().any(|mark| mark.mask & ASKED != 0) {
        return Err(open.refuse("fanotify groups that permit or deny access are not carried"));
    }
    Ok(DescriptionKind::Fanotify {
        flags: flags as u32,
        event_flags: event_flags as u32,
        marks,
        creator: creator::of(open)?,
    })
}

fn mark(open: &Open<'_>, finder: &Finder<'_>, fields: &Fields<'_>) -> Result<Mark, FreezerError> {
    let number = |key: &str| fields.hex(key).ok_or_else(|| open.format());
    let (more, place) = match (fields.located(), fields.hex("mnt_id"), fields.hex("sdev")) {
        (Some(located), ..) => (0, located::find(finder, "fanotify mark", located)?),
        (None, Some(mount), _) => {
            let found = place::mounted(mount);
            let why = "a fanotify mark of a mount that no path leads to any more is not carried";
            (
                FAN_MARK_MOUNT,
                whole(found.ok_or_else(|| open.refuse(why))?),
            )
        }
        (None, None, Some(dev)) => {
            let found = place::directory_on(makedev(dev >> 20, dev & 0xf_ffff), None);
            let why = "a fanotify mark of a file system that is not in reach is not carried";
            (
                FAN_MARK_FILESYSTEM,
                whole(found.ok_or_else(|| open.refuse(why))?),
            )
        }
        (None, None, None) => {
            return Err(open.refuse("this kind of fanotify mark is not carried"));
        }
    };
    Ok(Mark {
        mask: number("mask")? as u32,
        ignored: number("ignored_mask")? as u32,
        flags: number("mflags")? as u32 | more,
        place,
    })
}

/// A mount or a file system, by a directory of it.
fn whole(directory: PathBuf) -> Place {
    let directory = directory.into_os_string().into_vec();
    Place {
        path: Some(directory.clone()),
        inode: 0,
        handle: None,
        mount: directory,
        open: None,
        forgotten: false,
    }
}

/// Whether events have not been read yet, apart from those that this process has caused: who watches a whole mount
/// sees it look.
fn others_wait(open: &Open<'_>) -> Result<bool, FreezerError> {
    let queued = sys::files::readable(open.copy).map_err(open.call("asking for its events"))?;
    let others = || kernel::look(|kernel| kernel.events_of_others(open.copy.as_fd()));
    Ok(queued > 0 && others().map_or(true, |count| count > 0))
}
