//! Inodes that are watched: found by their path, or by their handle.

use super::{Opening, handle};
use crate::ResurrectError;
use nix::fcntl::OFlag;
use persist_mem::manifest::Place;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use sys::Errno;

/// Calls `body` with a path of the inode, and whether that is a link to follow.
pub(super) fn with_path<T>(
    opening: &Opening<'_, '_>,
    place: &Place,
    body: impl FnOnce(&CStr, bool) -> sys::Result<T>,
) -> sys::Result<T> {
    let path = |bytes: &[u8]| CString::new(bytes).map_err(|_| Errno::EINVAL);
    if let Some(open) = place.open {
        let open = opening
            .restore
            .files
            .opened
            .get(&open)
            .ok_or(Errno::ENOENT)?;
        let link = format!("/proc/self/fd/{}", open.as_raw_fd());
        return body(&path(link.as_bytes())?, true);
    }
    // Where inodes have new numbers after a reboot there is no handle, and the path is right.
    let right = |path: &&[u8]| place.handle.is_none() || handle::leads_to(path, place.inode);
    match (place.path.as_deref().filter(right), &place.handle) {
        (Some(found), _) => body(&path(found)?, false),
        (None, Some(handle)) => {
            let mount = File::open(OsStr::from_bytes(&place.mount)).map_err(|_| Errno::ENOENT)?;
            let file = sys::handle::open(&mount, handle, OFlag::O_PATH.bits())?;
            let link = format!("/proc/self/fd/{}", file.as_raw_fd());
            body(&path(link.as_bytes())?, true)
        }
        (None, None) => Err(Errno::ENOENT),
    }
}

/// Says that an inode cannot be watched again.
pub(super) fn changed(place: &Place, errno: Errno) -> ResurrectError {
    let path = place.path.as_deref().unwrap_or(b"?");
    ResurrectError::Changed {
        path: String::from_utf8_lossy(path).into_owned(),
        why: format!("watching it again (inode {}): {errno}", place.inode),
    }
}
