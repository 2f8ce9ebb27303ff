//! Taking a tree down.

use super::{Result, TreeError, fail, fail_errno};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek64};
use persist_mem::mounts::{DeviceNumber, Inode, InodeKind, Name, Piece, Tree, Xattr};
use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use sys::{Errno, xattr};

/// Takes down everything below `root` on the same file system, also what is mounted over, with at
/// most `limit` bytes of file contents.
///
/// # Errors
/// [`TreeError`]. Files that vanish meanwhile are left out.
pub fn archive(root: &Path, limit: u64) -> Result<Tree> {
    let top = open(root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let top = top.map_err(fail_errno(root, "open"))?;
    // Nothing is mounted in a copy of the mount alone (open_tree(2)). Of those that may not be bound there is none.
    let alone = match sys::mountapi::clone_tree(top.as_fd()) {
        Err(Errno::EINVAL) => top,
        copy => copy.map_err(fail_errno(root, "open_tree"))?,
    };
    let device = nix::sys::stat::fstat(&alone).map_err(fail_errno(root, "stat"))?;
    let mut walk = Walk {
        shown: root.to_owned(),
        device: device.st_dev,
        limit,
        left: limit,
        seen: HashMap::new(),
        tree: Tree::default(),
    };
    let root = PathBuf::from(format!("/proc/self/fd/{}/.", alone.as_raw_fd()));
    let added = std::fs::symlink_metadata(&root)
        .map_err(fail(&root, "stat"))
        .and_then(|meta| walk.add(&root, &meta, None));
    match added {
        Ok(()) => Ok(walk.tree),
        Err(error) => Err(walk.shown(error, &root)),
    }
}

struct Walk {
    /// The root as everybody knows it.
    shown: PathBuf,
    device: u64,
    limit: u64,
    left: u64,
    /// Inodes with more than one name, by number.
    seen: HashMap<u64, usize>,
    tree: Tree,
}

impl Walk {
    /// An error about what everybody knows by another path.
    fn shown(&self, mut error: TreeError, root: &Path) -> TreeError {
        if let TreeError::File { path, .. } | TreeError::TooLarge { path, .. } = &mut error
            && let Ok(rest) = path.strip_prefix(root)
        {
            *path = self.shown.join(rest);
        }
        error
    }

    fn add(&mut self, path: &Path, meta: &Metadata, name: Option<Name>) -> Result<()> {
        if let (Some(at), Some(name)) = (self.seen.get(&meta.ino()), &name) {
            self.tree.inodes[*at].names.push(name.clone());
            return Ok(());
        }
        let kind = self.kind(path, meta)?;
        let directory = kind == InodeKind::Directory;
        let at = self.tree.inodes.len();
        self.tree.inodes.push(Inode {
            number: meta.ino(),
            names: name.into_iter().collect(),
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0)),
            atime: (meta.atime(), u32::try_from(meta.atime_nsec()).unwrap_or(0)),
            allocated: meta.blocks() * 512,
            xattrs: xattrs(path)?,
        });
        if directory {
            return self.add_entries(path, u32::try_from(at).unwrap_or(u32::MAX));
        }
        if meta.nlink() > 1 {
            self.seen.insert(meta.ino(), at);
        }
        Ok(())
    }

    fn add_entries(&mut self, directory: &Path, parent: u32) -> Result<()> {
        let entries = std::fs::read_dir(directory).map_err(fail(directory, "list"))?;
        let entries: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        for (position, entry) in (0..).zip(entries) {
            let path = directory.join(&entry);
            let meta = match std::fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(fail(&path, "stat"))?,
            };
            let name = Name {
                parent,
                position,
                name: entry.into_vec(),
            };
            if meta.dev() == self.device {
                self.add(&path, &meta, Some(name))?;
            } else if meta.is_dir() || meta.is_file() {
                self.add_mount_point(&meta, name);
            }
        }
        Ok(())
    }

    /// Something is mounted here: what lies below cannot be seen; its kind is known.
    fn add_mount_point(&mut self, meta: &Metadata, name: Name) {
        let file = InodeKind::File {
            size: 0,
            pieces: Vec::new(),
        };
        self.tree.inodes.push(Inode {
            number: 0,
            names: vec![name],
            mode: if meta.is_dir() { 0o755 } else { 0o644 },
            kind: match meta.is_dir() {
                true => InodeKind::Directory,
                false => file,
            },
            uid: 0,
            gid: 0,
            mtime: (meta.mtime(), 0),
            atime: (meta.atime(), 0),
            allocated: 0,
            xattrs: Vec::new(),
        });
    }

    fn kind(&mut self, path: &Path, meta: &Metadata) -> Result<InodeKind> {
        let kind = meta.file_type();
        Ok(if kind.is_dir() {
            InodeKind::Directory
        } else if kind.is_symlink() {
            let target = std::fs::read_link(path).map_err(fail(path, "read link"))?;
            InodeKind::Symlink(target.into_os_string().into_vec())
        } else if kind.is_fifo() {
            InodeKind::Fifo
        } else if kind.is_socket() {
            InodeKind::Socket
        } else if kind.is_char_device() {
            InodeKind::Char(device_number(meta.rdev()))
        } else if kind.is_block_device() {
            InodeKind::Block(device_number(meta.rdev()))
        } else {
            // Reading is not an access that anybody may see.
            let quiet = nix::libc::O_NOATIME;
            let file = OpenOptions::new().read(true).custom_flags(quiet).open(path);
            let file = file.map_err(fail(path, "open"))?;
            let pieces = self.pieces(path, &file)?;
            InodeKind::File {
                size: meta.len(),
                pieces,
            }
        })
    }

    /// The parts of a file that hold data (lseek(2), `SEEK_DATA` and `SEEK_HOLE`).
    fn pieces(&mut self, path: &Path, file: &File) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut at = 0;
        loop {
            let start = match lseek64(file, at, Whence::SeekData) {
                Ok(start) => start,
                Err(Errno::ENXIO) => return Ok(pieces),
                Err(errno) => return Err(fail_errno(path, "find data")(errno)),
            };
            at = lseek64(file, start, Whence::SeekHole).map_err(fail_errno(path, "find hole"))?;
            let (offset, len) = (start.cast_unsigned(), (at - start).cast_unsigned());
            self.left = self
                .left
                .checked_sub(len)
                .ok_or_else(|| TreeError::TooLarge {
                    root: self.shown.clone(),
                    path: path.to_owned(),
                    limit: self.limit,
                })?;
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut bytes, offset)
                .map_err(fail(path, "read"))?;
            pieces.push(Piece { offset, bytes });
        }
    }
}

fn device_number(device: u64) -> DeviceNumber {
    let number = |n: u64| u32::try_from(n).unwrap_or(0);
    DeviceNumber {
        major: number(nix::sys::stat::major(device)),
        minor: number(nix::sys::stat::minor(device)),
    }
}

fn xattrs(path: &Path) -> Result<Vec<Xattr>> {
    let mut out = Vec::new();
    for name in xattr::list(path).map_err(fail_errno(path, "list attributes"))? {
        match xattr::get(path, &name) {
            Ok(value) => out.push(Xattr {
                name: name.into_bytes(),
                value,
            }),
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(fail_errno(path, "read attribute")(errno)),
        }
    }
    Ok(out)
}
