//! Threads made ready for calls inside of them.

use super::{dispatch, sleep};
use crate::freeze::{Frozen, position};
use crate::proc::{self, Status};
use crate::{FreezerError, Refusal};
use persist_mem::manifest::{Dispatch, Limit, Sleep, SocketTimeout};
use std::sync::Arc;
use sys::regs::Regs;
use sys::tracee::Tracee;
use sys::vm::ProcMem;
use sys::{Pid, Remaining, Tid};

const SIGCHLD: i32 = 17;
const SIGCONT: i32 = 18;
const SIGURG: i32 = 23;
const SIGWINCH: i32 = 28;
const SIGTRAP: i32 = 5;

/// A stopped thread, and how it shall go on.
pub(super) struct Inside {
    pub(super) tracee: Tracee,
    pub(super) regs: Regs,
    pub(super) sleep: Option<Sleep>,
    pub(super) status: Status,
    pub(super) dispatch: Option<Dispatch>,
    /// Its dispatch is switched off.
    suspended: bool,
    pub(super) socket_wait: Option<SocketTimeout>,
    pub(super) limit: Option<Limit>,
    pub(super) waits_since: Option<u64>,
}

/// All threads of a process that live and do not wait in vfork(2), the leader first, if it does.
pub(super) fn threads(
    frozen: &Frozen,
    pid: Pid,
    mem: ProcMem,
) -> Result<Vec<Inside>, FreezerError> {
    let mem = Arc::new(mem);
    let mut threads: Vec<Inside> = Vec::new();
    let mut stopped = frozen.threads(pid);
    stopped.retain(|(_, thread)| thread.in_vfork.is_none());
    let tids: Vec<Tid> = stopped.iter().map(|(tid, _)| *tid).collect();
    let dispatches = dispatch::of_threads(&tids);
    let mut tracees: Vec<(Tracee, Regs)> = Vec::new();
    for tid in &tids {
        let mut tracee = Tracee::with_memory(pid, *tid, Arc::clone(&mem));
        let (regs, _) = tracee.rest().map_err(FreezerError::tracee(pid))?;
        tracees.push((tracee, regs));
    }
    let kept = sleep::kept(tracees.iter().map(|(tracee, regs)| (tracee.tid(), regs)));
    for ((tid, state), (tracee, regs)) in stopped.into_iter().zip(tracees) {
        position::refuse_doomed(pid, tid)?;
        let (regs, asleep) = sleep::settle(&tracee, regs, state, kept.get(&tid))?;
        let mut thread = ready(tracee, (regs, asleep), dispatches.get(&tid).copied())?;
        thread.socket_wait = frozen
            .socket_wait(tid)
            .map(|(fd, sends, remaining)| SocketTimeout {
                fd,
                sends,
                remaining,
            });
        thread.limit = frozen.limit(tid);
        thread.waits_since = state.waits_since_ns;
        threads.push(thread);
    }
    Ok(threads)
}

fn ready(
    mut tracee: Tracee,
    (regs, sleep): (Regs, Option<Sleep>),
    dispatch: Option<Dispatch>,
) -> Result<Inside, FreezerError> {
    let (pid, tid) = (tracee.pid(), tracee.tid());
    let status = Status::read(pid, &format!("task/{tid}/status"))?;
    let marker = marker(&status).ok_or_else(|| FreezerError::Refused(vec![unmarked(pid, tid)]))?;
    tracee.set_marker(marker);
    if crate::confinement::is_mute(pid, tid) {
        tracee.set_mute();
    }
    tracee.set_remaining(sleep.map(|sleep| Remaining {
        nr: sleep.nr,
        ns: sleep.remaining,
    }));
    let suspended = dispatch.is_some_and(|dispatch| dispatch::now(tracee.mem(), &dispatch));
    if suspended {
        dispatch::suspend(pid, tid)?;
    }
    Ok(Inside {
        tracee,
        regs,
        sleep,
        status,
        dispatch,
        suspended,
        socket_wait: None,
        limit: None,
        waits_since: None,
    })
}

