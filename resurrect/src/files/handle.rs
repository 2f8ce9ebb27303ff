//! Files whose path leads elsewhere, while another name of them exists.

use super::{Opening, path};
use crate::ResurrectError;
use crate::gone_path::Naming;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::linkat;
use persist_mem::manifest::FileRef;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use sys::Errno;
use sys::handle::Handle;

/// What tells of such a file.
pub(super) struct Elsewhere<'a> {
    /// The path it was opened by, and whether that was removed.
    pub(super) file: &'a FileRef,
    pub(super) unlinked: bool,
    /// Another path.
    pub(super) link: Option<&'a [u8]>,
    pub(super) handle: Option<&'a Handle>,
    /// A directory on the same mount.
    pub(super) mount: &'a [u8],
}

pub(super) fn open(
    opening: &Opening<'_, '_>,
    elsewhere: &Elsewhere<'_>,
) -> Result<OwnedFd, ResurrectError> {
    let flags = opening.flags();
    let under_its_name = if elsewhere.unlinked {
        by_removed_name(opening, elsewhere).ok()
    } else {
        None
    };
    let fd = match under_its_name {
        Some(fd) => Ok(fd),
        None => by_other_name(elsewhere, flags),
    };
    let fd = fd.map_err(|errno| {
        let why = format!("its other name is gone: {errno}");
        ResurrectError::changed(elsewhere.file.to_string(), why)
    })?;
    path::seek(opening.description, &fd)?;
    Ok(fd)
}

fn by_other_name(elsewhere: &Elsewhere<'_>, flags: OFlag) -> sys::Result<OwnedFd> {
    match (elsewhere.link, elsewhere.handle) {
        (_, Some(handle)) => by_handle(elsewhere.mount, handle, flags),
        (Some(link), None) => nix::fcntl::open(at(link), flags, Mode::empty()),
        (None, None) => Err(Errno::ENOENT),
    }
}

/// By a name that reads as the one that was removed, which the file has no longer than it takes.
fn by_removed_name(opening: &Opening<'_, '_>, elsewhere: &Elsewhere<'_>) -> sys::Result<OwnedFd> {
    let reference = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = by_other_name(elsewhere, reference)?;
    let flags = opening.flags();
    let naming = Naming {
        place: |name: &Path| {
            linkat(&file, "", AT_FDCWD, name, AtFlags::AT_EMPTY_PATH).map(|()| true)
        },
        open: |near: &OwnedFd, inside: &Path| openat(near, inside, flags, Mode::empty()),
    };
    let mark = format!("d{}", opening.description.id.0);
    naming.open_by(at(&elsewhere.file.path), &mark)
}

fn at(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
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
