//! Directories that have been removed. They are empty: nothing can be made in them.

use super::Open;
use super::path::DELETED;
use crate::proc;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, fstat};
use persist_mem::manifest::{FileTime, RemovedDirectory, RemovedId};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use sys::Pid;

/// Those found so far, each once.
#[derive(Default)]
pub(super) struct Directories(Vec<(RemovedDirectory, (u64, u64))>);

impl Directories {
    pub(super) fn capture(&mut self, open: &Open<'_>) -> RemovedId {
        self.note(open.link, &open.stat, Path::new(&own_path(open.copy)))
    }

    /// One that a link of `/proc` leads to. What it was in is noted before it.
    pub(super) fn note(&mut self, link: &[u8], stat: &FileStat, through: &Path) -> RemovedId {
        let identity = (stat.st_dev, stat.st_ino);
        if let Some((known, _)) = self.0.iter().find(|(_, found)| *found == identity) {
            return known.id;
        }
        let within = removed_above(through, stat)
            .map(|(fd, link, stat)| self.note(&link, &stat, Path::new(&own_path(&fd))));
        let id = RemovedId(u32::try_from(self.0.len()).unwrap_or(u32::MAX));
        let time = |seconds, nanoseconds| FileTime {
            seconds,
            nanoseconds,
        };
        let directory = RemovedDirectory {
            id,
            path: link.strip_suffix(DELETED).unwrap_or(link).to_vec(),
            within,
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            times: (
                time(stat.st_atime, stat.st_atime_nsec),
                time(stat.st_mtime, stat.st_mtime_nsec),
            ),
        };
        self.0.push((directory, identity));
        id
    }

    pub(super) fn finish(self) -> Vec<RemovedDirectory> {
        self.0.into_iter().map(|(directory, _)| directory).collect()
    }
}

/// What a removed directory was in, where that has been removed, too: `..` still leads there.
fn removed_above(directory: &Path, own: &FileStat) -> Option<(OwnedFd, Vec<u8>, FileStat)> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let above = open(&directory.join(".."), flags, Mode::empty()).ok()?;
    let stat = fstat(&above).ok().filter(|found| found.st_nlink == 0)?;
    // The root of a mount, or what a restore has made to have a path read as it did.
    let is_root = (stat.st_dev, stat.st_ino) == (own.st_dev, own.st_ino);
    if is_root || stat.st_mode & 0o7777 == RemovedDirectory::MADE_UP {
        return None;
    }
    let link = std::fs::read_link(own_path(&above)).ok()?;
    Some((above, link.into_os_string().into_vec(), stat))
}

fn own_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Whether a process's current directory has no name any more.
pub(crate) fn removed_cwd(pid: Pid, cwd: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    proc::metadata(pid, cwd).is_ok_and(|cwd| cwd.nlink() == 0)
}
