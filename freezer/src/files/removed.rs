//! Directories that have been removed. They are empty: nothing can be made in them.

use super::Open;
use super::path::DELETED;
use crate::proc;
use nix::sys::stat::FileStat;
use persist_mem::manifest::{RemovedDirectory, RemovedId};
use sys::Pid;

/// Those found so far, each once.
#[derive(Default)]
pub(super) struct Directories(Vec<(RemovedDirectory, (u64, u64))>);

impl Directories {
    pub(super) fn capture(&mut self, open: &Open<'_>) -> RemovedId {
        self.note(open.link, &open.stat)
    }

    /// One that a link of `/proc` leads to.
    pub(super) fn note(&mut self, link: &[u8], stat: &FileStat) -> RemovedId {
        let identity = (stat.st_dev, stat.st_ino);
        if let Some((known, _)) = self.0.iter().find(|(_, found)| *found == identity) {
            return known.id;
        }
        let id = RemovedId(u32::try_from(self.0.len()).unwrap_or(u32::MAX));
        let time = |seconds: i64, nanoseconds: i64| seconds * 1_000_000_000 + nanoseconds;
        let directory = RemovedDirectory {
            id,
            path: link.strip_suffix(DELETED).unwrap_or(link).to_vec(),
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

/// Whether a process's current directory has no name any more.
pub(crate) fn removed_cwd(pid: Pid, cwd: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    proc::metadata(pid, cwd).is_ok_and(|cwd| cwd.nlink() == 0)
}
