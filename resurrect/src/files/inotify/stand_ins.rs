//! Files and directories on a file system of our own, watched under the numbers of others, and what is done
//! to them to cause an event.

use nix::dir::Dir;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{UnlinkatFlags, read, unlinkat, write};
use persist_mem::manifest::WatchEvent;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use sys::Errno;

const IN_ACCESS: u32 = 0x1;
const IN_MODIFY: u32 = 0x2;
const IN_ATTRIB: u32 = 0x4;
const IN_CLOSE_WRITE: u32 = 0x8;
const IN_CLOSE_NOWRITE: u32 = 0x10;
const IN_OPEN: u32 = 0x20;
const IN_MOVED_FROM: u32 = 0x40;
const IN_MOVED_TO: u32 = 0x80;
const IN_CREATE: u32 = 0x100;
const IN_DELETE: u32 = 0x200;
const IN_DELETE_SELF: u32 = 0x400;
const IN_MOVE_SELF: u32 = 0x800;
const IN_ALL_EVENTS: u32 = 0xfff;
const IN_IGNORED: u32 = 0x8000;
const IN_ISDIR: u32 = 0x4000_0000;
/// `IN_EXCL_UNLINK`: a mask must not be empty, and this is no event.
const NOTHING: u32 = 0x0400_0000;

/// Where what is moved out of sight goes.
const ATTIC: &str = "attic";

/// What is watched in place of the real files.
pub(super) struct StandIns<'a> {
    notify: &'a OwnedFd,
    root: OwnedFd,
    /// Which watches are of directories.
    directories: BTreeMap<i32, bool>,
    /// Those that are watched at present.
    watched: BTreeMap<i32, StandIn>,
}

struct StandIn {
    /// Its name below the root.
    path: PathBuf,
    /// A reference to it.
    file: OwnedFd,
}

