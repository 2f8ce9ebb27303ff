//! `SEM_UNDO` of System V semaphores.
//!
//! The kernel keeps what it will undo in a list that nothing shows. But kcmp(2) tells whether two processes
//! have the same list, and two that have none have the same: this process never has one. A process with
//! threads has an (empty) list of its own always (`CLONE_SYSVSEM` makes one), so there the semaphores
//! must tell: without a set, or when nobody of the process was the last to change any, nothing is assumed.

use super::{has_semaphores, ids, refuse};
use crate::Refusal;
use sys::process::{KcmpKind, kcmp};
use sys::{Pid, Tid, ipc};

/// Why a process's undo list is not carried, if it may have anything in it.
pub(crate) fn refusal(pid: Pid) -> Option<Refusal> {
    let me = Tid(nix::unistd::getpid().as_raw());
    let order = kcmp(me, pid.leader(), KcmpKind::Sysvsem, 0, 0);
    if order.is_ok_and(core::cmp::Ordering::is_eq) || !has_semaphores() {
        return None;
    }
    let threads = crate::proc::threads(pid).map_or(1, |threads| threads.len());
    let reason = "what it has changed with SEM_UNDO cannot be known";
    (threads == 1 || changed_any(pid)).then(|| refuse(pid, "semaphores", reason))
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
