//! Resource limits (getrlimit(2)).

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::Live;
use sys::batch::{Arg, Batch};

/// `RLIMIT_SIGPENDING`
const SIGPENDING: u32 = 11;
/// `RLIMIT_CORE`
pub(crate) const CORE: u32 = 4;
/// `RLIMIT_NPROC`
const NPROC: u32 = 6;
/// Those that may be exceeded by now, and are set last.
const LAST: [u32; 2] = [NPROC, SIGPENDING];

/// Sets those that differ from what a new process has.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives() {
        let task = restore.task(pid)?;
        let mut batch = Batch::new();
        for (which, (soft, hard)) in (0..).zip(&live.limits) {
            let now = sys::process::prlimit(task.host_pid(), which, None)
                .map_err(ResurrectError::call(pid, "asking for its limits"))?;
            // More may be queued than the process may queue. A user who has too many processes could not run
            // another program any more, had the limit been there as it became that user (setuid(2)).
            let wanted = if LAST.contains(&which) && !live.threads.is_empty() {
                (now.0.max(*soft), now.1.max(*hard))
            } else {
                (*soft, *hard)
            };
            if now != wanted {
                put(&mut batch, which, wanted);
            }
        }
        run(pid, "setting its limits", &mut task.first, &batch)?;
    }
    Ok(())
}

/// Sets the limits that are left when everybody is who he was, and signals are queued.
pub(crate) fn set_last(batch: &mut Batch, live: &Live) {
    for which in LAST {
        if let Some(limit) = live.limits.get(which as usize) {
            put(batch, which, *limit);
        }
    }
}

/// Those of a process that is about to end again: they only show.
pub(crate) fn show(batch: &mut Batch, limits: &[(u64, u64)], but: impl Fn(u32) -> bool) {
    for (which, limit) in (0..).zip(limits).filter(|(which, _)| !but(*which)) {
        let args = args(batch, which, *limit);
        batch.try_call("showing a limit", nr::PRLIMIT64, args);
    }
}

fn put(batch: &mut Batch, which: u32, limit: (u64, u64)) {
    let args = args(batch, which, limit);
    batch.call("setting a limit", nr::PRLIMIT64, args);
}

fn args(batch: &mut Batch, which: u32, (soft, hard): (u64, u64)) -> [Arg; 4] {
    let mut bytes = soft.to_le_bytes().to_vec();
    bytes.extend_from_slice(&hard.to_le_bytes());
    let new = batch.data(&bytes);
    [0.into(), which.into(), new.into(), 0.into()]
}
