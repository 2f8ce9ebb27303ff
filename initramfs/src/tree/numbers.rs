//! Numbers of inodes. A tmpfs counts them up, from 1 for its root (mm/shmem.c, `shmem_reserve_inode`): who makes inodes
//! in the order of their numbers, and as many between two as have been removed there since, gets them again.

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::path::Path;
use std::time::{Duration, Instant};
use sys::Errno;

/// How long the host may wait for one file system's numbers.
const PATIENCE: Duration = Duration::from_millis(200);

/// How many inodes are made before it is known how long one takes.
const FIRST: u64 = 256;

/// The counter of a new file system.
#[derive(Debug)]
pub(super) struct Numbers<'a> {
    root: &'a Path,
    /// What the next inode gets; None where nobody can say.
    next: Option<u64>,
    /// The highest number that is wanted.
    last: u64,
    began: Instant,
    /// Inodes made only to be removed.
    skipped: u64,
}

impl<'a> Numbers<'a> {
    /// Of the file system mounted on `root`, which was made just now; `last` is the highest number
    /// that is wanted.
    pub(super) fn of(root: &'a Path, last: u64) -> Numbers<'a> {
        let counts = statfs(root).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
        Numbers {
            root,
            next: counts.then_some(2),
            last,
            began: Instant::now(),
            skipped: 0,
        }
    }

    /// Passes over the numbers before `number`, so that the inode that is made next gets it.
    pub(super) fn approach(&mut self, number: u64) {
        while let Some(next) = self.next
            && next < number
        {
            let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let made = match self.patient(next) {
                true => open(self.root, flags, Mode::S_IRUSR).map(drop),
                false => Err(Errno::ETIME),
            };
            match made {
                Ok(()) => self.next = Some(next + 1),
                Err(errno) => {
                    let root = self.root.display();
                    log::info!("{root}: inodes from {number} on get other numbers: {errno}");
                    self.next = None;
                }
            }
            self.skipped += 1;
        }
    }

    /// An inode was made.
    pub(super) fn made(&mut self) {
        self.next = self.next.map(|next| next + 1);
    }

    /// Whether the rest would be done in time, as far as the inodes up to `next` tell.
    fn patient(&self, next: u64) -> bool {
        let rest = u32::try_from(self.last.saturating_sub(next)).unwrap_or(u32::MAX);
        self.skipped < FIRST || in_time(self.began.elapsed(), self.skipped, rest)
    }
}

/// Whether `rest` more are done in [`PATIENCE`] when `done` have taken `time`.
fn in_time(time: Duration, done: u64, rest: u32) -> bool {
    let each = time / u32::try_from(done).unwrap_or(u32::MAX).max(1);
    time + each.saturating_mul(rest) <= PATIENCE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_known_early() {
        let each = |done, rest| in_time(Duration::from_micros(10 * done), done, rest);
        assert!(each(256, 19_000));
        assert!(!each(256, 20_000));
        assert!(each(19_000, 1_000) && !each(19_001, 1_000));
    }
}
