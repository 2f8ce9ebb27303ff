//! Mounted file systems as the manifest holds them. Capturing and restoring are `initramfs`'s.

use serde::{Deserialize, Serialize};

/// The mounts of one mount namespace, and what is needed to make them again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountTable {
    /// As /proc/PID/mountinfo lists them.
    pub mounts: Vec<Mount>,
    /// Identities of the block devices among them.
    pub disks: Vec<Disk>,
    /// Contents of those that live in memory.
    pub trees: Vec<MemoryTree>,
}

/// One line of mountinfo (proc_pid_mountinfo(5)), escapes undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Mount ID on the old kernel.
    pub id: u32,
    /// Mount ID of the parent.
    pub parent: u32,
    /// `st_dev` of the file system.
    pub device: DeviceNumber,
    /// The directory of the file system that is mounted; `/` for all of it.
    #[serde(with = "serde_bytes")]
    pub root: Vec<u8>,
    /// Where, seen from the namespace's root.
    #[serde(with = "serde_bytes")]
    pub point: Vec<u8>,
    /// Per-mount options as `MS_*` bits (linux/mount.h).
    pub flags: u64,
    /// Peer group, when shared.
    pub shared: Option<u32>,
    /// Peer group this mount receives from.
    pub master: Option<u32>,
    /// Whether it may not be bind-mounted.
    pub unbindable: bool,
    /// File system type, with its subtype (`fuse.sshfs`).
    pub kind: String,
    /// What mount(8) shows as the source.
    #[serde(with = "serde_bytes")]
    pub source: Vec<u8>,
    /// Options of the file system, comma-separated.
    #[serde(with = "serde_bytes")]
    pub super_options: Vec<u8>,
}

/// Major and minor number.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct DeviceNumber {
    /// Major number; 0 for file systems without a device.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// A mounted block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its `st_dev` on the old kernel.
    pub device: DeviceNumber,
    /// Name of its node there, `vda1`.
    pub name: String,
    /// File system type in its superblock.
    pub kind: String,
    /// UUID in its superblock.
    pub uuid: String,
}

/// Everything in one file system that lives in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryTree {
    /// Which one.
    pub device: DeviceNumber,
    /// Its inodes.
    pub tree: Tree,
}

/// A tree of inodes. The first is the root directory; the directory of an inode's first name comes
/// before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// All of them.
    pub inodes: Vec<Inode>,
}

/// One inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// Its number (`st_ino`).
    pub number: u64,
    /// Where it is found: more than one for hard links, none for the root.
    pub names: Vec<Name>,
    /// What it is.
    pub kind: InodeKind,
    /// Permission bits with setuid, setgid, sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the contents: seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// Last access: seconds, nanoseconds.
    pub atime: (i64, u32),
    /// Bytes that are allocated, with those of fallocate(2) that hold nothing.
    pub allocated: u64,
    /// Extended attributes.
    pub xattrs: Vec<Xattr>,
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// Index of the directory in [`Tree::inodes`].
    pub parent: u32,
    /// How many entries the directory lists before it.
    pub position: u32,
    /// Its name there.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InodeKind {
    /// Directory.
    Directory,
    /// Regular file: its size and the parts that are not holes.
    File {
        /// Bytes.
        size: u64,
        /// Contents, ascending.
        pieces: Vec<Piece>,
    },
    /// Symbolic link and its target.
    Symlink(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Named pipe.
    Fifo,
    /// Name of a unix socket.
    Socket,
    /// Character device.
    Char(DeviceNumber),
    /// Block device.
    Block(DeviceNumber),
}

/// Part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Where it starts.
    pub offset: u64,
    /// Contents.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// Extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattr {
    /// Full name, `user.note`, without a NUL.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}
