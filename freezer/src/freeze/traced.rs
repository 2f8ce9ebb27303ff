//! Threads that another process traces (ptrace(2)).
//!
//! They have their tracer already and cannot be seized. In one of its stops such a thread goes nowhere while its
//! tracer stands still, so a stopped tracer is as good as a stopped tracee. Nothing is done to it.

use super::{Frozen, held};
use crate::{FreezerError, proc};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use sys::{Pid, Tid};

/// How long one that runs may take to its next stop before its tracer is made to stop it.
const SOON: Duration = Duration::from_millis(5);
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);
/// How long one may take that is asked to stop, or a tracer until it waits.
const WITHIN: Duration = Duration::from_secs(2);

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
        for (tid, _) in threads {
            while !stands_still(pid, tid) && begun.elapsed() < SOON {
                std::thread::sleep(BETWEEN_LOOKS);
            }
            if !stands_still(pid, tid) {
                running.entry(tracer).or_default().push((pid, tid));
            }
        }
    }
    for (tracer, threads) in running {
        if held::hold(frozen, tracer, &threads)? {
            wait_for_all(tracer, &threads)?;
        } else if frozen.begun.elapsed() > WITHIN {
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
    let is = |pid: &Pid| {
        let threads = frozen.threads(*pid);
        let own = threads.iter().any(|(tid, _)| *tid == tracer);
        own || threads
            .iter()
            .any(|(_, thread)| thread.traced_by == Some(tracer))
    };
    let both: Vec<Pid> = frozen.pids().filter(is).collect();
    for pid in both {
        frozen.release(pid);
    }
    std::thread::sleep(BETWEEN_LOOKS);
}

/// Waits until a killed process is gone or can be waited for: it is nobody's here.
pub(super) fn wait_for_end(pid: Pid, limit: Duration) {
    let begun = Instant::now();
    let lives =
        || proc::Stat::read(pid, "stat").is_ok_and(|stat| !matches!(stat.state(), 'Z' | 'X'));
    while lives() && begun.elapsed() < limit {
        std::thread::sleep(Duration::from_micros(200));
    }
}
