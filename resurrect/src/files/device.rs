//! Character devices without a state of their own.

use super::{Opening, brief};
use crate::ResurrectError;
use nix::sys::stat::{Mode, SFlag};
use persist_mem::manifest::NodeOwner;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(super) fn open(
    opening: &Opening<'_, '_>,
    path: &[u8],
    rdev: u64,
    removed: Option<NodeOwner>,
) -> Result<OwnedFd, ResurrectError> {
    if let Some(owner) = removed {
        let old = path.strip_suffix(b" (deleted)").unwrap_or(path);
        let failed = || opening.failed("making its node for it");
        let node = brief::Node::make(Path::new(OsStr::from_bytes(old)), SFlag::S_IFCHR, rdev);
        let node = node.map_err(failed())?;
        node.own(owner.owner, owner.mode)?;
        return nix::fcntl::open(node.path(), opening.flags(), Mode::empty()).map_err(failed());
    }
    let path = Path::new(OsStr::from_bytes(path));
    let changed = |why: String| ResurrectError::changed(path.display().to_string(), why);
    let found = std::fs::metadata(path).map_err(|e| changed(e.to_string()))?;
    if found.rdev() != rdev {
        return Err(changed("it is another device now".into()));
    }
    nix::fcntl::open(path, opening.flags(), Mode::empty()).map_err(opening.failed("opening it"))
}
