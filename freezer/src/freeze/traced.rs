//! Threads that another process traces (ptrace(2)).
//!
//! They have their tracer already and cannot be seized. In one of its stops such a thread goes nowhere while its
//! tracer stands still, so a stopped tracer is as good as a stopped tracee. Nothing is done to it.

use super::Frozen;
use crate::{FreezerError, proc};
use std::time::{Duration, Instant};
use sys::{Pid, Tid};

/// How long one that runs may take to its next stop, when its tracer stands still.
const WITHIN: Duration = Duration::from_millis(200);

/// The thread that traces one, if it is not of this process.
pub(crate) fn tracer_of(pid: Pid, tid: Tid) -> Option<Tid> {
    let status = proc::Status::read(pid, &format!("task/{tid}/status")).ok()?;
    let tracer = Tid(status.value("TracerPid")?.parse().ok()?);
    (tracer.0 != 0 && tracer.0 != nix::unistd::gettid().as_raw()).then_some(tracer)
}

/// Whether a traced thread is in a stop.
pub(crate) fn stands_still(pid: Pid, tid: Tid) -> bool {
    proc::Stat::read(pid, &format!("task/{tid}/stat")).is_ok_and(|stat| stat.state() == 't')
}

/// Waits until all of them stand still.
///
/// # Errors
/// [`FreezerError::Refused`] when one runs, or its tracer does.
pub(super) fn settle(frozen: &Frozen) -> Result<(), FreezerError> {
    let begun = Instant::now();
    for pid in frozen.pids() {
        let threads = frozen.threads(pid);
        for (tid, thread) in &threads {
            let Some(tracer) = thread.traced_by else {
                continue;
            };
            let refuse = |why: String| Err(FreezerError::refuse(pid, "ptrace", why));
            if threads.len() > 1 {
                return refuse(format!("{tracer} traces it, and it has several threads"));
            }
            let stands = |of: &Pid| {
                let mut of = frozen.threads(*of).into_iter();
                of.any(|(tid, thread)| tid == tracer && thread.traced_by.is_none())
            };
            if !frozen.pids().any(|pid| stands(&pid)) {
                return refuse(format!("{tracer}, which traces it, is not stopped"));
            }
            while !stands_still(pid, *tid) {
                if begun.elapsed() > WITHIN {
                    return refuse(format!("{tracer} traces it, and it runs"));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    Ok(())
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
