//! Swap areas (swapon(2)).

use crate::Result;
use crate::raw::syscall;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

/// `SWAP_FLAG_PREFER` (linux/swap.h): the low bits of the flags are a priority.
const PREFER: u64 = 0x8000;
/// `SWAP_FLAG_PRIO_MASK`.
const PRIORITY: u64 = 0x7fff;

/// Takes an area into use. A priority below 0 is left to the kernel, which gives such out by itself.
///
/// # Errors
/// `EBUSY` when it is in use; `EINVAL` for what is no swap area; `EPERM`, `ENOENT`, `ENOMEM`.
pub fn on(path: &Path, priority: i32) -> Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let flags = match u64::try_from(priority) {
        Ok(priority) => PREFER | (priority & PRIORITY),
        Err(_) => 0,
    };
    let args = [path.as_ptr() as u64, flags, 0, 0, 0, 0];
    // SAFETY: the kernel reads a terminated path, and keeps no pointer to it.
    unsafe { syscall(libc::SYS_swapon, args) }.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_swap_area_is_refused() {
        assert!(on(Path::new("/nonexistent/swap"), -2).is_err());
        assert!(on(Path::new("/proc/self/status"), 5).is_err());
    }
}
