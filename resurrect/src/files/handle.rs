//! Files whose path leads elsewhere, while another name of them exists.

use super::{Opening, path};
use crate::ResurrectError;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use persist_mem::manifest::FileRef;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use sys::Errno;
use sys::handle::Handle;

pub(super) fn open(
    opening: &Opening<'_, '_>,
    file: &FileRef,
    link: Option<&[u8]>,
    handle: Option<&Handle>,
    mount: &[u8],
) -> Result<OwnedFd, ResurrectError> {
    let flags = opening.flags();
    let by_path = |path: &[u8]| {
        let path = Path::new(OsStr::from_bytes(path));
        nix::fcntl::open(path, flags, Mode::empty())
    };
    let fd = match (link, handle) {
        (_, Some(handle)) => by_handle(mount, handle, flags),
        (Some(link), None) => by_path(link),
        (None, None) => Err(Errno::ENOENT),
    };
    let fd = fd.map_err(|errno| ResurrectError::Changed {
        path: file.to_string(),
        why: format!("its other name is gone: {errno}"),
    })?;
    path::seek(opening, &fd)?;
    Ok(fd)
}

fn by_handle(mount: &[u8], handle: &Handle, flags: OFlag) -> sys::Result<OwnedFd> {
    let mount = File::open(OsStr::from_bytes(mount));
    let mount = mount.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
    sys::handle::open(&mount, handle, flags.bits())
}

/// Whether a path leads to an inode.
pub(super) fn leads_to(path: &[u8], inode: u64) -> bool {
    std::fs::symlink_metadata(OsStr::from_bytes(path)).is_ok_and(|found| found.ino() == inode)
}
