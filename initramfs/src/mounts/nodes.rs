//! Nodes of `/dev` that the kernel has made by itself, and those that user space has.

use persist_mem::mounts::{DeviceNumber, InodeKind, Tree};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Takes the numbers away from nodes that the kernel has made: a new kernel makes them for the devices that it has,
/// and gives them numbers of its own.
pub(super) fn forget_kernels(tree: &mut Tree, sys: &Path) {
    let mut paths: Vec<PathBuf> = Vec::with_capacity(tree.inodes.len());
    for at in 0..tree.inodes.len() {
        let path = match tree.inodes[at].names.first() {
            None => PathBuf::new(),
            Some(name) => {
                let parent = paths.get(name.parent as usize);
                parent.map_or_else(PathBuf::new, |parent| {
                    parent.join(OsStr::from_bytes(&name.name))
                })
            }
        };
        match &mut tree.inodes[at].kind {
            InodeKind::Char(device) if names(sys, "char", *device) == Some(path.clone()) => {
                *device = DeviceNumber::default();
            }
            InodeKind::Block(device) if names(sys, "block", *device) == Some(path.clone()) => {
                *device = DeviceNumber::default();
            }
            _ => {}
        }
        paths.push(path);
    }
}

/// What the kernel calls the node of a device, from its uevent file.
pub(super) fn names(sys: &Path, kind: &str, device: DeviceNumber) -> Option<PathBuf> {
    let DeviceNumber { major, minor } = device;
    let file = sys.join(format!("dev/{kind}/{major}:{minor}/uevent"));
    let text = std::fs::read_to_string(file).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;
    use persist_mem::mounts::{Inode, Name};

    #[test]
    fn nodes_of_user_space_keep_their_numbers() {
        let tmp = TestDir::new("nodes");
        tmp.write(
            "sys/dev/char/10:200/uevent",
            "MAJOR=10\nDEVNAME=net/tun\nDEVMODE=0666\n",
        );
        let device = |minor| DeviceNumber { major: 10, minor };
        let inode = |kind, name: Option<(u32, &str)>| Inode {
            number: 0,
            names: name
                .map(|(parent, name)| Name {
                    parent,
                    position: 0,
                    name: name.into(),
                })
                .into_iter()
                .collect(),
            kind,
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            atime: (0, 0),
            allocated: 0,
            xattrs: Vec::new(),
        };
        let mut tree = Tree {
            inodes: vec![
                inode(InodeKind::Directory, None),
                inode(InodeKind::Directory, Some((0, "net"))),
                inode(InodeKind::Char(device(200)), Some((1, "tun"))),
                inode(InodeKind::Char(device(200)), Some((0, "mine"))),
                inode(InodeKind::Char(device(237)), Some((0, "loop-control"))),
            ],
        };
        forget_kernels(&mut tree, &tmp.path().join("sys"));
        let kinds: Vec<_> = tree.inodes[2..].iter().map(|one| &one.kind).collect();
        let expected = [DeviceNumber::default(), device(200), device(237)].map(InodeKind::Char);
        assert_eq!(kinds, expected.iter().collect::<Vec<_>>());
    }
}
