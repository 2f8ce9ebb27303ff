//! Files that have a path.

use super::place::{self, Identity};
use super::{Class, Open, gone, pseudo};
use crate::{FreezerError, proc};
use nix::sys::stat::SFlag;
use persist_mem::manifest::{DescriptionKind, FileRef};
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use sys::Pid;

pub(super) const DELETED: &[u8] = b" (deleted)";

/// A regular file or directory.
pub(super) fn capture(open: &Open<'_>) -> Result<Class, FreezerError> {
    if let Some(kind) = pseudo::capture(open)? {
        return Ok(Class::Plain(kind));
    }
    let path = Path::new(OsStr::from_bytes(open.link));
    if place::leads_to(path, identity(open)) {
        if writes(open)? && place::read_only(path) {
            return by_handle(open).map(Class::Plain);
        }
        return Ok(Class::Plain(DescriptionKind::Path(file(open))));
    }
    if open.stat.st_nlink == 0 && open.file_type() == SFlag::S_IFDIR {
        return Ok(Class::Removed);
    }
    by_handle(open).map(Class::Plain)
}

/// `O_PATH`: the file itself is not opened, so its kind does not matter.
pub(super) fn reference_only(open: &Open<'_>) -> Result<Class, FreezerError> {
    if let Some(kind) = pseudo::capture(open)? {
        return Ok(Class::Plain(kind));
    }
    let path = Path::new(OsStr::from_bytes(open.link));
    if place::leads_to(path, identity(open)) {
        return Ok(Class::Plain(DescriptionKind::Path(file(open))));
    }
    match (open.stat.st_nlink, open.file_type()) {
        (0, SFlag::S_IFDIR) => Ok(Class::Removed),
        (0, SFlag::S_IFIFO) => Ok(Class::Fifo),
        (_, SFlag::S_IFDIR) if sys::files::is_mount_root(open.copy).unwrap_or(false) => {
            // The file system may be another mount's as well, but not the mount.
            Err(open.refuse("it stands for a mount (open_tree(2), fsmount(2)) that is nowhere"))
        }
        (0, _) => gone::capture(open).map(Class::Plain),
        _ => by_handle(open).map(Class::Plain),
    }
}

/// Whether a description is open for writing.
fn writes(open: &Open<'_>) -> Result<bool, FreezerError> {
    const O_ACCMODE: u32 = 3;
    let flags = open.flags()?;
    let file = open.file_type() == SFlag::S_IFREG && flags & super::O_PATH == 0;
    Ok(file && flags & O_ACCMODE != 0)
}

/// Another file is where it was, or it cannot be opened there as it is; and it still has a name.
fn by_handle(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let old = open.link.strip_suffix(DELETED).unwrap_or(open.link);
    let near = place::parent(old).filter(|dir| dir.is_dir());
    let find = match writes(open)? {
        true => place::writable_directory_on,
        false => place::directory_on,
    };
    let mount = find(open.stat.st_dev, near).ok_or_else(|| {
        let why = "its path leads elsewhere or to a read-only mount, and its file system is not in \
                   reach otherwise";
        open.refuse(why)
    })?;
    let handle = sys::handle::of(open.copy)
        .ok()
        .filter(|_| place::lasting(&mount));
    let link = match handle {
        Some(_) => None,
        None => {
            let top = place::directory_on(open.stat.st_dev, None);
            let found = place::search(identity(open), near, top.as_deref().unwrap_or(&mount));
            let found =
                found.filter(|path| !writes(open).unwrap_or(false) || !place::read_only(path));
            let why = "another file has taken its place on disk, and no other name of it was found";
            Some(found.ok_or_else(|| open.refuse(why))?)
        }
    };
    Ok(DescriptionKind::Handle {
        file: FileRef {
            path: old.to_vec(),
            ..file(open)
        },
        link: link.map(|path| path.into_os_string().into_vec()),
        handle,
        mount: mount.into_os_string().into_vec(),
        unlinked: old != open.link,
    })
}

fn identity(open: &Open<'_>) -> Identity {
    Identity {
        dev: open.stat.st_dev,
        inode: open.stat.st_ino,
    }
}

/// A reference by the path of the link.
pub(super) fn file(open: &Open<'_>) -> FileRef {
    FileRef {
        path: open.link.to_vec(),
        inode: open.stat.st_ino,
        size: open.stat.st_size.cast_unsigned(),
    }
}

/// The file that a link of `/proc/PID` such as `cwd` or `exe` leads to.
///
/// # Errors
/// A refusal when it has been removed or replaced.
pub fn reference(pid: Pid, link: &str) -> Result<FileRef, FreezerError> {
    reference_by(pid, link, proc::link(pid, link)?)
}

/// The same where it is known to what path the link leads.
pub(crate) fn reference_by(pid: Pid, link: &str, path: Vec<u8>) -> Result<FileRef, FreezerError> {
    // Through the link: the file itself, wherever its path leads now.
    let held = proc::metadata(pid, link)?;
    let now = std::fs::metadata(OsStr::from_bytes(&path));
    if !now.is_ok_and(|now| (now.ino(), now.dev()) == (held.ino(), held.dev())) {
        let text = String::from_utf8_lossy(&path).into_owned();
        let why = format!("{text} has been removed or replaced, or lies outside of our root");
        return Err(FreezerError::refuse(pid, link, why));
    }
    Ok(FileRef {
        path,
        inode: held.ino(),
        size: held.size(),
    })
}
