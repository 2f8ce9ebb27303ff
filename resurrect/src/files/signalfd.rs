//! signalfd(2): reads the queues of whoever reads it, so it can be made anywhere.

use super::Opening;
use crate::ResurrectError;
use std::os::fd::OwnedFd;

pub(super) fn open(opening: &Opening<'_, '_>, mask: u64) -> Result<OwnedFd, ResurrectError> {
    sys::fds::signalfd(mask).map_err(opening.failed("making it"))
}
