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

/// `O_CREAT`, `O_EXCL`, `O_TRUNC`: for the first open only.
const ONCE: u32 = 0o100 | 0o200 | 0o1000;

pub(super) fn open(opening: &Opening<'_, '_>, file: &FileRef) -> Result<OwnedFd, ResurrectError> {
    check_same(file)?;
    let flags = opening.description.flags & !ONCE;
    let flags = OFlag::from_bits_retain(flags.cast_signed()) | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let path = Path::new(OsStr::from_bytes(&file.path));
    let fd = nix::fcntl::open(path, flags, Mode::empty()).map_err(opening.failed("opening it"))?;
    if !flags.contains(OFlag::O_PATH) && opening.description.pos != 0 {
        sys::fds::seek(&fd, opening.description.pos)
            .map_err(opening.failed("setting its offset"))?;
    }
    Ok(fd)
}

/// The path must still lead to the file that was saved.
pub(crate) fn check_same(file: &FileRef) -> Result<(), ResurrectError> {
    let changed = |why: String| ResurrectError::Changed {
        path: file.to_string(),
        why,
    };
    let found =
        std::fs::metadata(OsStr::from_bytes(&file.path)).map_err(|e| changed(e.to_string()))?;
    if found.ino() == file.inode {
        Ok(())
    } else {
        Err(changed(
            "another file has taken the place of the one that was saved".into(),
        ))
    }
}
