//! `SEM_UNDO` of System V semaphores.
//!
//! The kernel keeps what it will undo in a list that nothing shows. But kcmp(2) tells whether two processes
//! have the same list, and two that have none have the same: a thread that has just unshared its list has
//! none. A process with threads has an (empty) list of its own always (`CLONE_SYSVSEM` makes one), so there
//! the semaphores must tell: without a set, or when nobody of the process was the last to change any, nothing is assumed.

use super::{has_semaphores, ids, refuse};
use crate::Refusal;
use nix::sched::CloneFlags;
use sys::process::{KcmpKind, kcmp};
use sys::{Pid, Tid, ipc};

/// Why a process's undo list is not carried, if it may have anything in it.
pub(crate) fn refusal(pid: Pid) -> Option<Refusal> {
    if !has_semaphores() || has_no_list(pid) {
        return None;
    }
    let threads = crate::proc::threads(pid).map_or(1, |threads| threads.len());
    let reason = "what it has changed with SEM_UNDO cannot be known";
    (threads == 1 || changed_any(pid)).then(|| refuse(pid, "semaphores", reason))
}

/// Whether the process has no undo list, as this thread has none. This program undoes nothing.
fn has_no_list(pid: Pid) -> bool {
    if nix::sched::unshare(CloneFlags::CLONE_SYSVSEM).is_err() {
        return false;
    }
    let me = Tid(nix::unistd::gettid().as_raw());
    let tid = crate::proc::representative(pid).unwrap_or(pid.leader());
    kcmp(me, tid, KcmpKind::Sysvsem, 0, 0).is_ok_and(core::cmp::Ordering::is_eq)
}

/// Whether the process was the last to change a semaphore.
fn changed_any(pid: Pid) -> bool {
    let sets = ids("sem").unwrap_or_default();
    sets.into_iter().any(|id| {
        let count = ipc::sem_stat(id).map_or(0, |(_, count)| count);
        let members = 0..i32::try_from(count).unwrap_or(0);
        members.into_iter().any(|n| ipc::sem_pid(id, n) == Ok(pid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_undoes_nothing_is_not_refused_for_the_sets_of_others() {
        // Of this thread, and what it forks, alone.
        nix::sched::unshare(CloneFlags::CLONE_NEWIPC).unwrap();
        let set = ipc::sem_get(0, 1, 0o1600).unwrap();
        ipc::sem_set_values(set, &[1]).unwrap();
        let start = || {
            let body = || {
                nix::unistd::pause();
                0
            };
            sys::process::spawn(0, &[], body).unwrap()
        };
        let child = start();
        assert_eq!(refusal(child), None);
        sys::process::kill(child, 9).unwrap();
        sys::wait::wait_for(child.leader()).unwrap();
    }
}
