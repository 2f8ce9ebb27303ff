//! Names of unix sockets.
//!
//! The kernel keeps a name as it was given to bind(2), which need not be where the file is now: it may
//! have been relative, moved, removed. So each name is bound below a root of its own, and the file goes
//! to its place when everything is connected.

use super::Making;
use crate::ResurrectError;
use nix::libc as c;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{Gid, Uid};
use persist_mem::manifest::UnixFile;
use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use sys::wait::{self, Status};
use sys::{Errno, socket};

/// The bytes of a `struct sockaddr_un`; a path is terminated, as programs do.
pub(super) fn address(name: &[u8]) -> Vec<u8> {
    let mut bytes = (c::AF_UNIX as u16).to_ne_bytes().to_vec();
    bytes.extend_from_slice(name);
    if name.first().is_some_and(|first| *first != 0) && name.len() < 108 {
        bytes.push(0);
    }
    bytes
}

/// How a name is reached while the tree is rebuilt.
#[derive(Debug)]
pub(super) enum Reach {
    /// By itself: it is abstract, or a path that others keep.
    Direct(Vec<u8>),
    /// By its file, which is not in its place yet.
    File(Place),
}

/// Where the file of a name is for the time being.
#[derive(Debug)]
pub(super) struct Place {
    /// Removed with all below when this is dropped.
    root: PathBuf,
    /// The directory the file is in.
    pub(super) dir: PathBuf,
    /// Its name there.
    pub(super) file: Vec<u8>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // What is left there can do no harm.
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

impl Reach {
    /// Directory to be in and address to use.
    pub(super) fn address(&self) -> (Option<&Path>, Vec<u8>) {
        match self {
            Reach::Direct(name) => (None, address(name)),
            Reach::File(place) => (Some(&place.dir), address(&place.file)),
        }
    }

    /// Does something with the address, in its directory.
    pub(super) fn with<T>(&self, act: impl FnOnce(&[u8]) -> sys::Result<T>) -> sys::Result<T> {
        let (dir, address) = self.address();
        let Some(dir) = dir else {
            return act(&address);
        };
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
        let before: OwnedFd = nix::fcntl::open(".", flags, Mode::empty())?;
        nix::unistd::chdir(dir)?;
        let result = act(&address);
        nix::unistd::fchdir(&before)?;
        result
    }
}

/// Binds a name. `file` is where its file is to be, None when it was removed.
pub(super) fn bind(
    making: &Making<'_>,
    fd: BorrowedFd<'_>,
    name: &[u8],
    file: Option<&UnixFile>,
) -> Result<Reach, ResurrectError> {
    if name.first() == Some(&0) {
        socket::bind(fd, &address(name)).map_err(making.failed("binding its abstract name"))?;
        return Ok(Reach::Direct(name.to_vec()));
    }
    let place = place(name, file).map_err(|e| {
        let path = file.map_or(name, |file| &file.path);
        let why = format!("a socket cannot be made there: {e}");
        ResurrectError::changed(String::from_utf8_lossy(path), why).about(making.subject())
    })?;
    bind_below(&place.root, fd, name).map_err(making.failed("binding its name"))?;
    Ok(Reach::File(place))
}

/// A new directory on the file system where the file is to be, with the directories of the name in it.
fn place(name: &[u8], file: Option<&UnixFile>) -> std::io::Result<Place> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let own = format!(".kupgrade-{}-{count}", std::process::id());
    let parents: Vec<&Path> = match file {
        Some(file) => Path::new(OsStr::from_bytes(&file.path))
            .parent()
            .into_iter()
            .collect(),
        None => ["/run", "/tmp", "/dev/shm", "/"].map(Path::new).to_vec(),
    };
    let mut made = Err(std::io::Error::from(std::io::ErrorKind::NotFound));
    for parent in parents {
        let root = parent.join(&own);
        made = std::fs::create_dir(&root).map(|()| root);
        if made.is_ok() {
            break;
        }
    }
    let root = made?;
    let mut path = root.clone();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => path.push(part),
            // The root is its own parent.
            Component::ParentDir if path != root => drop(path.pop()),
            _ => {}
        }
    }
    let no_name = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
    let file = path.file_name().ok_or_else(no_name)?.as_bytes().to_vec();
    let dir = path.parent().ok_or_else(no_name)?.to_owned();
    let place = Place { root, dir, file };
    std::fs::create_dir_all(&place.dir)?;
    Ok(place)
}

/// bind(2) in a process whose root is `root`; it shares the descriptors of this one.
fn bind_below(root: &Path, fd: BorrowedFd<'_>, name: &[u8]) -> sys::Result<()> {
    const CLONE_FILES: u64 = 0x400;
    let address = address(name);
    let bind = || {
        nix::unistd::chroot(root)?;
        nix::unistd::chdir("/")?;
        socket::bind(fd, &address)
    };
    let child = sys::process::spawn(CLONE_FILES, &[], || bind().err().map_or(0, |e| e as i32))?;
    match wait::wait_for_at_most(child.leader(), Duration::from_secs(10))? {
        Some(Status::Exited(0)) => Ok(()),
        Some(Status::Exited(errno)) => Err(Errno::from_raw(errno)),
        _ => Err(Errno::ECHILD),
    }
}

/// Moves a file to its place, over what is there.
pub(super) fn settle(reach: &Reach, file: &UnixFile) -> std::io::Result<()> {
    let Reach::File(place) = reach else {
        return Ok(());
    };
    let path = place.dir.join(OsStr::from_bytes(&place.file));
    let (uid, gid) = file.owner;
    nix::unistd::chown(&path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    let mode = Mode::from_bits_truncate(file.mode);
    fchmodat(
        nix::fcntl::AT_FDCWD,
        &path,
        mode,
        FchmodatFlags::FollowSymlink,
    )?;
    for name in &file.links {
        let name = Path::new(OsStr::from_bytes(name));
        let other = place.root.join(".link");
        std::fs::hard_link(&path, &other)?;
        std::fs::rename(&other, name)?;
    }
    std::fs::rename(&path, OsStr::from_bytes(&file.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_of_a_name_stay_below_its_root() {
        let dir = std::env::temp_dir().join(format!("kupgrade-names-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let file = UnixFile {
            path: dir.join("here").as_os_str().as_bytes().to_vec(),
            links: Vec::new(),
            owner: (0, 0),
            mode: 0o600,
        };
        let place = place(b"../../a/./b/../c/sock", Some(&file)).unwrap();
        assert_eq!(place.dir, place.root.join("a/c"));
        assert_eq!(place.file, b"sock");
        assert_eq!(place.root.parent(), Some(dir.as_path()));
        drop(place);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::remove_dir(&dir).unwrap();
    }
}
