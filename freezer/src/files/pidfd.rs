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
        && process_of(open.info, pid) != pid
        && open.pid == Pid(nix::unistd::getpid().as_raw())
    {
        // It is sent before there are threads.
        return Err(open.refuse("a pidfd of a single thread in flight is not carried"));
    }
    // Before pidfs (Linux 6.9) all of them are one inode.
    let own_inode = open.link.starts_with(b"pidfd:");
    let identity = if own_inode { open.stat.st_ino } else { 0 };
    Ok(DescriptionKind::PidFd { target, identity })
}

/// The process or thread it stands for: `Some(None)` when that is gone, None when it is no pidfd.
pub(super) fn target(info: &proc::FdInfo) -> Option<Option<Pid>> {
    let pid: i32 = info.value("Pid")?.parse().ok()?;
    Some((pid > 0).then_some(Pid(pid)))
}

/// The process that has the thread that a pidfd stands for.
pub(super) fn process_of(info: &proc::FdInfo, target: Pid) -> Pid {
    let of_thread = info.number("flags", 8).unwrap_or(0) & u64::from(PIDFD_THREAD) != 0;
    if !of_thread {
        return target;
    }
    proc::tgid(target).unwrap_or(target)
}
