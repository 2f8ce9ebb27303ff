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
    let mut work: Vec<Work<'_>> = Vec::new();
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
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let parts = by_file(work, threads);
    let opened: Vec<_> = match &parts[..] {
        [all] => vec![Ok(open_all(all))],
        parts => OneProcessor::without(restore.processor.as_ref(), || open_parts(parts)),
    };
    for part in opened {
        let part = part.map_err(|_| ResurrectError::own("opening files")(Errno::EFAULT))?;
        restore.files.opened.extend(part?);
    }
    Ok(())
}

/// What is to be opened, and the file it leads to.
type Work<'a> = (&'a Description, &'a FileRef);

/// Files that were opened.
type Opened = Result<Vec<(DescriptionId, OwnedFd)>, ResurrectError>;

/// Parts of the work, for at most `threads`. All that is open on a file is in one part: two processors that open the
/// same one take longer than one does.
fn by_file(mut work: Vec<Work<'_>>, threads: usize) -> Vec<Vec<Work<'_>>> {
    let enough = work.len().div_ceil(threads.max(1));
    work.sort_by_key(|(_, file)| &file.path);
    let mut parts: Vec<Vec<Work<'_>>> = vec![Vec::new()];
    for same in work.chunk_by(|(_, one), (_, two)| one.path == two.path) {
        match parts.last_mut() {
            Some(part) if part.len() < enough => part.extend(same),
            _ => parts.push(same.to_vec()),
        }
    }
    parts
}

fn open_parts(parts: &[Vec<Work<'_>>]) -> Vec<std::thread::Result<Opened>> {
    std::thread::scope(|scope| {
        let begun: Vec<_> = parts
            .iter()
            .map(|part| {
                let thread = std::thread::Builder::new();
                let begun = thread.spawn_scoped(scope, || open_all(part));
                // Where there are no more threads this one does it.
                begun.map_err(|_| part)
            })
            .collect();
        let end = |begun: Result<_, &Vec<_>>| match begun {
            Ok(thread) => std::thread::ScopedJoinHandle::join(thread),
            Err(part) => Ok(open_all(part)),
        };
        begun.into_iter().map(end).collect()
    })
}

fn open_all(part: &[Work<'_>]) -> Opened {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_open_on_a_file_is_in_one_part() {
        let path = |path: &str| FileRef {
            path: path.as_bytes().to_vec(),
            ..FileRef::default()
        };
        let description = Description {
            id: DescriptionId(0),
            flags: 0,
            pos: 0,
            owner: None,
            hint: 0,
            denied: 0,
            unread: None,
            kind: DescriptionKind::External { number: 0 },
        };
        let files = ["/b", "/a", "/b", "/c", "/b", "/d"].map(path);
        let work = || files.iter().map(|file| (&description, file)).collect();
        let names = |parts: Vec<Vec<Work<'_>>>| -> Vec<String> {
            let name = |(_, file): &Work<'_>| String::from_utf8_lossy(&file.path[1..]).into_owned();
            parts
                .iter()
                .map(|part| part.iter().map(name).collect())
                .collect()
        };
        assert_eq!(names(by_file(work(), 1)), ["abbbcd"]);
        assert_eq!(names(by_file(work(), 2)), ["abbb", "cd"]);
        assert_eq!(names(by_file(work(), 100)), ["a", "bbb", "c", "d"]);
    }
}
