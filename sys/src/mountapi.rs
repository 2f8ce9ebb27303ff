//! Parts of the mount interface that nix lacks (move_mount(2)).

use crate::{Result, raw};
use std::os::fd::{AsRawFd, BorrowedFd};

const MOVE_MOUNT_F_EMPTY_PATH: u64 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u64 = 0x40;
const MOVE_MOUNT_SET_GROUP: u64 = 0x100;

/// Puts the mount whose root `to` is into the sharing group (peers and master) of the mount whose
/// root `from` is. `to` must be private and show the same file system, the same or a deeper
/// directory of it.
///
/// # Errors
/// `EINVAL` when these rules are broken.
pub fn share_group(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let fd = |fd: BorrowedFd<'_>| i64::from(fd.as_raw_fd()).cast_unsigned();
    let empty = c"".as_ptr() as u64;
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH | MOVE_MOUNT_SET_GROUP;
    // SAFETY: two open descriptors and two terminated strings; no memory is written.
    unsafe {
        raw::syscall(
            libc::SYS_move_mount,
            [fd(from), empty, fd(to), empty, flags, 0],
        )
    }
    .map(drop)
}
