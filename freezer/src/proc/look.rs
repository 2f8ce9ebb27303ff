//! Through which thread a process is looked at.
//!
//! What a process has as a whole is shown by `/proc/PID` as long as its leader lives. An ended leader whose
//! process goes on has no memory, descriptors or directories any more: these are shown by
//! `/proc/TID` of any thread that lives (fs/proc/base.c, proc_pid_lookup takes any thread id).

use super::{Stat, numbers};
use crate::FreezerError;
use core::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use sys::vm::ProcMem;
use sys::{Errno, Pid, Tid, process};

thread_local! {
    /// Processes that this thread keeps stopped, and a thread of each that lives: asked for all the time, and
    /// the same until they go on.
    static STOPPED: RefCell<BTreeMap<Pid, Tid>> = const { RefCell::new(BTreeMap::new()) };
}

/// Processes that stand still from now on, each with the thread that answers for it.
pub(crate) fn note_stopped(processes: impl Iterator<Item = (Pid, Tid)>) {
    STOPPED.with_borrow_mut(|stopped| stopped.extend(processes));
}

/// They go on or end.
pub(crate) fn forget_stopped(processes: impl Iterator<Item = Pid>) {
    STOPPED.with_borrow_mut(|stopped| {
        for pid in processes {
            stopped.remove(&pid);
        }
    });
}

/// The thread through which a process is looked at and worked in: its leader, or the first of the others
/// when that has ended. None when all have ended.
#[must_use]
pub fn representative(pid: Pid) -> Option<Tid> {
    if let Some(tid) = STOPPED.with_borrow(|stopped| stopped.get(&pid).copied()) {
        return Some(tid);
    }
    if lives(pid, pid.leader())? {
        return Some(pid.leader());
    }
    let others = numbers(pid, "task").ok()?.into_iter().map(Tid);
    let mut others = others.filter(|tid| *tid != pid.leader());
    others.find(|tid| lives(pid, *tid) == Some(true))
}

/// None when there is no such thread.
fn lives(pid: Pid, tid: Tid) -> Option<bool> {
    let stat = Stat::read(pid, &format!("task/{tid}/stat")).ok()?;
    Some(!matches!(stat.state(), 'Z' | 'X'))
}

/// Whether a thread is about to end or has ended: its tables are gone already then, whatever it shared.
pub(crate) fn is_ending(pid: Pid, tid: Tid) -> bool {
    // include/linux/sched.h
    const PF_EXITING: i64 = 0x4;
    Stat::read(pid, &format!("task/{tid}/stat"))
        .map_or(true, |stat| stat.field(9) & PF_EXITING != 0)
}

/// Looks at `what` of a process; when there is nothing, through its representative.
pub(super) fn through<T>(
    pid: Pid,
    what: &str,
    look: impl Fn(&str) -> io::Result<T>,
    is_nothing: impl Fn(&T) -> bool,
) -> Result<T, FreezerError> {
    let first = look(&format!("/proc/{pid}/{what}"));
    let found = match first {
        Ok(found) if !is_nothing(&found) => Ok(found),
        nothing if what.starts_with("task/") => nothing,
        nothing => match representative(pid).filter(|tid| *tid != pid.leader()) {
            Some(tid) => look(&format!("/proc/{tid}/{what}")),
            None => nothing,
        },
    };
    found.map_err(|cause| FreezerError::Proc {
        pid,
        what: what.into(),
        cause,
    })
}

/// Opens `/proc/PID/what`.
///
/// # Errors
/// [`FreezerError::Proc`].
pub fn open(pid: Pid, what: &str) -> Result<File, FreezerError> {
    through(pid, what, |path| File::open(path), |_| false)
}

/// Looks at the file behind `/proc/PID/what`, following links.
///
/// # Errors
/// [`FreezerError::Proc`].
pub fn metadata(pid: Pid, what: &str) -> Result<std::fs::Metadata, FreezerError> {
    through(pid, what, |path| std::fs::metadata(path), |_| false)
}

/// The path `/proc/PID/what` where it shows something.
pub(crate) fn path(pid: Pid, what: &str) -> String {
    format!("/proc/{}/{what}", of_all(pid))
}

/// The thread to name a process by in calls that look at one thread.
fn of_all(pid: Pid) -> Tid {
    representative(pid).unwrap_or(pid.leader())
}

/// The memory of a process.
///
/// # Errors
/// As [`ProcMem::open`].
pub(crate) fn memory(pid: Pid) -> sys::Result<ProcMem> {
    ProcMem::of_thread(pid, of_all(pid))
}

/// A pidfd through which descriptors can be copied: of a process, or of the thread `pid` that has a table of its
/// own (`files/apart.rs`).
///
/// # Errors
/// As [`process::pidfd_through`]; `EINVAL` for a thread before Linux 6.9.
pub(crate) fn pidfd(pid: Pid) -> sys::Result<OwnedFd> {
    match process::pidfd_through(pid, of_all(pid)) {
        // No leader has this id.
        Err(Errno::EINVAL | Errno::ENOENT) => process::pidfd_of_thread(pid.leader()),
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_leader_is_looked_at_through_it() {
        let me = Pid(nix::unistd::getpid().as_raw());
        assert_eq!(representative(me), Some(me.leader()));
        assert!(memory(me).is_ok() && pidfd(me).is_ok());
    }

    #[test]
    fn a_zombie_has_no_representative() {
        let child = process::spawn(0, &[], || 0).unwrap();
        while lives(child, child.leader()) == Some(true) {
            std::thread::yield_now();
        }
        assert_eq!(representative(child), None);
        assert!(open(child, "exe").is_err());
        sys::wait::wait_for(child.leader()).unwrap();
    }
}
