//! Extended attributes of a path, never following a symbolic link, and of an open file (xattr(7)).

use crate::Result;
use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

/// Calls `read` with growing buffers until the answer fits.
fn grow(read: impl Fn(&mut [u8]) -> isize) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        if let Ok(len) = usize::try_from(read(&mut buffer)) {
            buffer.truncate(len);
            return Ok(buffer);
        }
        match Errno::last() {
            // 64 KiB is the kernel's bound for values and lists (linux/limits.h).
            Errno::ERANGE if buffer.len() < 65536 => buffer.resize(buffer.len() * 4, 0),
            error => return Err(error),
        }
    }
}

/// Names of all attributes; empty where the file system has none.
///
/// # Errors
/// `ENOENT`, `EACCES`.
pub fn list(path: &Path) -> Result<Vec<CString>> {
    let path = c_path(path)?;
    let names = grow(|buffer| {
        // SAFETY: a terminated path and a buffer of the stated length.
        unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    });
    match names {
        Ok(names) => Ok(names
            .split_inclusive(|b| *b == 0)
            .filter_map(|name| CStr::from_bytes_with_nul(name).ok().map(CStr::to_owned))
            .collect()),
        Err(Errno::EOPNOTSUPP) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Names and values of all attributes of an open file; empty where the file system has none.
///
/// # Errors
/// `EBADF`.
pub fn all_of(file: impl AsFd) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let fd = file.as_fd().as_raw_fd();
    let names = grow(|buffer| {
        // SAFETY: a buffer of the stated length.
        unsafe { libc::flistxattr(fd, buffer.as_mut_ptr().cast(), buffer.len()) }
    });
    let names = match names {
        Ok(names) => names,
        Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = names.split_inclusive(|b| *b == 0);
    let mut found = Vec::new();
    for name in names.filter_map(|name| CStr::from_bytes_with_nul(name).ok()) {
        let value = grow(|buffer| {
            // SAFETY: a terminated string and a buffer of the stated length.
            unsafe { libc::fgetxattr(fd, name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
        })?;
        found.push((name.to_bytes().to_vec(), value));
    }
    Ok(found)
}

/// Sets one attribute of an open file, making or replacing it.
///
/// # Errors
/// `EOPNOTSUPP` where the file system lacks this kind of attribute.
pub fn set_of(file: impl AsFd, name: &[u8], value: &[u8]) -> Result<()> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: a terminated string and a buffer of the stated length.
    let done = unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop)
}

/// Value of one attribute.
///
/// # Errors
/// `ENODATA` when it is gone.
pub fn get(path: &Path, name: &CStr) -> Result<Vec<u8>> {
    let path = c_path(path)?;
    grow(|buffer| {
        // SAFETY: terminated strings and a buffer of the stated length.
        unsafe {
            libc::lgetxattr(
                path.as_ptr(),
                name.as_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            )
        }
    })
}

/// Sets one attribute, making or replacing it.
///
/// # Errors
/// `EOPNOTSUPP` where the file system lacks this kind of attribute.
pub fn set(path: &Path, name: &CStr, value: &[u8]) -> Result<()> {
    let path = c_path(path)?;
    // SAFETY: terminated strings and a buffer of the stated length.
    let done = unsafe {
        libc::lsetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(done).map(drop)
}