impl<'a> StandIns<'a> {
    /// For these events.
    pub(super) fn new(notify: &'a OwnedFd, events: &[WatchEvent]) -> sys::Result<StandIns<'a>> {
        let mut directories = BTreeMap::new();
        for event in events {
            let directory = !event.name.is_empty() || event.mask & IN_ISDIR != 0;
            *directories.entry(event.number).or_insert(false) |= directory;
        }
        let stand_ins = StandIns {
            notify,
            root: sys::mountapi::detached_tmpfs()?,
            directories,
            watched: BTreeMap::new(),
        };
        mkdirat(stand_ins.root(), ATTIC, Mode::S_IRWXU)?;
        Ok(stand_ins)
    }

    /// The directory that they are in.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Causes the first of these events; returns how many there were, since some come together.
    pub(super) fn cause(&mut self, events: &[WatchEvent]) -> sys::Result<usize> {
        let Some((event, after)) = events.split_first() else {
            return Ok(0);
        };
        let number = event.number;
        let path = self.watched(number)?;
        if event.mask & IN_IGNORED != 0 {
            self.watched.remove(&number);
            sys::files::remove_watch(self.notify, number)?;
            return Ok(1);
        }
        let (kind, directory) = (event.mask & IN_ALL_EVENTS, event.mask & IN_ISDIR != 0);
        let child = match event.name.as_slice() {
            [] => path.clone(),
            name => path.join(OsStr::from_bytes(name)),
        };
        match kind {
            IN_DELETE_SELF => {
                self.empty(&path)?;
                self.mask(number, IN_DELETE_SELF)?;
                self.watched.remove(&number);
                self.remove(&path)?;
                // The end of its watch comes with it.
                return Ok(2);
            }
            IN_MOVE_SELF => {
                let moved = path.with_extension(if path.extension().is_some() {
                    ""
                } else {
                    "moved"
                });
                self.mask(number, IN_MOVE_SELF)?;
                renameat(self.root(), &path, self.root(), &moved)?;
                if let Some(watched) = self.watched.get_mut(&number) {
                    watched.path = moved;
                }
            }
            IN_CREATE => {
                self.clear(&child)?;
                self.mask(number, IN_CREATE)?;
                self.make(&child, directory)?;
            }
            IN_DELETE => {
                self.make(&child, directory)?;
                self.mask(number, IN_DELETE)?;
                self.remove(&child)?;
            }
            IN_MOVED_FROM => {
                self.make(&child, directory)?;
                let other = after
                    .first()
                    .filter(|other| other.mask & IN_MOVED_TO != 0 && other.cookie == event.cookie);
                return self.move_out(number, &child, other);
            }
            IN_MOVED_TO => {
                let attic = Path::new(ATTIC).join("one");
                self.clear(&child)?;
                self.make(&attic, directory)?;
                self.mask(number, IN_MOVED_TO)?;
                renameat(self.root(), &attic, self.root(), &child)?;
            }
            _ => {
                if !event.name.is_empty() {
                    self.make(&child, directory)?;
                }
                self.touch(number, &child, directory, kind)?;
            }
        }
        self.mask(number, NOTHING)?;
        Ok(1)
    }

    /// A move, and its other half when that is the next event. Both have a new cookie, the same one.
    fn move_out(
        &mut self,
        number: i32,
        child: &Path,
        other: Option<&WatchEvent>,
    ) -> sys::Result<usize> {
        let Some(other) = other else {
            let attic = Path::new(ATTIC).join("one");
            self.clear(&attic)?;
            self.mask(number, IN_MOVED_FROM)?;
            renameat(self.root(), child, self.root(), &attic)?;
            self.mask(number, NOTHING)?;
            return Ok(1);
        };
        let to = self
            .watched(other.number)?
            .join(OsStr::from_bytes(&other.name));
        self.clear(&to)?;
        if other.number == number {
            self.mask(number, IN_MOVED_FROM | IN_MOVED_TO)?;
        } else {
            self.mask(number, IN_MOVED_FROM)?;
            self.mask(other.number, IN_MOVED_TO)?;
        }
        renameat(self.root(), child, self.root(), &to)?;
        self.mask(number, NOTHING)?;
        self.mask(other.number, NOTHING)?;
        Ok(2)
    }

    /// What is done to a file without changing names.
    fn touch(&self, number: i32, path: &Path, directory: bool, kind: u32) -> sys::Result<()> {
        let read_only = if directory {
            OFlag::O_RDONLY | OFlag::O_DIRECTORY
        } else {
            OFlag::O_RDONLY
        };
        let open = |flags| openat(self.root(), path, flags | OFlag::O_CLOEXEC, Mode::empty());
        match kind {
            IN_OPEN => {
                self.mask(number, kind)?;
                open(read_only)?;
            }
            IN_CLOSE_NOWRITE | IN_CLOSE_WRITE => {
                let write = kind == IN_CLOSE_WRITE;
                let file = open(if write { OFlag::O_WRONLY } else { read_only })?;
                self.mask(number, kind)?;
                drop(file);
            }
            IN_MODIFY => {
                let file = open(OFlag::O_WRONLY)?;
                self.mask(number, kind)?;
                write(&file, b"x")?;
            }
            IN_ATTRIB => {
                let file = open(read_only)?;
                self.mask(number, kind)?;
                fchmod(&file, Mode::S_IRWXU)?;
            }
            IN_ACCESS if directory => {
                let mut entries = Dir::from_fd(open(read_only)?)?;
                self.mask(number, kind)?;
                entries.iter().next().transpose()?;
            }
            IN_ACCESS => {
                write(open(OFlag::O_WRONLY)?, b"x")?;
                let file = open(read_only)?;
                self.mask(number, kind)?;
                read(&file, &mut [0])?;
            }
            _ => return Err(Errno::ENOTSUP),
        }
        // Before anything that is still open is closed.
        self.mask(number, NOTHING)
    }

    /// Ends the watches that are left.
    pub(super) fn end(&mut self) -> sys::Result<()> {
        let left = core::mem::take(&mut self.watched);
        left.into_keys()
            .try_for_each(|number| sys::files::remove_watch(self.notify, number))
    }

    /// The path of what is watched under a number, from now on if it was not before.
    fn watched(&mut self, number: i32) -> sys::Result<PathBuf> {
        if let Some(watched) = self.watched.get(&number) {
            return Ok(watched.path.clone());
        }
        let path = PathBuf::from(number.to_string());
        let directory = self.directories.get(&number).copied();
        self.make(&path, directory.unwrap_or(false))?;
        let file = self.find(&path)?;
        super::watch_as(self.notify, &file, number, NOTHING)?;
        let watched = StandIn {
            path: path.clone(),
            file,
        };
        self.watched.insert(number, watched);
        Ok(path)
    }

    /// Which events of a watch are told from now on.
    fn mask(&self, number: i32, mask: u32) -> sys::Result<()> {
        let watched = self.watched.get(&number).ok_or(Errno::ENOENT)?;
        super::change(self.notify, &watched.file, number, mask)
    }

    fn find(&self, path: &Path) -> sys::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        openat(self.root(), path, flags, Mode::empty())
    }

    /// Makes a file or an empty directory, in the place of whatever is there.
    fn make(&self, path: &Path, directory: bool) -> sys::Result<()> {
        self.clear(path)?;
        if directory {
            mkdirat(self.root(), path, Mode::S_IRWXU)
        } else {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            openat(self.root(), path, flags, Mode::S_IRWXU).map(drop)
        }
    }

    /// Removes what is there, if anything is.
    fn clear(&self, path: &Path) -> sys::Result<()> {
        match self.remove(path) {
            Err(Errno::ENOENT) => Ok(()),
            result => result,
        }
    }

    /// Removes a file or an empty directory.
    fn remove(&self, path: &Path) -> sys::Result<()> {
        match unlinkat(self.root(), path, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => unlinkat(self.root(), path, UnlinkatFlags::RemoveDir),
            result => result,
        }
    }

    /// Removes what is in a directory; nothing for a file.
    fn empty(&self, path: &Path) -> sys::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut directory = match Dir::openat(self.root(), path, flags, Mode::empty()) {
            Err(Errno::ENOTDIR) => return Ok(()),
            directory => directory?,
        };
        for entry in directory.iter() {
            let name = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                self.remove(&path.join(OsStr::from_bytes(name.to_bytes())))?;
            }
        }
        Ok(())
    }
}