impl Inside {
    /// Undoes what was done to make calls possible.
    pub(super) fn put_back(&self) -> Result<(), FreezerError> {
        match &self.dispatch {
            Some(dispatch) if self.suspended => {
                dispatch::resume(self.tracee.pid(), self.tracee.tid(), dispatch)
            }
            _ => Ok(()),
        }
    }
}

/// Signals that faults raise: SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV and SIGSYS.
const FAULTS: [i32; 6] = [4, SIGTRAP, 7, 8, 11, 31];

/// A signal that does nothing to the thread: one that is ignored, and is not queued. Where there is none, one
/// that is not queued. Not one that faults raise ([`FAULTS`]) while such signals are queued: when one of those is
/// not blocked the kernel takes whichever came first, blocked or not (kernel/signal.c, dequeue_synchronous_signal).
fn marker(status: &Status) -> Option<i32> {
    /// What only a stopped job is left by, and what cannot be blocked. Each of SIGCONT and the stops takes the other
    /// away where it is queued (kernel/signal.c, prepare_signal).
    const NEVER: [i32; 6] = [9, SIGCONT, 19, 20, 21, 22];
    let mask = |keys: &[&str]| keys.iter().fold(0, |all, key| all | status.mask(key));
    let has = |mask: u64, signal: &i32| mask >> (signal - 1) & 1 != 0;
    let queued = mask(&["SigPnd", "ShdPnd"]);
    let caught = mask(&["SigCgt"]) | queued;
    let ignored = mask(&["SigIgn"]) & !queued;
    let allowed =
        |signal: &i32| !FAULTS.contains(signal) || FAULTS.iter().all(|one| !has(queued, one));
    let plain = || (1..32).filter(|signal| !NEVER.contains(signal));
    [SIGURG, SIGWINCH, SIGCHLD]
        .into_iter()
        .find(|signal| !has(caught, signal))
        .or_else(|| plain().find(|signal| has(ignored, signal) && allowed(signal)))
        .or_else(|| {
            let mut all = [SIGTRAP].into_iter().chain(plain()).chain(34..=64);
            all.find(|signal| !has(queued, signal) && allowed(signal))
        })
}

/// Why a thread with every signal queued is not carried, found without stopping it.
pub(crate) fn marker_refusal(pid: Pid, threads: &[Tid]) -> Option<Refusal> {
    let unmarked_one = threads.iter().find(|tid| {
        let status = Status::read(pid, &format!("task/{tid}/status"));
        status.is_ok_and(|status| marker(&status).is_none())
    });
    unmarked_one.map(|tid| unmarked(pid, *tid))
}

fn unmarked(pid: Pid, tid: Tid) -> Refusal {
    Refusal {
        pid,
        comm: proc::comm(pid),
        resource: "signals".into(),
        reason: format!(
            "every signal is queued for thread {tid}: none is left to tell the end of a call by"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_neither_caught_nor_queued() {
        let none = "SigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n";
        let status = |caught: u64| Status::from_text(&format!("{none}SigCgt:\t{caught:016x}\n"));
        assert_eq!(marker(&status(0)), Some(SIGURG));
        assert_eq!(marker(&status(1 << 22)), Some(SIGWINCH));
        assert_eq!(marker(&status(1 << 22 | 1 << 27)), Some(SIGCHLD));
        assert_eq!(marker(&status(u64::MAX)), Some(SIGTRAP));
        let ignoring = format!(
            "{none}SigCgt:\t{:016x}\nSigIgn:\t{:016x}\n",
            u64::MAX,
            1 << 12
        );
        assert_eq!(marker(&Status::from_text(&ignoring)), Some(13));
        let full = "SigPnd:\t0000000008420010\nShdPnd:\t0000000000010000\n";
        assert_eq!(
            marker(&Status::from_text(&format!(
                "{full}SigCgt:\t{:016x}\n",
                u64::MAX
            ))),
            Some(1)
        );
        let plain =
            "SigPnd:\t000000000000000f\nShdPnd:\t00000000fff1fff0\nSigCgt:\tffffffffffffffff\n";
        assert_eq!(marker(&Status::from_text(plain)), Some(34));
        let all = "SigPnd:\t0000000000000000\nShdPnd:\tfffffffe7ff9feff\n";
        assert_eq!(marker(&Status::from_text(all)), None);
    }
}
