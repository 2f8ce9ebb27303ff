//! inotify(7): watches under their old numbers.

use super::{Opening, handle};
use crate::ResurrectError;
use nix::fcntl::OFlag;
use persist_mem::manifest::Watch;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use sys::Errno;

/// `IN_ALL_EVENTS`, `IN_EXCL_UNLINK`, `IN_ONESHOT`: what belongs to a watch.
const MASK: u32 = 0xfff | 0x0400_0000 | 0x8000_0000;
const IN_DONT_FOLLOW: u32 = 0x0200_0000;

pub(super) fn open(
    opening: &Opening<'_, '_>,
    watches: &[Watch],
) -> Result<OwnedFd, ResurrectError> {
    let fd = sys::files::inotify(0).map_err(opening.failed("making it"))?;
    for watch in watches {
        add(&fd, watch).map_err(|errno| {
            let path = watch.path.as_deref().unwrap_or(b"?");
            ResurrectError::Changed {
                path: String::from_utf8_lossy(path).into_owned(),
                why: format!("watching it again (inode {}): {errno}", watch.inode),
            }
        })?;
    }
    Ok(fd)
}

fn add(fd: &OwnedFd, watch: &Watch) -> sys::Result<()> {
    sys::files::next_watch(fd, watch.number)?;
    let mask = watch.mask & MASK;
    // Where inodes have new numbers after a reboot there is no handle, and the path is right.
    let by_path = watch
        .path
        .as_deref()
        .filter(|path| watch.handle.is_none() || handle::leads_to(path, watch.inode));
    let number = match (by_path, &watch.handle) {
        (Some(path), _) => {
            let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
            sys::files::add_watch(fd, &path, mask | IN_DONT_FOLLOW)?
        }
        (None, Some(handle)) => {
            let mount = File::open(OsStr::from_bytes(&watch.mount)).map_err(|_| Errno::ENOENT)?;
            let file = sys::handle::open(&mount, handle, OFlag::O_PATH.bits())?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
            sys::files::add_watch(fd, &path, mask)?
        }
        (None, None) => return Err(Errno::ENOENT),
    };
    if number == watch.number {
        Ok(())
    } else {
        Err(Errno::EEXIST)
    }
}
