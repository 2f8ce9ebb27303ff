//! eventfd(2).

use super::Opening;
use crate::ResurrectError;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::write;
use std::os::fd::OwnedFd;

pub(super) fn open(
    opening: &Opening<'_, '_>,
    count: u64,
    semaphore: bool,
) -> Result<OwnedFd, ResurrectError> {
    let mut flags = EfdFlags::EFD_CLOEXEC;
    flags.set(EfdFlags::EFD_SEMAPHORE, semaphore);
    let fd = EventFd::from_value_and_flags(0, flags).map_err(opening.failed("making it"))?;
    let fd = OwnedFd::from(fd);
    if count > 0 {
        write(&fd, &count.to_ne_bytes()).map_err(opening.failed("setting its count"))?;
    }
    Ok(fd)
}
