//! File systems in memory: a tree of inodes taken down, and put up again.
//!
//! Sockets come back as names only; whoever owned one binds it again (and removes the name
//! before). Contents of file systems mounted below are not followed.

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, lseek64};
use persist_mem::mounts::{DeviceNumber, Inode, InodeKind, Name, Piece, Tree, Xattr};
use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use sys::{Errno, xattr};

/// Why a tree cannot be taken or put up.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A file cannot be read, made or changed.
    #[error("{}: {what}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// More contents than allowed.
    #[error("{} holds more than {limit} bytes; it was full at {}", root.display(), path.display())]
    TooLarge {
        /// The tree.
        root: PathBuf,
        /// The file that did not fit.
        path: PathBuf,
        /// Bytes allowed.
        limit: u64,
    },
    /// An inode without a place.
    #[error("the recorded tree is damaged: inode {0} has no parent before it")]
    Damaged(usize),
}

type Result<T> = std::result::Result<T, TreeError>;

fn fail(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> TreeError {
    move |source| TreeError::File {
        path: path.to_owned(),
        what,
        source,
    }
}

fn fail_errno(path: &Path, what: &'static str) -> impl FnOnce(Errno) -> TreeError {
    move |errno| fail(path, what)(errno.into())
}

/// Takes down everything below `root` on the same file system, with at most `limit` bytes of
/// file contents.
///
/// # Errors
/// [`TreeError`]. Files that vanish meanwhile are left out.
pub fn archive(root: &Path, limit: u64) -> Result<Tree> {
    let meta = std::fs::symlink_metadata(root).map_err(fail(root, "stat"))?;
    let mut walk = Walk {
        root: root.to_owned(),
        device: meta.dev(),
        limit,
        left: limit,
        seen: HashMap::new(),
        tree: Tree::default(),
    };
    walk.add(root, &meta, None)?;
    Ok(walk.tree)
}

struct Walk {
    root: PathBuf,
    device: u64,
    limit: u64,
    left: u64,
    /// Inodes with more than one name, by number.
    seen: HashMap<u64, usize>,
    tree: Tree,
}

impl Walk {
    fn add(&mut self, path: &Path, meta: &Metadata, name: Option<Name>) -> Result<()> {
        if let (Some(at), Some(name)) = (self.seen.get(&meta.ino()), &name) {
            self.tree.inodes[*at].names.push(name.clone());
            return Ok(());
        }
        let kind = self.kind(path, meta)?;
        let directory = kind == InodeKind::Directory;
        let at = self.tree.inodes.len();
        self.tree.inodes.push(Inode {
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
        let mut entries: Vec<OsString> = std::fs::read_dir(directory)
            .map_err(fail(directory, "list"))?
            .flatten()
            .map(|e| e.file_name())
            .collect();
        entries.sort();
        for entry in entries {
            let path = directory.join(&entry);
            let meta = match std::fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(fail(&path, "stat"))?,
            };
            let name = Name {
                parent,
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
        let kind = if meta.is_dir() {
            InodeKind::Directory
        } else {
            InodeKind::File {
                size: 0,
                pieces: Vec::new(),
            }
        };
        self.tree.inodes.push(Inode {
            names: vec![name],
            mode: if meta.is_dir() { 0o755 } else { 0o644 },
            kind,
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
                    root: self.root.clone(),
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

/// What to do with names that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// They are an error, but for the root.
    Refuse,
    /// They stay and only get the recorded owner, mode and attributes, and device nodes without a number are not
    /// made: for `/dev`, where the new kernel makes its own nodes.
    Keep,
}

/// Puts a tree up below `root`, an existing directory.
///
/// # Errors
/// [`TreeError`], at the first failure.
pub fn unpack(tree: &Tree, root: &Path, existing: Existing) -> Result<()> {
    let mut paths: Vec<Option<PathBuf>> = vec![None; tree.inodes.len()];
    for (at, inode) in tree.inodes.iter().enumerate() {
        let path = match inode.names.first() {
            None if at == 0 => root.to_owned(),
            None => return Err(TreeError::Damaged(at)),
            Some(name) => place(&paths, name).ok_or(TreeError::Damaged(at))?,
        };
        if make(inode, &path, at == 0, existing)? {
            dress(inode, &path, existing)?;
            paths[at] = Some(path);
        }
    }
    // A further name may be in a directory that comes later.
    for (at, inode) in tree.inodes.iter().enumerate() {
        let Some(path) = &paths[at] else { continue };
        for name in inode.names.iter().skip(1) {
            let other = place(&paths, name).ok_or(TreeError::Damaged(at))?;
            if existing == Existing::Refuse || std::fs::symlink_metadata(&other).is_err() {
                std::fs::hard_link(path, &other).map_err(fail(&other, "link"))?;
            }
        }
    }
    // Filling a directory changes its time, so times come last.
    for (inode, path) in tree.inodes.iter().zip(&paths) {
        if let Some(path) = path {
            set_time(inode, path)?;
        }
    }
    Ok(())
}

/// Path of a name; `None` when it is no plain name or its directory comes later.
fn place(paths: &[Option<PathBuf>], name: &Name) -> Option<PathBuf> {
    let plain = !name.name.is_empty()
        && !name.name.contains(&b'/')
        && name.name != b"."
        && name.name != b"..";
    let parent = paths.get(name.parent as usize)?.as_ref()?;
    plain.then(|| parent.join(OsStr::from_bytes(&name.name)))
}

/// Makes one inode; false when it is deliberately not there.
fn make(inode: &Inode, path: &Path, root: bool, existing: Existing) -> Result<bool> {
    let keep = existing == Existing::Keep;
    if root || (keep && std::fs::symlink_metadata(path).is_ok()) {
        return Ok(true);
    }
    match &inode.kind {
        InodeKind::Directory => std::fs::create_dir(path).map_err(fail(path, "make"))?,
        InodeKind::File { size, pieces } => write_file(path, *size, pieces, inode.allocated)?,
        InodeKind::Symlink(target) => {
            std::os::unix::fs::symlink(OsStr::from_bytes(target), path)
                .map_err(fail(path, "make link"))?;
        }
        InodeKind::Fifo => node(path, SFlag::S_IFIFO, DeviceNumber::default())?,
        InodeKind::Socket => node(path, SFlag::S_IFSOCK, DeviceNumber::default())?,
        InodeKind::Char(device) | InodeKind::Block(device)
            if keep && *device == DeviceNumber::default() =>
        {
            return Ok(false);
        }
        InodeKind::Char(device) => node(path, SFlag::S_IFCHR, *device)?,
        InodeKind::Block(device) => node(path, SFlag::S_IFBLK, *device)?,
    }
    Ok(true)
}

fn write_file(path: &Path, size: u64, pieces: &[Piece], allocated: u64) -> Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(fail(path, "make"))?;
    file.set_len(size).map_err(fail(path, "set size"))?;
    for piece in pieces {
        file.write_all_at(&piece.bytes, piece.offset)
            .map_err(fail(path, "write"))?;
    }
    allocate(path, &file, pieces, allocated)
}

fn allocate(path: &Path, file: &File, pieces: &[Piece], allocated: u64) -> Result<()> {
    let there = file.metadata().map_err(fail(path, "look at"))?.blocks() * 512;
    let filled = pieces
        .iter()
        .map(|one| (one.offset, one.bytes.len() as u64));
    sys::holes::allocate(file, filled, allocated.saturating_sub(there))
        .map_err(fail_errno(path, "allocate blocks"))
}

fn node(path: &Path, kind: SFlag, device: DeviceNumber) -> Result<()> {
    let number = makedev(u64::from(device.major), u64::from(device.minor));
    mknod(path, kind, Mode::from_bits_truncate(0o600), number)
        .map_err(fail_errno(path, "make node"))
}

/// Owner, then mode (which chown cuts), then attributes.
fn dress(inode: &Inode, path: &Path, existing: Existing) -> Result<()> {
    std::os::unix::fs::lchown(path, Some(inode.uid), Some(inode.gid))
        .map_err(fail(path, "set owner"))?;
    if !matches!(inode.kind, InodeKind::Symlink(_)) {
        std::fs::set_permissions(path, Permissions::from_mode(inode.mode))
            .map_err(fail(path, "set mode"))?;
    }
    for attribute in &inode.xattrs {
        let Ok(name) = CString::new(attribute.name.clone()) else {
            continue;
        };
        match xattr::set(path, &name, &attribute.value) {
            Ok(()) => {}
            Err(errno) if existing == Existing::Keep => {
                log::debug!("{}: attribute {name:?}: {errno}", path.display());
            }
            Err(errno) => return Err(fail_errno(path, "set attribute")(errno)),
        }
    }
    Ok(())
}

fn set_time(inode: &Inode, path: &Path) -> Result<()> {
    let spec = |(seconds, rest): (i64, u32)| TimeSpec::new(seconds, i64::from(rest));
    let (access, change) = (spec(inode.atime), spec(inode.mtime));
    nix::sys::stat::utimensat(
        nix::fcntl::AT_FDCWD,
        path,
        &access,
        &change,
        nix::sys::stat::UtimensatFlags::NoFollowSymlink,
    )
    .map_err(fail_errno(path, "set time"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;
    use std::os::unix::fs::symlink;

    /// A tree with one of everything that needs no privilege (nodes do, and tests run as root).
    fn build(at: &Path) {
        std::fs::create_dir_all(at.join("dir/empty")).unwrap();
        std::fs::write(at.join("dir/file"), b"contents").unwrap();
        std::fs::hard_link(at.join("dir/file"), at.join("linked")).unwrap();
        std::fs::create_dir(at.join("later")).unwrap();
        std::fs::hard_link(at.join("dir/file"), at.join("later/too")).unwrap();
        symlink("dir/file", at.join("link")).unwrap();
        let sparse = File::create(at.join("sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        sparse.write_all_at(b"tail", 700_000).unwrap();
        node(&at.join("fifo"), SFlag::S_IFIFO, DeviceNumber::default()).unwrap();
        node(&at.join("socket"), SFlag::S_IFSOCK, DeviceNumber::default()).unwrap();
        let odd = at.join(OsStr::from_bytes(b"odd \xff\nname"));
        std::fs::write(&odd, b"").unwrap();
        std::fs::set_permissions(&odd, Permissions::from_mode(0o4751)).unwrap();
        let _ = xattr::set(&odd, c"user.note", b"value");
        std::fs::set_permissions(at.join("dir"), Permissions::from_mode(0o1777)).unwrap();
    }

    #[test]
    fn a_tree_comes_back_as_it_was() {
        let tmp = TestDir::new("tree");
        let (one, two) = (tmp.path().join("one"), tmp.path().join("two"));
        std::fs::create_dir(&one).unwrap();
        std::fs::create_dir(&two).unwrap();
        build(&one);
        let tree = archive(&one, 1 << 20).unwrap();
        unpack(&tree, &two, Existing::Refuse).unwrap();
        assert_eq!(archive(&two, 1 << 20).unwrap(), tree);
        let meta = |p: &str| std::fs::symlink_metadata(two.join(p)).unwrap();
        assert_eq!(meta("linked").ino(), meta("dir/file").ino());
        assert_eq!(meta("dir").mode() & 0o7777, 0o1777);
        assert!(meta("fifo").file_type().is_fifo() && meta("socket").file_type().is_socket());
        assert!(meta("sparse").blocks() * 512 < 1 << 19, "holes stay holes");
        assert_eq!(
            meta("dir").mtime(),
            std::fs::metadata(one.join("dir")).unwrap().mtime()
        );
        assert!(
            unpack(&tree, &two, Existing::Refuse).is_err(),
            "names exist"
        );
        unpack(&tree, &two, Existing::Keep).unwrap();
    }

    #[test]
    fn too_much_is_refused_by_name() {
        let tmp = TestDir::new("large");
        tmp.write("a/big", vec![1; 5000]);
        let error = archive(tmp.path(), 4999).unwrap_err().to_string();
        assert!(error.contains("a/big") && error.contains("4999"), "{error}");
    }

    #[test]
    fn a_damaged_tree_cannot_write_elsewhere() {
        let tmp = TestDir::new("damaged");
        let mut tree = archive(tmp.path(), 0).unwrap();
        let mut evil = tree.inodes[0].clone();
        evil.names = vec![Name {
            parent: 0,
            name: b"../evil".to_vec(),
        }];
        tree.inodes.push(evil);
        assert!(matches!(
            unpack(&tree, tmp.path(), Existing::Refuse),
            Err(TreeError::Damaged(1))
        ));
    }
}
