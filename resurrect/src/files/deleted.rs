//! Removed files: the description here, the contents with the objects.

use super::Opening;
use crate::ResurrectError;
use crate::objects::TMPFILE;
use crate::restore::Restore;
use nix::fcntl::OFlag;
use persist_mem::manifest::DescriptionKind;
use std::os::fd::OwnedFd;

const O_ACCMODE: u32 = 3;
const O_RDWR: u32 = 2;

/// `O_CREAT`, `O_EXCL`, `O_TRUNC`, `O_TMPFILE`: for the first open only.
const ONCE: u32 = 0o100 | 0o200 | 0o1000 | 0o20_200_000;

/// Descriptions that made their file (`O_TMPFILE`): F_GETFL tells, so they are those that make it again.
pub(super) fn open_temporary(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for description in &manifest.descriptions {
        let DescriptionKind::Deleted { object } = description.kind else {
            continue;
        };
        let read_write = description.flags & O_ACCMODE == O_RDWR;
        if description.flags & TMPFILE == 0 || !read_write {
            continue;
        }
        let Some(fd) = restore.objects.take_first(object) else {
            continue;
        };
        let opening = Opening {
            restore,
            description,
        };
        super::path::seek(&opening, &fd)?;
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
