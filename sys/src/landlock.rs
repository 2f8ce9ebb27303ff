//! Landlock (landlock(7)).

use crate::Result;
use crate::raw::syscall;

/// `LANDLOCK_ACCESS_FS_MAKE_BLOCK`: threads of programs have no use for it.
const MAKE_BLOCK: u64 = 1 << 11;

/// Forbids the calling thread to make block devices, which cannot be taken back.
///
/// # Errors
/// `ENOSYS` or `EOPNOTSUPP` where the kernel has no Landlock, `E2BIG` when there are too many domains.
pub fn restrict_this_thread() -> Result<()> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    nix::sys::prctl::set_no_new_privs()?;
    let handled = MAKE_BLOCK;
    let size = size_of_val(&handled) as u64;
    let args = [(&raw const handled) as u64, size, 0, 0, 0, 0];
    // SAFETY: the kernel reads `size` bytes of `handled`.
    let fd = unsafe { syscall(libc::SYS_landlock_create_ruleset, args) }?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    let rules = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let args = [rules.as_raw_fd() as u64, 0, 0, 0, 0, 0];
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_landlock_restrict_self, args) }.map(drop)
}
