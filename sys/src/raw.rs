//! The one place where a system call is made by number.

use nix::errno::Errno;

/// Makes system call `nr`.
///
/// # Safety
/// The caller vouches for what the call does with its arguments (pointers valid for what the
/// kernel reads or writes, no effect on memory Rust owns).
pub(crate) unsafe fn syscall(nr: i64, args: [u64; 6]) -> Result<u64, Errno> {
    let [a, b, c, d, e, f] = args;
    // SAFETY: forwarded to the caller's contract.
    let result = unsafe { libc::syscall(nr, a, b, c, d, e, f) };
    if result == -1 {
        Err(Errno::last())
    } else {
        Ok(result.cast_unsigned())
    }
}
