//! Inodes that are watched: found by their path, or by their handle.

use super::{Opening, handle};
use crate::ResurrectError;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use persist_mem::manifest::Place;
use std::ffi::{CStr, CString, OsStr};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::mpsc;
use sys::{Errno, Pid};

const MFD_CLOEXEC: u32 = 1;

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
        return through(open, |link| body(link, true));
    }
    if place.forgotten {
        return forgotten(|link| body(link, true));
    }
    // Where inodes have new numbers after a reboot there is no handle, and the path is right.
    let right = |path: &&[u8]| {
        place.handle.is_none() || handle::leads_to(path, place.inode) || is_socket(path)
    };
    match (place.path.as_deref().filter(right), &place.handle) {
        (Some(found), None) if opening.restore.is_upgrade() && !is_there(found) => {
            log::warn!(
                "{} is not there on this kernel: who watches it is told that it is gone",
                String::from_utf8_lossy(found)
            );
            through(&gone()?, |link| body(link, true))
        }
        (Some(found), _) => body(&path(found)?, false),
        (None, Some(handle)) => {
            let mount = File::open(OsStr::from_bytes(&place.mount)).map_err(|_| Errno::ENOENT)?;
            let file = sys::handle::open(&mount, handle, OFlag::O_PATH.bits())?;
            through(&file, |link| body(link, true))
        }
        (None, None) => Err(Errno::ENOENT),
    }
}

/// What goes with its last descriptor, and every watch of it as well. That is a reference, since a watch would be told
/// of the end of any other.
pub(super) fn gone() -> sys::Result<OwnedFd> {
    let file = sys::vm::memfd(c"gone", MFD_CLOEXEC)?;
    through(&file, |link| {
        nix::fcntl::open(link, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
    })
}

/// Calls `body` with a path to a file that nothing leads to afterwards, and that nobody is told the end of: one of
/// procfs, of a thread that has ended.
fn forgotten<T>(body: impl FnOnce(&CStr) -> sys::Result<T>) -> sys::Result<T> {
    let me = Pid(nix::unistd::getpid().as_raw());
    let (tell, told) = mpsc::channel();
    let (end, ends) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // It lasts until the other side is gone.
            let _ = tell.send(nix::unistd::gettid());
            let _ = ends.recv();
        });
        let thread = told.recv().map_err(|_| Errno::ESRCH)?;
        let file = sys::procdir::open(me, &format!("task/{thread}/comm"), OFlag::O_PATH)?;
        let result = through(&file, body);
        drop(end);
        result
    })
}

fn is_there(path: &[u8]) -> bool {
    std::fs::symlink_metadata(OsStr::from_bytes(path)).is_ok()
}

/// The node of a socket, which has been bound again and so is another inode.
fn is_socket(path: &[u8]) -> bool {
    let found = std::fs::symlink_metadata(OsStr::from_bytes(path));
    found.is_ok_and(|found| found.file_type().is_socket())
}

/// Calls `body` with a path to what a descriptor of this process refers to: from the directory of its descriptors,
/// since the `/proc` of the processes need not know this one.
pub(super) fn through<T>(
    fd: &impl AsRawFd,
    body: impl FnOnce(&CStr) -> sys::Result<T>,
) -> sys::Result<T> {
    let me = Pid(nix::unistd::getpid().as_raw());
    // Not one that opens it, which a watch of it would see.
    let before = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_PATH.bits())
        .open(".")
        .map_err(|_| Errno::ENOENT)?;
    let descriptors = sys::procdir::open(me, "fd", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let link = CString::new(fd.as_raw_fd().to_string()).map_err(|_| Errno::EINVAL)?;
    nix::unistd::fchdir(&descriptors)?;
    let result = body(&link);
    nix::unistd::fchdir(&before)?;
    result
}

/// Says that an inode cannot be watched again.
pub(super) fn changed(place: &Place, errno: Errno) -> ResurrectError {
    let path = place.path.as_deref().unwrap_or(b"?");
    let why = format!("watching it again (inode {}): {errno}", place.inode);
    ResurrectError::changed(String::from_utf8_lossy(path), why)
}
