//! References (`O_PATH`) to symbolic links and devices that have been removed: made once more, for as long as it takes
//! to refer to them.

use super::Opening;
use crate::ResurrectError;
use crate::gone_path::Naming;
use nix::fcntl::{AT_FDCWD, AtFlags, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, mknod};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};
use persist_mem::manifest::{GoneNode, NodeOwner};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(super) fn open(
    opening: &Opening<'_, '_>,
    path: &[u8],
    node: &GoneNode,
    owner: NodeOwner,
) -> Result<OwnedFd, ResurrectError> {
    let flags = opening.flags();
    let naming = Naming {
        place: |name: &Path| make(name, node, owner).map(|()| true),
        open: |near: &OwnedFd, inside: &Path| openat(near, inside, flags, Mode::empty()),
    };
    let mark = format!("g{}", opening.description.id.0);
    let opened = naming.open_by(Path::new(OsStr::from_bytes(path)), &mark);
    opened.map_err(opening.failed("making what it refers to once more"))
}

fn make(name: &Path, node: &GoneNode, owner: NodeOwner) -> sys::Result<()> {
    let mode = Mode::from_bits_truncate(owner.mode);
    match node {
        GoneNode::Link(target) => symlinkat(OsStr::from_bytes(target), AT_FDCWD, name)?,
        GoneNode::Device { kind, rdev } => {
            mknod(name, SFlag::from_bits_truncate(*kind), mode, *rdev)?;
        }
    }
    let (uid, gid) = (Uid::from_raw(owner.owner.0), Gid::from_raw(owner.owner.1));
    let itself = AtFlags::AT_SYMLINK_NOFOLLOW;
    fchownat(AT_FDCWD, name, Some(uid), Some(gid), itself)?;
    match node {
        // Links have all permissions.
        GoneNode::Link(_) => Ok(()),
        GoneNode::Device { .. } => fchmodat(AT_FDCWD, name, mode, FchmodatFlags::FollowSymlink),
    }
}
