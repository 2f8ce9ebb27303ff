//! Nodes that are there just long enough to be opened, for what had been removed.

use crate::ResurrectError;
use nix::sys::stat::{Mode, SFlag, mknod};
use std::path::{Path, PathBuf};
use sys::Errno;

/// A node that is removed again when this is dropped.
#[derive(Debug)]
pub(super) struct Node(PathBuf);

impl Node {
    /// Makes a device or FIFO: under its old path if that is free, else beside it, else in `/dev`, where
    /// file systems take devices.
    pub(super) fn make(old: &Path, kind: SFlag, rdev: u64) -> sys::Result<Node> {
        let hidden = format!(".kupgrade-{}", std::process::id());
        let near = old.ancestors().skip(1).find(|dir| dir.is_dir());
        let beside = near.map(|dir| dir.join(&hidden));
        let places = [
            Some(old.to_owned()),
            beside,
            Some(Path::new("/dev").join(&hidden)),
        ];
        let mut last = Err(Errno::ENOENT);
        for place in places.into_iter().flatten() {
            last = mknod(&place, kind, Mode::S_IRUSR | Mode::S_IWUSR, rdev);
            if last.is_ok() && usable(&place, kind) {
                return Ok(Node(place));
            }
            if last.is_ok() {
                drop(Node(place));
                last = Err(Errno::EACCES);
            }
        }
        last.map(|()| Node(old.to_owned()))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Its owner and permission bits.
    pub(super) fn own(&self, (uid, gid): (u32, u32), mode: u32) -> Result<(), ResurrectError> {
        let failed = || ResurrectError::own("setting the owner of a node");
        let (uid, gid) = (
            nix::unistd::Uid::from_raw(uid),
            nix::unistd::Gid::from_raw(gid),
        );
        nix::unistd::chown(&self.0, Some(uid), Some(gid)).map_err(failed())?;
        let mode = Mode::from_bits_truncate(mode);
        let flags = nix::sys::stat::FchmodatFlags::FollowSymlink;
        let here = nix::fcntl::AT_FDCWD;
        nix::sys::stat::fchmodat(here, &self.0, mode, flags).map_err(failed())
    }
}

/// Devices cannot be opened on file systems that are mounted without (`nodev`).
fn usable(place: &Path, kind: SFlag) -> bool {
    let none = nix::sys::statvfs::FsFlags::ST_NODEV;
    kind != SFlag::S_IFCHR
        || nix::sys::statvfs::statvfs(place).is_ok_and(|found| !found.flags().contains(none))
}

impl Drop for Node {
    fn drop(&mut self) {
        // It was made here.
        let _ = nix::unistd::unlink(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_goes_and_spares_what_has_its_name() {
        let path = std::env::temp_dir().join(format!("brief-{}", std::process::id()));
        let node = Node::make(&path, SFlag::S_IFIFO, 0).unwrap();
        assert_eq!(node.path(), path);
        drop(node);
        assert!(!path.exists());
        std::fs::write(&path, "other").unwrap();
        let node = Node::make(&path, SFlag::S_IFIFO, 0).unwrap();
        let hidden = node.path().to_owned();
        assert!(hidden != path && hidden.exists());
        drop(node);
        assert!(!hidden.exists());
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
        std::fs::remove_file(path).unwrap();
    }
}
