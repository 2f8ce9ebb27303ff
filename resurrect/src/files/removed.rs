//! Directories that have been removed: made again, opened, and removed again.

use super::{Opening, path};
use crate::ResurrectError;
use crate::gone_path::Times;
use crate::restore::Restore;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fchmod, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};
use persist_mem::manifest::{RemovedDirectory, RemovedId};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use sys::Errno;

/// A description of each, until every description is open.
pub(super) type Directories = BTreeMap<RemovedId, OwnedFd>;

/// Makes all of them.
pub(super) fn make(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for directory in &restore.manifest.removed {
        let made = make_one(directory).map_err(|errno| ResurrectError::Description {
            what: format!("{} (removed)", String::from_utf8_lossy(&directory.path)),
            doing: "making it again",
            errno,
        })?;
        restore.files.removed.insert(directory.id, made);
    }
    Ok(())
}

fn make_one(directory: &RemovedDirectory) -> sys::Result<OwnedFd> {
    let own = Path::new(OsStr::from_bytes(&directory.path));
    let near = own.ancestors().skip(1).find(|dir| dir.is_dir());
    let times = near.map(|near| (near, Times::of(near)));
    let fd = match brief(own) {
        // The name is another one's by now, or what it was in is gone too: a hidden one will do.
        Err(Errno::ENOENT) => with_parents(own)?,
        Err(Errno::EEXIST | Errno::ENOTDIR) => {
            let hidden = format!(".kupgrade-{}-{}", std::process::id(), directory.id.0);
            let above = own.ancestors().skip(1).find(|dir| dir.is_dir());
            under_its_name(&above.unwrap_or(Path::new("/")).join(hidden), own)?
        }
        made => made?,
    };
    if let Some((near, Ok(times))) = times {
        times.put_back(near);
    }
    // Owner, then mode (which chown cuts), then times, which all the rest changes.
    let (uid, gid) = directory.owner;
    fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    fchmod(&fd, Mode::from_bits_truncate(directory.mode))?;
    let time = |ns: i64| TimeSpec::new(ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    let (access, change) = directory.times;
    futimens(&fd, &time(access), &time(change))?;
    Ok(fd)
}

/// The same when what it was in is gone as well: that is made for as long as it takes.
fn with_parents(own: &Path) -> sys::Result<OwnedFd> {
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
    let fd = done.and_then(|()| brief(own));
    for dir in made.into_iter().rev() {
        // They were made here.
        let _ = std::fs::remove_dir(dir);
    }
    fd
}

/// The same below a directory `root` that is made for it, opened through a mount of that alone, so that it shows the
/// path it had.
fn under_its_name(root: &Path, own: &Path) -> sys::Result<OwnedFd> {
    let inside = own.strip_prefix("/").unwrap_or(own);
    let mut dirs: Vec<PathBuf> = inside.ancestors().map(|dir| root.join(dir)).collect();
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
        openat(&mount, inside, directory, Mode::empty())
    })();
    for dir in made.iter().rev() {
        // They were made here.
        let _ = std::fs::remove_dir(dir);
    }
    opened
}

/// A directory that is there just long enough to be opened.
fn brief(path: &Path) -> sys::Result<OwnedFd> {
    nix::unistd::mkdir(path, Mode::S_IRWXU)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(path, flags, Mode::empty());
    std::fs::remove_dir(path).map_err(|_| Errno::EBUSY)?;
    fd
}

pub(super) fn open(opening: &Opening<'_, '_>, id: RemovedId) -> Result<OwnedFd, ResurrectError> {
    let made = opening.restore.files.removed.get(&id);
    let made = made
        .ok_or(Errno::ENOENT)
        .map_err(opening.failed("finding it"))?;
    let fd = sys::fds::reopen(made, opening.flags()).map_err(opening.failed("opening it"))?;
    path::seek(opening.description, &fd)?;
    Ok(fd)
}
