//! Character devices without a state of their own.

use super::Opening;
use crate::ResurrectError;
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(super) fn open(
    opening: &Opening<'_, '_>,
    path: &[u8],
    rdev: u64,
) -> Result<OwnedFd, ResurrectError> {
    let path = Path::new(OsStr::from_bytes(path));
    let changed = |why: String| ResurrectError::Changed {
        path: path.display().to_string(),
        why,
    };
    let found = std::fs::metadata(path).map_err(|e| changed(e.to_string()))?;
    if found.rdev() != rdev {
        return Err(changed("it is another device now".into()));
    }
    nix::fcntl::open(path, opening.flags(), Mode::empty()).map_err(opening.failed("opening it"))
}
