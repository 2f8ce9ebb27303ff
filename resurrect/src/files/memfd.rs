//! memfds: the description here, the memory with the objects.

use super::Opening;
use crate::ResurrectError;
use std::os::fd::OwnedFd;

pub(super) fn open(opening: &Opening<'_, '_>, object: u32) -> Result<OwnedFd, ResurrectError> {
    super::deleted::open(opening, object)
}
