//! Parts of the mount interface that nix lacks (open_tree(2), move_mount(2)).

use crate::{Result, raw};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// open_tree(2) with `OPEN_TREE_CLONE`: a mount of its own, attached nowhere, whose root is the
/// directory. It lasts as long as something in it is open.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub fn clone_tree(directory: BorrowedFd<'_>) -> Result<OwnedFd> {
    const OPEN_TREE_CLONE: u64 = 1;
    let flags = OPEN_TREE_CLONE | (libc::O_CLOEXEC | libc::AT_EMPTY_PATH) as u64;
    let fd = i64::from(directory.as_raw_fd()).cast_unsigned();
    let args = [fd, c"".as_ptr() as u64, flags, 0, 0, 0];
    // SAFETY: a terminated string; no memory is written.
    let fd = unsafe { raw::syscall(libc::SYS_open_tree, args) }?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) })
}

/// A tmpfs of its own, attached nowhere: its root. It lasts as long as something in it is open.
///
/// # Errors
/// As [`detached`].
pub fn detached_tmpfs() -> Result<OwnedFd> {
    detached(c"tmpfs")
}

/// A mount of a file system without a device and options, attached nowhere: its root. It lasts as long as something
/// in it is open.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENODEV` when the kernel does not know the file system.
pub fn detached(kind: &core::ffi::CStr) -> Result<OwnedFd> {
    const FSOPEN_CLOEXEC: u64 = 1;
    const FSMOUNT_CLOEXEC: u64 = 1;
    const FSCONFIG_CMD_CREATE: u64 = 6;
    let owned = |fd: u64| {
        // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
        unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) }
    };
    let number = |fd: &OwnedFd| i64::from(fd.as_raw_fd()).cast_unsigned();
    let args = [kind.as_ptr() as u64, FSOPEN_CLOEXEC, 0, 0, 0, 0];
    // SAFETY: a terminated string; no memory is written.
    let context = owned(unsafe { raw::syscall(libc::SYS_fsopen, args) }?);
    let args = [number(&context), FSCONFIG_CMD_CREATE, 0, 0, 0, 0];
    // SAFETY: no pointers.
    unsafe { raw::syscall(libc::SYS_fsconfig, args) }?;
    let args = [number(&context), FSMOUNT_CLOEXEC, 0, 0, 0, 0];
    // SAFETY: no pointers.
    Ok(owned(unsafe { raw::syscall(libc::SYS_fsmount, args) }?))
}
