//! Directories that have been removed: made again, opened, and removed again.

use super::Opening;
use crate::ResurrectError;
use crate::error::Subject;
use crate::gone_path::Times;
use crate::restore::Restore;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, fchmod, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};
use persist_mem::manifest::{
    DescriptionId, DescriptionKind, FileTime, Manifest, RemovedDirectory, RemovedId,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use sys::Errno;

/// A description of each, until every description is open.
#[derive(Debug, Default)]
pub(crate) struct Directories {
    any: BTreeMap<RemovedId, OwnedFd>,
    /// Descriptions that have been read. Some file systems (ext4) take back such a place only as long as there is
    /// something to read.
    read: BTreeMap<DescriptionId, OwnedFd>,
}

impl Directories {
    /// Some description of a directory.
    pub(super) fn get(&self, id: RemovedId) -> Option<&OwnedFd> {
        self.any.get(&id)
    }
}

/// What is to be done in a directory before it is removed.
type Inside<'a> = &'a mut dyn FnMut(&OwnedFd) -> sys::Result<()>;

/// Makes all of them.
pub(super) fn make(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let all = restore.manifest;
    let mut made = Directories::default();
    for directory in all
        .removed
        .iter()
        .filter(|directory| directory.within.is_none())
    {
        make_one(all, directory, &mut made).map_err(|errno| ResurrectError::Description {
            subject: Some(Subject::Removed(directory.id)),
            what: format!("{} (removed)", String::from_utf8_lossy(&directory.path)),
            doing: "making it again",
            errno,
        })?;
    }
    restore.files.removed = made;
    Ok(())
}

/// Makes one, and what was in it.
fn make_one(
    all: &Manifest,
    directory: &RemovedDirectory,
    made: &mut Directories,
) -> sys::Result<()> {
    let own = Path::new(OsStr::from_bytes(&directory.path));
    let near = own.ancestors().skip(1).find(|dir| dir.is_dir());
    let times = near.map(|near| (near, Times::of(near)));
    let inside: Inside<'_> = &mut |fd| make_below(all, directory.id, fd, made);
    let fd = match brief(own, inside) {
        // The name is another one's by now, or what it was in is gone too: a hidden one will do.
        Err(Errno::ENOENT) => with_parents(own, inside)?,
        Err(Errno::EEXIST | Errno::ENOTDIR) => {
            let hidden = format!(".kupgrade-{}-{}", std::process::id(), directory.id.0);
            let above = own.ancestors().skip(1).find(|dir| dir.is_dir());
            under_its_name(&above.unwrap_or(Path::new("/")).join(hidden), own, inside)?
        }
        made => made?,
    };
    if let Some((near, Ok(times))) = times {
        times.put_back(near);
    }
    describe(directory, &fd)?;
    made.any.insert(directory.id, fd);
    Ok(())
}

/// Opens the descriptions of a directory that have been read, as long as it is there.
fn open_read(
    all: &Manifest,
    of: RemovedId,
    fd: &OwnedFd,
    made: &mut Directories,
) -> sys::Result<()> {
    let of_it = all.descriptions.iter().filter(|description| {
        matches!(description.kind, DescriptionKind::Removed(id) if id == of)
            && description.pos != 0
            && description.flags & super::O_PATH == 0
    });
    for description in of_it {
        let opened = sys::fds::reopen(fd, super::flags(description))?;
        sys::fds::seek(&opened, description.pos)?;
        made.read.insert(description.id, opened);
    }
    Ok(())
}

/// Makes those that were in a directory, which has not been removed yet.
fn make_below(
    all: &Manifest,
    above: RemovedId,
    fd: &OwnedFd,
    made: &mut Directories,
) -> sys::Result<()> {
    open_read(all, above, fd, made)?;
    for directory in all
        .removed
        .iter()
        .filter(|found| found.within == Some(above))
    {
        let name = Path::new(OsStr::from_bytes(&directory.path)).file_name();
        let name = Path::new(name.ok_or(Errno::ENOENT)?);
        let inside: Inside<'_> = &mut |fd| make_below(all, directory.id, fd, made);
        let new = brief_at(fd.as_fd(), name, inside)?;
        describe(directory, &new)?;
        made.any.insert(directory.id, new);
    }
    Ok(())
}

/// Owner, then mode (which chown cuts), then times, which all the rest changes.
fn describe(directory: &RemovedDirectory, fd: &OwnedFd) -> sys::Result<()> {
    let (uid, gid) = directory.owner;
    fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    fchmod(fd, Mode::from_bits_truncate(directory.mode))?;
    let time = |of: FileTime| TimeSpec::new(of.seconds, of.nanoseconds);
    let (access, change) = directory.times;
    futimens(fd, &time(access), &time(change))
}

/// The same when what it was in is gone as well: that is made for as long as it takes.
fn with_parents(own: &Path, inside: Inside<'_>) -> sys::Result<OwnedFd> {
    let mut made = Vec::new();
    let missing = own.ancestors().skip(1).take_while(|dir| !dir.is_dir());
    let missing: Vec<&Path> = missing.collect();
    let mut done = Ok(());
    for dir in missing.into_iter().rev() {
        done = nix::unistd::mkdir(dir, Mode::S_IRWXU);
        if done.is_err() {
            break;
        }
        made.push(dir);
    }
    let fd = done.and_then(|()| brief(own, inside));
    for dir in made.into_iter().rev() {
        // They were made here.
        let _ = std::fs::remove_dir(dir);
    }
    fd
}

/// The same below a directory `root` that is made for it, opened through a mount of that alone, so that it shows the
/// path it had.
fn under_its_name(root: &Path, own: &Path, inside: Inside<'_>) -> sys::Result<OwnedFd> {
    let below = own.strip_prefix("/").unwrap_or(own);
    let mut dirs: Vec<PathBuf> = below.ancestors().map(|dir| root.join(dir)).collect();
    dirs.reverse();
    let mut made = Vec::new();
    let opened = (|| {
        for dir in &dirs {
            nix::unistd::mkdir(dir, Mode::S_IRWXU)?;
            made.push(dir);
        }
        let directory = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(root, directory | OFlag::O_PATH, Mode::empty())?;
        let mount = sys::mountapi::clone_tree(root.as_fd())?;
        let fd = openat(&mount, below, directory, Mode::empty())?;
        for dir in made.iter().rev().skip(1) {
            std::fs::set_permissions(dir, Permissions::from_mode(RemovedDirectory::MADE_UP))
                .map_err(|_| Errno::EACCES)?;
        }
        inside(&fd).map(|()| fd)
    })();
    for dir in made.iter().rev() {
        // They were made here.
        let _ = std::fs::remove_dir(dir);
    }
    opened
}

/// A directory that is there just long enough to be opened, and for what is done inside of it.
fn brief(path: &Path, inside: Inside<'_>) -> sys::Result<OwnedFd> {
    brief_at(AT_FDCWD, path, inside)
}

fn brief_at(above: BorrowedFd<'_>, path: &Path, inside: Inside<'_>) -> sys::Result<OwnedFd> {
    mkdirat(above, path, Mode::S_IRWXU)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let fd = openat(above, path, flags, Mode::empty());
    let fd = fd.and_then(|fd| inside(&fd).map(|()| fd));
    unlinkat(above, path, UnlinkatFlags::RemoveDir).map_err(|_| Errno::EBUSY)?;
    fd
}

pub(super) fn open(opening: &Opening<'_, '_>, id: RemovedId) -> Result<OwnedFd, ResurrectError> {
    let removed = &opening.restore.files.removed;
    if let Some(read) = removed.read.get(&opening.description.id) {
        return sys::fds::duplicate(read, 3).map_err(opening.failed("duplicating it"));
    }
    let made = removed
        .get(id)
        .ok_or(Errno::ENOENT)
        .map_err(opening.failed("finding it"))?;
    sys::fds::reopen(made, opening.flags()).map_err(opening.failed("opening it"))
}
