//! timerfd_create(2).

use super::Opening;
use crate::ResurrectError;
use persist_mem::manifest::DescriptionKind;
use std::os::fd::OwnedFd;
use sys::Errno;

pub(super) fn open(opening: &Opening<'_, '_>) -> Result<OwnedFd, ResurrectError> {
    let DescriptionKind::TimerFd {
        clock,
        ticks,
        value,
        interval,
        ..
    } = opening.description.kind
    else {
        return Err(opening.failed("making it")(Errno::EINVAL));
    };
    let fd = sys::fds::timerfd(clock).map_err(opening.failed("making it"))?;
    if value > 0 {
        let elapsed = u64::try_from(opening.restore.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // What is due already expires at once; 0 would disarm it.
        let value = value.saturating_sub(elapsed).max(1);
        sys::fds::timerfd_settime(&fd, 0, value, interval).map_err(opening.failed("arming it"))?;
    }
    if ticks > 0 {
        sys::fds::timerfd_set_ticks(&fd, ticks).map_err(opening.failed("setting its ticks"))?;
    }
    Ok(fd)
}
