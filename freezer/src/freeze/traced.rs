//! Threads that another process traces (ptrace(2)).
//!
//! They have their tracer already and cannot be seized. In one of its stops such a thread goes nowhere while its
//! tracer stands still, so a stopped tracer is as good as a stopped tracee. Nothing is done to it.

use super::{Frozen, held};
use crate::{FreezerError, capture, proc};
use core::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use sys::process::{KcmpKind, kcmp};
use sys::{Pid, Tid};

/// How long one that runs may take to its next stop before its tracer is made to stop it.
const SOON: Duration = Duration::from_millis(5);
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);
/// How long one may take that is asked to stop, or a tracer until it waits.
const WITHIN: Duration = Duration::from_secs(2);
/// How long what is over in a moment, as a rule, may take.
const PASSES_WITHIN: Duration = Duration::from_secs(3);

/// The thread that traces one, if it is not of this process.
#[must_use]
pub fn tracer_of(pid: Pid, tid: Tid) -> Option<Tid> {
    let status = proc::Status::read(pid, &format!("task/{tid}/status")).ok()?;
    let tracer = Tid(status.value("TracerPid")?.parse().ok()?);
    (tracer.0 != 0 && tracer.0 != nix::unistd::gettid().as_raw()).then_some(tracer)
}

/// Whether a traced thread is in a stop.
pub(crate) fn stands_still(pid: Pid, tid: Tid) -> bool {
    proc::Stat::read(pid, &format!("task/{tid}/stat")).is_ok_and(|stat| stat.state() == 't')
}

/// Waits until all of them stand still, and has their tracers stop those that run. False when somebody was let go
/// for that and is to be stopped once more.
///
/// # Errors
/// [`FreezerError::Refused`] when one runs, or its tracer does.
pub(super) fn settle(frozen: &mut Frozen) -> Result<bool, FreezerError> {
    let free = |tracer: Tid| {
        let of = |pid| frozen.threads(pid).into_iter();
        let mut all = frozen.pids().flat_map(of);
        all.any(|(tid, thread)| tid == tracer && thread.traced_by.is_none())
    };
    let begun = Instant::now();
    let mut passing = None;
    let mut running: BTreeMap<Tid, Vec<(Pid, Tid)>> = BTreeMap::new();
    for pid in frozen.pids() {
        let threads = frozen.threads(pid);
        let Some(tracer) = frozen.traced_by(pid) else {
            continue;
        };
        let refuse = |why: String| Err(FreezerError::refuse(pid, "ptrace", why));
        if threads
            .iter()
            .any(|(_, thread)| thread.traced_by != Some(tracer))
        {
            return refuse(format!("{tracer} traces some of its threads, and not all"));
        }
        if !free(tracer) {
            return refuse(format!("{tracer}, which traces it, is not stopped"));
        }
        if let Some(why) = capture::traced_passing(pid)? {
            passing.get_or_insert((tracer, pid, why));
            continue;
        }
        for (tid, _) in threads {
            while !stands_still(pid, tid) && begun.elapsed() < SOON {
                std::thread::sleep(BETWEEN_LOOKS);
            }
            if !stands_still(pid, tid) {
                running.entry(tracer).or_default().push((pid, tid));
            }
        }
    }
    if let Some((tracer, pid, why)) = passing {
        if frozen.begun.elapsed() > PASSES_WITHIN {
            return Err(FreezerError::refuse(pid, "ptrace", why));
        }
        let_both_go(frozen, tracer);
        return Ok(false);
    }
    for (tracer, threads) in running {
        let passes = frozen.begun.elapsed() < PASSES_WITHIN;
        let held = match held::hold(frozen, tracer, &threads) {
            Err(FreezerError::Refused(_)) if passes => false,
            held => held?,
        };
        if held {
            // It makes its call again behind what it does for its tracees.
            frozen.repeating.remove(&tracer);
            wait_for_all(tracer, &threads)?;
        } else if !passes {
            let (pid, _) = threads[0];
            let why = format!("{tracer} traces it and is busy, and it runs");
            return Err(FreezerError::refuse(pid, "ptrace", why));
        } else {
            let_both_go(frozen, tracer);
            return Ok(false);
        }
    }
    Ok(true)
}

fn wait_for_all(tracer: Tid, threads: &[(Pid, Tid)]) -> Result<(), FreezerError> {
    let begun = Instant::now();
    for (pid, tid) in threads {
        while !stands_still(*pid, *tid) {
            if begun.elapsed() > WITHIN {
                let why = format!("{tracer} traces it, and it runs");
                return Err(FreezerError::refuse(*pid, "ptrace", why));
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }
    Ok(())
}

/// Lets a tracer go on until it waits, and forgets what was known of its tracees.
fn let_both_go(frozen: &mut Frozen, tracer: Tid) {
    let same = |one: Pid, other: Pid| {
        let same = kcmp(one.leader(), other.leader(), KcmpKind::Vm, 0, 0);
        same.is_ok_and(Ordering::is_eq)
    };
    let is = |pid: &Pid| {
        let threads = frozen.threads(*pid);
        let own = threads.iter().any(|(tid, _)| *tid == tracer);
        own || threads
            .iter()
            .any(|(_, thread)| thread.traced_by == Some(tracer))
    };
    let mut all: Vec<Pid> = frozen.pids().filter(is).collect();
    // For whom one waits in vfork(2).
    for pid in all.clone() {
        let children = proc::children(pid).unwrap_or_default().into_iter();
        all.extend(children.filter(|child| same(pid, *child)));
    }
    for pid in all {
        frozen.release(pid);
    }
    // Not always the same time, lest they be met at the same place always.
    let odd = frozen.begun.elapsed().subsec_micros() % 8;
    std::thread::sleep(BETWEEN_LOOKS * (1 + odd));
}

/// Waits until a killed process is gone or can be waited for: it is nobody's here. Its leader has ended before its
/// other threads, as a rule, whose ids a restore needs.
pub(super) fn wait_for_end(pid: Pid, limit: Duration) {
    let begun = Instant::now();
    let ended = |stat: proc::Stat| matches!(stat.state(), 'Z' | 'X');
    let others =
        || proc::threads(pid).is_ok_and(|tids| tids.iter().any(|tid| *tid != pid.leader()));
    let lives = || proc::Stat::read(pid, "stat").is_ok_and(|stat| !ended(stat) || others());
    while lives() && begun.elapsed() < limit {
        std::thread::sleep(Duration::from_micros(200));
    }
}
