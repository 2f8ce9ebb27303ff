//! Ended processes that have left a core dump: their parents are told so (`WCOREDUMP` of wait(2)).
//!
//! The kernel says it of those only that it has dumped (kernel/coredump.c). So they dump once more, as little as
//! possible, into a file system that nobody sees and that goes with them.

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use nix::fcntl::OFlag;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use sys::batch::Batch;
use sys::{Errno, Pid, core_pattern, procdir};

/// Bit of a wait status: a core was dumped.
pub(super) const DUMPED: i32 = 0x80;
const PR_SET_DUMPABLE: i32 = 4;
const RLIMIT_CORE: i32 = 4;

/// Where cores go meanwhile.
pub(super) struct Place {
    directory: OwnedFd,
    /// Where they went before, where that has been changed.
    pattern: Option<String>,
}

impl Place {
    /// Makes it. In a world of its own, where nothing runs yet, cores go to files for as long as it lasts.
    pub(super) fn make(restore: &Restore<'_>) -> Result<Place, ResurrectError> {
        let directory = sys::mountapi::detached_tmpfs();
        let mut place = Place {
            directory: directory.map_err(ResurrectError::own("making room for cores"))?,
            pattern: None,
        };
        let pattern = core_pattern::read().unwrap_or_default();
        if restore.is_upgrade() && !core_pattern::is_file(&pattern) {
            match core_pattern::write("core") {
                Ok(()) => place.pattern = Some(pattern),
                Err(why) => log::warn!("cores do not go to files: {why}"),
            }
        }
        Ok(place)
    }

    /// A process that is to end with a core goes where it will be: before it gives up its privileges.
    pub(super) fn enter(&self, restore: &mut Restore<'_>, pid: Pid) -> Result<(), ResurrectError> {
        const DOING: &str = "making room for its core";
        let me = restore.self_pidfd.as_raw_fd();
        let task = restore.task(pid)?;
        let mut batch = Batch::new();
        let theirs = self.directory.as_raw_fd();
        let args = [me.into(), theirs.into(), 0.into()];
        let directory = batch.call(DOING, nr::PIDFD_GETFD, args);
        batch.call(DOING, nr::FCHDIR, [directory.into()]);
        batch.call(DOING, nr::CLOSE, [directory.into()]);
        let limit = batch.data(&[0xff; 16]);
        let args = [0.into(), RLIMIT_CORE.into(), limit.into(), 0.into()];
        batch.try_call(DOING, nr::PRLIMIT64, args);
        run(pid, DOING, &mut task.first, &batch)?;
        // No contents: it has none.
        let failed = || ResurrectError::call(pid, DOING);
        let errno = |e: std::io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        procdir::open(task.host_pid(), "coredump_filter", OFlag::O_WRONLY)
            .map_err(failed())?
            .write_all(b"0")
            .map_err(|e| failed()(errno(e)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pattern) = &self.pattern
            && let Err(why) = core_pattern::write(pattern)
        {
            log::warn!("cores do not go to {pattern} again: {why}");
        }
    }
}

/// Changing ids has cleared what lets it dump.
pub(super) fn allow(restore: &mut Restore<'_>, pid: Pid) -> Result<(), ResurrectError> {
    const DOING: &str = "letting it dump its core";
    let mut batch = Batch::new();
    batch.call(DOING, nr::PRCTL, [PR_SET_DUMPABLE.into(), 1.into()]);
    run(pid, DOING, &mut restore.task(pid)?.first, &batch).map(drop)
}
