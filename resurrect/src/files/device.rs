//! Character devices without a state of their own.

use super::{Opening, brief};
use crate::ResurrectError;
use nix::sys::stat::{Mode, SFlag};
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
    if let Some(old) = path.strip_suffix(b" (deleted)") {
        let old = Path::new(OsStr::from_bytes(old));
        return by_node(old, rdev, opening).map_err(opening.failed("making its node for it"));
    }
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

/// Opens a device whose node is gone, by one that is there as long as that takes.
fn by_node(old: &Path, rdev: u64, opening: &Opening<'_, '_>) -> sys::Result<OwnedFd> {
    let node = brief::Node::make(old, SFlag::S_IFCHR, rdev)?;
    nix::fcntl::open(node.path(), opening.flags(), Mode::empty())
}
