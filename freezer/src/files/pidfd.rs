//! pidfd_open(2).

use super::Open;
use crate::{FreezerError, proc};
use persist_mem::manifest::DescriptionKind;
use sys::Pid;

/// `PIDFD_THREAD` (include/uapi/linux/pidfd.h).
const PIDFD_THREAD: u32 = 0o200;

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let target = target(open.info).ok_or_else(|| open.format())?;
    if let Some(pid) = target
        && open.flags()? & PIDFD_THREAD != 0
        && proc::threads(pid)?.first() != Some(&pid.leader())
    {
        return Err(open.refuse("a pidfd of a single thread is not carried"));
    }
    // Before pidfs (Linux 6.9) all of them are one inode.
    let own_inode = open.link.starts_with(b"pidfd:");
    let identity = if own_inode { open.stat.st_ino } else { 0 };
    Ok(DescriptionKind::PidFd { target, identity })
}

/// The process it stands for: `Some(None)` when that is gone, None when it is no pidfd.
pub(super) fn target(info: &proc::FdInfo) -> Option<Option<Pid>> {
    let pid: i32 = info.value("Pid")?.parse().ok()?;
    Some((pid > 0).then_some(Pid(pid)))
}
