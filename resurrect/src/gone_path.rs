//! Files whose path reads as a name that is gone.
//!
//! Where nothing has the name today, the file gets it for as long as it takes to be opened. Otherwise it is named in
//! a mount of its own whose root is a new directory next to where the file was, below the whole old path, since the
//! kernel shows a removed file's path from the root of its mount. Whatever has the path today is not touched.

use nix::fcntl::{OFlag, open as open_directory};
use nix::sys::stat::{FileStat, Mode, UtimensatFlags, fstat, lstat, stat, utimensat};
use nix::sys::time::TimeSpec;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use sys::Errno;

/// How a file comes to a name, and is opened by that.
pub(crate) struct Naming<P, O> {
    /// Names it, and says so; where it does nothing, `open` makes the file.
    pub(crate) place: P,
    /// Opens it, called with a directory and the path below it.
    pub(crate) open: O,
}

impl<P, O> Naming<P, O>
where
    P: Fn(&Path) -> sys::Result<bool>,
    O: Fn(&OwnedFd, &Path) -> sys::Result<OwnedFd>,
{
    /// Opens the file by `path`, which nothing need lead to. `mark` tells apart what is opened at the same time.
    ///
    /// # Errors
    /// The last one of those that were met with the directories above the path, the nearest first.
    pub(crate) fn open_by(&self, path: &Path, mark: &str) -> sys::Result<OwnedFd> {
        let inside = path.strip_prefix("/").unwrap_or(path);
        let mut last = Err(Errno::ENOENT);
        // From the nearest directory that still is there upwards: one may be read-only, or keep each name for good.
        let fit = |dir: &&Path| dir.is_dir() && !keeps_names(dir);
        for near in path.ancestors().skip(1).filter(fit) {
            let times = Times::of(near);
            if Some(near) == path.parent() {
                last = self.in_place(near, path);
            }
            if last.is_err() {
                let root = near.join(format!(".kupgrade-{}-{mark}", std::process::id()));
                last = self.below(&root, inside);
            }
            if let Ok(times) = times {
                times.put_back(near);
            }
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// By the path itself, in its directory.
    fn in_place(&self, directory: &Path, path: &Path) -> sys::Result<OwnedFd> {
        let name = path.file_name().ok_or(Errno::ENOENT)?;
        // By a link on the way it would read otherwise.
        if directory.canonicalize().ok().as_deref() != Some(directory) {
            return Err(Errno::ELOOP);
        }
        let directory = reference(directory)?;
        let placed = (self.place)(path)?;
        let ours = if placed { identity(lstat(path)) } else { None };
        let opened = (self.open)(&directory, Path::new(name));
        let ours = ours.or_else(|| identity(fstat(opened.as_ref().ok()?)));
        // On a host that runs somebody may have put another file in its place meanwhile.
        if ours.is_some() && ours == identity(lstat(path)) {
            let _ = nix::unistd::unlink(path);
        }
        opened
    }

    /// Makes the directory `root` and what leads to the file in it, opens that through a mount of its own, and
    /// removes all.
    fn below(&self, root: &Path, inside: &Path) -> sys::Result<OwnedFd> {
        let dirs: Vec<PathBuf> = inside
            .ancestors()
            .skip(1)
            .map(|dir| root.join(dir))
            .collect();
        let mut made = Vec::new();
        let opened = (|| {
            for dir in dirs.iter().rev() {
                nix::unistd::mkdir(dir, Mode::S_IRWXU)?;
                made.push(dir);
            }
            (self.place)(&root.join(inside))?;
            let mount = sys::mountapi::clone_tree(reference(root)?.as_fd())?;
            (self.open)(&mount, inside)
        })();
        // Those that were made are ours alone, whatever has failed.
        let _ = nix::unistd::unlink(&root.join(inside));
        for dir in made.iter().rev() {
            let _ = std::fs::remove_dir(dir);
        }
        opened
    }
}

/// Device and number of an inode.
fn identity(found: sys::Result<FileStat>) -> Option<(u64, u64)> {
    found.ok().map(|file| (file.st_dev, file.st_ino))
}

/// Whether names can be made in a directory and not be removed (chattr(1), `a`).
fn keeps_names(directory: &Path) -> bool {
    /// `FS_APPEND_FL` (include/uapi/linux/fs.h)
    const APPEND: u32 = 0x20;
    let opened = std::fs::File::open(directory);
    opened.is_ok_and(|opened| sys::files::inode_flags(&opened).unwrap_or(0) & APPEND != 0)
}

fn reference(directory: &Path) -> sys::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_PATH;
    open_directory(directory, flags, Mode::empty())
}

/// Access and modification times of a directory, which names that come and go change.
pub(crate) struct Times(TimeSpec, TimeSpec);

impl Times {
    pub(crate) fn of(directory: &Path) -> sys::Result<Times> {
        let found = stat(directory)?;
        Ok(Times(
            TimeSpec::new(found.st_atime, found.st_atime_nsec),
            TimeSpec::new(found.st_mtime, found.st_mtime_nsec),
        ))
    }

    pub(crate) fn put_back(&self, directory: &Path) {
        // Nothing depends on it.
        let here = nix::fcntl::AT_FDCWD;
        let follow = UtimensatFlags::FollowSymlink;
        let _ = utimensat(here, directory, &self.0, &self.1, follow);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::openat;

    #[test]
    fn what_somebody_puts_in_its_place_stays() {
        let dir = std::env::temp_dir().join(format!("gone-path-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let dir = dir.canonicalize().unwrap();
        let path = dir.join("name");
        let naming = Naming {
            place: |_: &Path| Ok(false),
            open: |near: &OwnedFd, inside: &Path| {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let opened = openat(near, inside, flags, Mode::S_IRWXU)?;
                // As a server does that writes its file anew.
                std::fs::write(dir.join("new"), "theirs").unwrap();
                std::fs::rename(dir.join("new"), &path).unwrap();
                Ok(opened)
            },
        };
        naming.open_by(&path, "test").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
