//! Making one inode.

use super::unpack::Existing;
use super::{Result, fail, fail_errno};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::time::TimeSpec;
use persist_mem::mounts::{DeviceNumber, Inode, InodeKind, Piece};
use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use sys::xattr;

/// Makes an inode with its contents.
pub(super) fn make(inode: &Inode, path: &Path) -> Result<()> {
    match &inode.kind {
        InodeKind::Directory => std::fs::create_dir(path).map_err(fail(path, "make")),
        InodeKind::File { size, pieces } => write_file(path, *size, pieces, inode.allocated),
        InodeKind::Symlink(target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), path)
            .map_err(fail(path, "make link")),
        InodeKind::Fifo => node(path, SFlag::S_IFIFO, DeviceNumber::default()),
        InodeKind::Socket => node(path, SFlag::S_IFSOCK, DeviceNumber::default()),
        InodeKind::Char(device) => node(path, SFlag::S_IFCHR, *device),
        InodeKind::Block(device) => node(path, SFlag::S_IFBLK, *device),
    }
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

pub(super) fn node(path: &Path, kind: SFlag, device: DeviceNumber) -> Result<()> {
    let number = makedev(u64::from(device.major), u64::from(device.minor));
    mknod(path, kind, Mode::from_bits_truncate(0o600), number)
        .map_err(fail_errno(path, "make node"))
}

/// Owner, then mode (which chown cuts), then attributes.
pub(super) fn dress(inode: &Inode, path: &Path, existing: Existing) -> Result<()> {
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

pub(super) fn set_time(inode: &Inode, path: &Path) -> Result<()> {
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
