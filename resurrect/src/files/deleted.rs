//! Removed files: the description here, the contents with the objects.

use super::Opening;
use crate::ResurrectError;
use nix::fcntl::OFlag;
use std::os::fd::OwnedFd;

/// `O_CREAT`, `O_EXCL`, `O_TRUNC`, `O_TMPFILE`: for the first open only.
const ONCE: u32 = 0o100 | 0o200 | 0o1000 | 0o20_200_000;

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
