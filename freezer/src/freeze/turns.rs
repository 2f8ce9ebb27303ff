//! Those that wait in calls go on before all that run, in the order in which they began to wait.
//!
//! A program must not find that somebody does not wait who did, nor that others have come before it.

use super::{Frozen, FrozenThread};
use crate::capture;
use crate::proc;
use nix::time::ClockId;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::time::Instant;
use sys::asleep::{self, Asleep, Line};
use sys::first_taker;
use sys::regs::Regs;
use sys::{Pid, Tid, ptrace};

/// Whose time is over in so many nanoseconds does not wait.
const NEARLY: u64 = 1_000_000;

/// A thread that waits in a call.
struct Turn {
    pid: Pid,
    tid: Tid,
    thread: FrozenThread,
    line: Option<Line>,
}

impl Frozen {
    /// Takes those that wait out of `processes`, and lets them go until they do so again.
    pub(super) fn begin_to_wait(&mut self, processes: &mut [(Pid, BTreeMap<Tid, FrozenThread>)]) {
        let mut turns = Vec::new();
        for (pid, threads) in &mut *processes {
            turns.extend(self.turns(*pid, threads));
        }
        for turn in &turns {
            let of = processes.iter_mut().find(|(pid, _)| *pid == turn.pid);
            of.map(|(_, threads)| threads.remove(&turn.tid));
        }
        let others_go_on = processes.iter().any(|(_, threads)| !threads.is_empty());
        let in_line = asleep::in_line(turns.iter().map(|turn| (turn.tid, turn.line)));
        turns.sort_by_key(|turn| {
            let is_leader = turn.tid == turn.pid.leader();
            let since = turn.thread.waits_since_ns;
            asleep::place(in_line.contains(&turn.tid), is_leader, since)
        });
        let end = Instant::now() + asleep::within(in_line.len());
        let mut others = Vec::new();
        for turn in turns {
            let waits_in_line = in_line.contains(&turn.tid);
            let seen = (others_go_on || waits_in_line).then(|| Asleep::of(turn.pid, turn.tid));
            self.let_go(turn.pid, turn.tid, turn.thread);
            match seen {
                Some(seen) if waits_in_line => {
                    seen.wait_until(end);
                }
                seen => others.extend(seen),
            }
        }
        for seen in others {
            seen.wait_until(end);
        }
    }

    /// The threads of a process that wait.
    fn turns(&self, pid: Pid, threads: &BTreeMap<Tid, FrozenThread>) -> Vec<Turn> {
        let in_calls = threads
            .iter()
            .filter(|(_, thread)| thread.recorded && thread.goes_on());
        let in_calls = in_calls.filter_map(|(tid, thread)| {
            let regs = ptrace::get_regs(*tid).ok()?;
            asleep::is_made_again(&regs).then_some((*tid, *thread, regs))
        });
        let in_calls: Vec<(Tid, FrozenThread, Regs)> = in_calls.collect();
        let kept = capture::times_left(pid, in_calls.iter().map(|(tid, _, regs)| (*tid, regs)));
        let mem = OnceCell::new();
        let mem = || mem.get_or_init(|| proc::memory(pid).ok()).as_ref();
        let waits = |(tid, _, regs): &(Tid, FrozenThread, Regs)| {
            let is_over = self
                .repeating
                .get(tid)
                .is_some_and(|call| call.is_over(NEARLY))
                || kept.get(tid).is_some_and(|left| *left <= NEARLY)
                || asleep::ends_at(regs, mem).is_some_and(is_past);
            !is_over && first_taker::to_handle(*tid) == Ok(0)
        };
        let mut turns: Vec<Turn> = in_calls
            .into_iter()
            .filter(waits)
            .map(|(tid, thread, regs)| Turn {
                pid,
                tid,
                thread,
                line: Line::of(&regs),
            })
            .collect();
        let leader = pid.leader();
        let runs = threads.contains_key(&leader) && turns.iter().all(|turn| turn.tid != leader);
        if runs && !turns.is_empty() && threads.len() > 1 {
            let of_leader = soon_told(pid);
            turns.retain(|turn| {
                ptrace::get_sigmask(turn.tid).is_ok_and(|mask| of_leader & !mask == 0)
            });
        }
        turns
    }
}

/// Whether that is now, or was.
fn is_past((clock, end): (ClockId, i64)) -> bool {
    let now = match clock {
        ClockId::CLOCK_MONOTONIC | ClockId::CLOCK_BOOTTIME | ClockId::CLOCK_REALTIME => {
            sys::clock::read_ns(clock).ok()
        }
        _ => None,
    };
    now.is_some_and(|now| end <= now.saturating_add_unsigned(NEARLY))
}

/// Signals that come at any moment and that the leader of a process has a handler for, as those of timers: it runs,
/// so that it would take them. Not those that the C library uses itself.
fn soon_told(pid: Pid) -> u64 {
    // SIGALRM, SIGVTALRM, SIGPROF, SIGIO, and those from SIGRTMIN on.
    const TOLD: u64 = 1 << 13 | 1 << 25 | 1 << 26 | 1 << 28 | u64::MAX << 33;
    let handled = |status: proc::Status| status.mask("SigCgt") & !status.mask("SigBlk") & TOLD;
    proc::Status::read(pid, "status").map_or(0, handled)
}
