//! Character devices without a state of their own.

use super::Opening;
use crate::ResurrectError;
use nix::sys::stat::{Mode, SFlag, mknod};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use sys::Errno;

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

/// Opens a device whose node is gone, by a node that is there as long as that takes: where the old one
/// was, if that file system takes devices, else in `/dev`.
fn by_node(old: &Path, rdev: u64, opening: &Opening<'_, '_>) -> sys::Result<OwnedFd> {
    let near = old.ancestors().skip(1).find(|dir| dir.is_dir());
    let mut last = Err(Errno::ENOENT);
    for dir in near.into_iter().chain([Path::new("/dev")]) {
        let name = format!(
            ".kupgrade-{}-{}",
            std::process::id(),
            opening.description.id.0
        );
        let node = dir.join(name);
        last = mknod(&node, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, rdev).and_then(|()| {
            let opened = nix::fcntl::open(&node, opening.flags(), Mode::empty());
            nix::unistd::unlink(&node)?;
            opened
        });
        if last.is_ok() {
            break;
        }
    }
    last
}
