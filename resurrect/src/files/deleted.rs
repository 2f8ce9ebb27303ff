//! Removed files: the description here, the contents with the objects.

use super::Opening;
use crate::ResurrectError;
use crate::objects::{TMPFILE, made_it, made_memfd};
use crate::restore::Restore;
use nix::fcntl::OFlag;
use persist_mem::manifest::{Description, DescriptionKind};
use std::os::fd::OwnedFd;

/// `O_CREAT`, `O_EXCL`, `O_TRUNC`, `O_TMPFILE`: for the first open only.
const ONCE: u32 = 0o100 | 0o200 | 0o1000 | 0o200_000 | TMPFILE;

/// Descriptions that made their file (`O_TMPFILE`, `O_NOFOLLOW`): F_GETFL tells, so they are those that
/// make it again. So are those of memfd_create(2), which do not count as open for writing.
pub(super) fn open_makers(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let mut makers: Vec<&Description> = restore.manifest.descriptions.iter().collect();
    // As their file was made: `O_TMPFILE` first.
    makers.sort_by_key(|description| core::cmp::Reverse(description.flags));
    for description in makers {
        let object = match description.kind {
            DescriptionKind::Deleted { object } if made_it(description.flags) => object,
            DescriptionKind::Memfd { object } if made_memfd(description.flags) => object,
            _ => continue,
        };
        let Some(fd) = restore.objects.take_first(object) else {
            continue;
        };
        let opening = Opening {
            restore,
            description,
        };
        super::path::seek(opening.description, &fd)?;
        sys::fds::set_status_flags(&fd, description.flags & super::SETTABLE)
            .map_err(opening.failed("setting its flags"))?;
        restore.files.opened.insert(description.id, fd);
    }
    Ok(())
}

pub(super) fn open(opening: &Opening<'_, '_>, object: u32) -> Result<OwnedFd, ResurrectError> {
    let flags = opening.description.flags & !ONCE;
    let flags = OFlag::from_bits_retain(flags.cast_signed()) | OFlag::O_CLOEXEC;
    let objects = &opening.restore.objects;
    let fd = objects
        .open(object, flags)
        .map_err(opening.failed("opening it"))?;
    if !flags.contains(OFlag::O_PATH) && opening.description.pos != 0 {
        sys::fds::seek(&fd, opening.description.pos)
            .map_err(opening.failed("setting its offset"))?;
    }
    Ok(fd)
}
