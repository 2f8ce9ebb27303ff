//! Regular files and directories that have a path.

use crate::ResurrectError;
use crate::processor::OneProcessor;
use crate::restore::Restore;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::Mode;
use persist_mem::manifest::{Description, DescriptionId, DescriptionKind, FileRef};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;
use sys::Errno;

/// More files than this are opened by all processors.
const MANY: usize = 256;

/// Opens those that have a path side by side, when they are many.
pub(super) fn open_many(
    restore: &mut Restore<'_>,
    descriptions: &[&Description],
) -> Result<(), ResurrectError> {
    let mut work: Vec<(&Description, &FileRef)> = Vec::new();
    for description in descriptions {
        if let DescriptionKind::Path(file) = &description.kind
            && !restore.files.opened.contains_key(&description.id)
        {
            work.push((description, file));
        }
    }
    if work.len() <= MANY {
        return Ok(());
    }
    let opened: Vec<_> = OneProcessor::without(restore.processor.as_ref(), || {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let parts = work.chunks(work.len().div_ceil(threads));
        std::thread::scope(|scope| {
            let begin = |part| {
                let thread = std::thread::Builder::new();
                // Where there are no more threads this one does it.
                thread
                    .spawn_scoped(scope, move || open_all(part))
                    .map_err(|_| part)
            };
            let parts: Vec<_> = parts.map(begin).collect();
            let end = |begun: Result<_, _>| match begun {
                Ok(thread) => std::thread::ScopedJoinHandle::join(thread),
                Err(part) => Ok(open_all(part)),
            };
            parts.into_iter().map(end).collect()
        })
    });
    for part in opened {
        let part = part.map_err(|_| ResurrectError::own("opening files")(Errno::EFAULT))?;
        restore.files.opened.extend(part?);
    }
    Ok(())
}

fn open_all(
    part: &[(&Description, &FileRef)],
) -> Result<Vec<(DescriptionId, OwnedFd)>, ResurrectError> {
    let mut opened = Vec::with_capacity(part.len());
    // What has just been looked at need not be for the next description of it.
    let mut checked = None;
    let mut directory = Directory::default();
    for (description, file) in part {
        // What cannot be opened here is tried once more by itself, which tells why.
        if checked != Some(file) && check_same(file).is_err() {
            continue;
        }
        checked = Some(file);
        let from = directory.of(&file.path);
        if let Ok(fd) = open_checked(description, file, from) {
            opened.push((description.id, fd));
        }
    }
    Ok(opened)
}

/// The directory of the file before, open if that was the second one in it: the way there is looked up once.
#[derive(Default)]
struct Directory<'a> {
    path: Option<&'a Path>,
    fd: Option<OwnedFd>,
}

impl<'a> Directory<'a> {
    /// Where to open a path from, and the rest of it.
    fn of(&mut self, path: &'a [u8]) -> (BorrowedFd<'_>, &'a Path) {
        let path = Path::new(OsStr::from_bytes(path));
        if self.path != path.parent() {
            self.path = path.parent();
            self.fd = None;
        } else if let (None, Some(parent)) = (&self.fd, self.path) {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            self.fd = nix::fcntl::open(parent, flags, Mode::empty()).ok();
        }
        match (&self.fd, path.file_name()) {
            (Some(fd), Some(name)) => (fd.as_fd(), Path::new(name)),
            _ => (AT_FDCWD, path),
        }
    }
}

pub(super) fn open(description: &Description, file: &FileRef) -> Result<OwnedFd, ResurrectError> {
    check_same(file)?;
    open_checked(description, file, Directory::default().of(&file.path))
}

/// Opens a path that leads to the file that was saved ([`check_same`]).
fn open_checked(
    description: &Description,
    file: &FileRef,
    (from, rest): (BorrowedFd<'_>, &Path),
) -> Result<OwnedFd, ResurrectError> {
    // Regular files take `O_ASYNC` only here, and signal nothing.
    let inert = OFlag::from_bits_retain(description.flags.cast_signed()) & OFlag::O_ASYNC;
    let flags = super::flags(description) | inert;
    let path = Path::new(OsStr::from_bytes(&file.path));
    let fd = match nix::fcntl::openat(from, rest, flags, Mode::empty()) {
        Err(Errno::EPERM) => in_spite_of_attributes(path, flags),
        opened => opened,
    };
    let fd = fd.map_err(super::failed(description, "opening it"))?;
    seek(description, &fd)?;
    Ok(fd)
}

/// A file that must not be changed any more, or only grow (chattr(1)), since it was opened: it may for a moment.
fn in_spite_of_attributes(path: &Path, flags: OFlag) -> sys::Result<OwnedFd> {
    /// `FS_IMMUTABLE_FL`, `FS_APPEND_FL` (include/uapi/linux/fs.h).
    const KEPT_AS_IT_IS: u32 = 0x10 | 0x20;
    // Another thread may open the same file.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock();
    let reading = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = nix::fcntl::open(path, reading, Mode::empty())?;
    let own = sys::files::inode_flags(&file)?;
    if own & KEPT_AS_IT_IS == 0 {
        return Err(Errno::EPERM);
    }
    sys::files::set_inode_flags(&file, own & !KEPT_AS_IT_IS)?;
    let opened = nix::fcntl::open(path, flags, Mode::empty());
    sys::files::set_inode_flags(&file, own)?;
    opened
}

/// Sets the offset, where there is one.
pub(super) fn seek(description: &Description, fd: &OwnedFd) -> Result<(), ResurrectError> {
    match description.pos {
        0 => Ok(()),
        _ if description.flags & super::O_PATH != 0 => Ok(()),
        pos => match description.unread {
            None => sys::fds::seek(fd, pos),
            Some(unread) => leave_unread(fd, unread as usize),
        }
        .map_err(super::failed(description, "setting its offset")),
    }
}

/// Goes to where so many entries of a directory follow.
fn leave_unread(directory: &OwnedFd, unread: usize) -> sys::Result<()> {
    let offsets = sys::dirents::offsets(directory)?;
    let read = offsets.len().saturating_sub(unread);
    let place = read.checked_sub(1).and_then(|last| offsets.get(last));
    sys::fds::seek(directory, place.copied().unwrap_or(0))
}

/// The path must still lead to the file that was saved.
pub(crate) fn check_same(file: &FileRef) -> Result<(), ResurrectError> {
    let changed = |why: String| ResurrectError::changed(file.to_string(), why);
    // The last component may be a link itself (`O_PATH | O_NOFOLLOW`).
    let found = std::fs::symlink_metadata(OsStr::from_bytes(&file.path))
        .map_err(|e| changed(e.to_string()))?;
    // A socket's node was made again with it.
    if [0, found.ino()].contains(&file.inode) || found.file_type().is_socket() {
        Ok(())
    } else {
        Err(changed(
            "another file has taken the place of the one that was saved".into(),
        ))
    }
}

/// A reference to a socket's node (`O_PATH`), which is there when the socket is.
pub(super) fn of_socket(description: &Description) -> bool {
    let DescriptionKind::Path(file) = &description.kind else {
        return false;
    };
    let found = || std::fs::symlink_metadata(OsStr::from_bytes(&file.path));
    description.flags & super::O_PATH != 0
        && !found().is_ok_and(|found| !found.file_type().is_socket())
}
