//! References (`O_PATH`) to symbolic links and devices that have been removed: there is nothing behind them but what
//! stat(2) and readlink(2) tell.

use super::Open;
use super::path::DELETED;
use crate::FreezerError;
use nix::fcntl::readlinkat;
use nix::sys::stat::SFlag;
use persist_mem::manifest::{DescriptionKind, GoneNode, NodeOwner};
use std::os::unix::ffi::OsStringExt;

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let kind = open.file_type();
    let node = match kind {
        SFlag::S_IFLNK => {
            let target = readlinkat(open.copy, "").map_err(open.call("readlink"))?;
            GoneNode::Link(target.into_vec())
        }
        SFlag::S_IFCHR | SFlag::S_IFBLK => GoneNode::Device {
            kind: kind.bits(),
            rdev: open.stat.st_rdev,
        },
        _ => return Err(open.refuse("what it refers to (O_PATH) has been removed")),
    };
    let path = open.link.strip_suffix(DELETED).unwrap_or(open.link);
    Ok(DescriptionKind::Gone {
        path: path.to_vec(),
        node,
        owner: owner(open),
    })
}

/// Permission bits and owner.
pub(super) fn owner(open: &Open<'_>) -> NodeOwner {
    NodeOwner {
        mode: open.stat.st_mode & 0o7777,
        owner: (open.stat.st_uid, open.stat.st_gid),
    }
}
