//! `/dev/kmsg` opened for reading. Another kernel's log is read from its beginning: all of it is new.

use super::Opening;
use crate::ResurrectError;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(super) fn open(
    opening: &Opening<'_, '_>,
    path: &[u8],
    next: u64,
    boot: &str,
) -> Result<OwnedFd, ResurrectError> {
    // Whether it waits for records is set later.
    let flags = opening.flags() | OFlag::O_NONBLOCK;
    let path = Path::new(OsStr::from_bytes(path));
    let log = nix::fcntl::open(path, flags, Mode::empty()).map_err(opening.failed("opening it"))?;
    let now = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if now.trim_end() == boot {
        sys::kmsg::seek_to(&log, next).map_err(opening.failed("setting its position"))?;
    }
    Ok(log)
}
