//! File handles: an inode's name that needs no path (open_by_handle_at(2)).

use crate::raw::syscall;
use crate::{Errno, Result};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `MAX_HANDLE_SZ` (include/linux/exportfs.h).
const MAX_HANDLE: usize = 128;

/// A file handle. It is good for as long as the inode exists: on disk file systems, also after a
/// reboot; on memory file systems, while they are mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    /// `handle_type`.
    pub kind: i32,
    /// `f_handle`.
    pub bytes: Vec<u8>,
}

/// `struct file_handle` with room for the largest one.
#[repr(C)]
struct Raw {
    len: u32,
    kind: i32,
    bytes: [u8; MAX_HANDLE],
}

/// The handle of an open file (name_to_handle_at(2)).
///
/// # Errors
/// `EOPNOTSUPP` where the file system has none (overlayfs, as a rule).
pub fn of(fd: &impl AsFd) -> Result<Handle> {
    let mut raw = Raw {
        len: MAX_HANDLE as u32,
        kind: 0,
        bytes: [0; MAX_HANDLE],
    };
    let mut mount = 0i32;
    let args = [
        i64::from(fd.as_fd().as_raw_fd()).cast_unsigned(),
        c"".as_ptr() as u64,
        (&raw mut raw) as u64,
        (&raw mut mount) as u64,
        libc::AT_EMPTY_PATH as u64,
        0,
    ];
    // SAFETY: a terminated string, a handle with the room it states, an int; all live.
    unsafe { syscall(libc::SYS_name_to_handle_at, args) }?;
    let len = (raw.len as usize).min(MAX_HANDLE);
    Ok(Handle {
        kind: raw.kind,
        bytes: raw.bytes[..len].to_vec(),
    })
}

/// Opens the inode; `mount` is open on anything of the same file system.
///
/// # Errors
/// `ESTALE` when it is gone, `EPERM` without CAP_DAC_READ_SEARCH.
pub fn open(mount: &impl AsFd, handle: &Handle, flags: i32) -> Result<OwnedFd> {
    let mut raw = Raw {
        len: 0,
        kind: handle.kind,
        bytes: [0; MAX_HANDLE],
    };
    let room = raw
        .bytes
        .get_mut(..handle.bytes.len())
        .ok_or(Errno::EINVAL)?;
    room.copy_from_slice(&handle.bytes);
    raw.len = handle.bytes.len() as u32;
    let args = [
        i64::from(mount.as_fd().as_raw_fd()).cast_unsigned(),
        (&raw mut raw) as u64,
        (flags | libc::O_CLOEXEC) as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the handle is live and of the length it states.
    let fd = unsafe { syscall(libc::SYS_open_by_handle_at, args) }?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_without_its_path() {
        let path = std::env::temp_dir().join(format!("handle-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        let handle = of(&std::fs::File::open(&path).unwrap()).unwrap();
        let mount = std::fs::File::open(std::env::temp_dir()).unwrap();
        let again = std::fs::File::from(open(&mount, &handle, libc::O_RDONLY).unwrap());
        assert_eq!(std::io::read_to_string(again).unwrap(), "x");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            open(&mount, &handle, libc::O_RDONLY).unwrap_err(),
            Errno::ESTALE
        );
    }
}
