//! Regular files and directories that have a path.

use super::Opening;
use crate::ResurrectError;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use persist_mem::manifest::FileRef;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(super) fn open(opening: &Opening<'_, '_>, file: &FileRef) -> Result<OwnedFd, ResurrectError> {
    check_same(file)?;
    // Regular files take `O_ASYNC` only here, and signal nothing.
    let inert = OFlag::from_bits_retain(opening.description.flags.cast_signed()) & OFlag::O_ASYNC;
    let flags = opening.flags() | inert;
    let path = Path::new(OsStr::from_bytes(&file.path));
    let fd = nix::fcntl::open(path, flags, Mode::empty()).map_err(opening.failed("opening it"))?;
    seek(opening, &fd)?;
    Ok(fd)
}

/// Sets the offset, where there is one.
pub(super) fn seek(opening: &Opening<'_, '_>, fd: &OwnedFd) -> Result<(), ResurrectError> {
    let flags = opening.flags();
    match opening.description.pos {
        0 => Ok(()),
        _ if flags.contains(OFlag::O_PATH) => Ok(()),
        pos => sys::fds::seek(fd, pos).map_err(opening.failed("setting its offset")),
    }
}

/// The path must still lead to the file that was saved.
pub(crate) fn check_same(file: &FileRef) -> Result<(), ResurrectError> {
    let changed = |why: String| ResurrectError::Changed {
        path: file.to_string(),
        why,
    };
    // The last component may be a link itself (`O_PATH | O_NOFOLLOW`).
    let found = std::fs::symlink_metadata(OsStr::from_bytes(&file.path))
        .map_err(|e| changed(e.to_string()))?;
    if [0, found.ino()].contains(&file.inode) {
        Ok(())
    } else {
        Err(changed(
            "another file has taken the place of the one that was saved".into(),
        ))
    }
}
