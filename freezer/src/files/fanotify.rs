//! fanotify(7) groups that are told of events. Those that permit or deny them are not carried: this
//! process would wait for their answer, and they are stopped.

use super::Open;
use super::located::{self, Fields};
use crate::FreezerError;
use persist_mem::manifest::{DescriptionKind, Mark};

/// `FAN_CLASS_CONTENT`, `FAN_CLASS_PRE_CONTENT` (include/uapi/linux/fanotify.h).
const CLASSES: u64 = 0xc;

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let queued = sys::files::readable(open.copy).map_err(open.call("asking for its events"))?;
    if queued > 0 {
        return Err(
            open.refuse("fanotify events have not been read yet; they cannot be queued again")
        );
    }
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
            marks.push(mark(open, &fields)?);
        }
    }
    let (flags, event_flags) = group.ok_or_else(|| open.format())?;
    if flags & CLASSES != 0 {
        return Err(open.refuse("fanotify groups that permit or deny access are not carried"));
    }
    Ok(DescriptionKind::Fanotify {
        flags: flags as u32,
        event_flags: event_flags as u32,
        marks,
    })
}

fn mark(open: &Open<'_>, fields: &Fields<'_>) -> Result<Mark, FreezerError> {
    let located = fields.located().ok_or_else(|| {
        open.refuse("fanotify marks of whole mounts and file systems are not carried")
    })?;
    let number = |key: &str| fields.hex(key).ok_or_else(|| open.format());
    Ok(Mark {
        mask: number("mask")? as u32,
        ignored: number("ignored_mask")? as u32,
        flags: number("mflags")? as u32,
        place: located::find(open, "fanotify mark", located)?,
    })
}
