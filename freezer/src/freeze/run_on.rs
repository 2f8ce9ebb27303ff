//! A stopped thread runs on a little.

use super::stop::{self, Stop};
use super::{FrozenThread, STOP_WITHIN, calls, sleepers};
use crate::FreezerError;
use std::time::{Duration, Instant};
use sys::regs::Regs;
use sys::{Pid, Tid, ptrace};

/// How long it may run between two tries; longer where it did not come to it, since others have the processors.
const RUN: Duration = Duration::from_micros(20);
const LONGEST_RUN: Duration = Duration::from_millis(10);

/// Lets a thread run on, which has stopped with `regs`, until it is not `inside` any more. Returns what it has stopped
/// with, and whether it is outside: it may stay inside for so many tries, or have ended.
pub(super) fn run_on(
    (pid, tid): (Pid, Tid),
    mut regs: Regs,
    thread: &mut FrozenThread,
    most: usize,
    doing: &str,
    inside: impl Fn(&Regs) -> bool,
) -> Result<(Regs, bool), FreezerError> {
    let (begun, mut tries, mut run) = (Instant::now(), 0, RUN);
    while tries < most && begun.elapsed() < STOP_WITHIN {
        if !inside(&regs) {
            return Ok((regs, true));
        }
        let run_a_little = ptrace::cont(tid, 0).and_then(|()| {
            std::thread::sleep(run);
            ptrace::interrupt(tid)
        });
        run_a_little.map_err(FreezerError::call(pid, doing))?;
        match stop::wait_until_stopped(tid, STOP_WITHIN) {
            Some(Stop::Trap) => {}
            Some(Stop::Group(signal)) => thread.group_stop = Some(signal),
            Some(Stop::Gone) | None => return Ok((regs, true)),
        }
        let before = regs;
        regs = ptrace::get_regs(tid).map_err(FreezerError::call(pid, "reading registers"))?;
        let has_run = regs != before;
        tries += usize::from(has_run);
        if has_run {
            // A call that it is in now is not the one that it was looked at in.
            thread.call_has_begun(sleepers::monotonic_ns());
        }
        run = if has_run {
            RUN
        } else {
            (run * 2).min(LONGEST_RUN)
        };
        if thread.group_stop.is_none() {
            calls::begin_again(tid, &regs);
        }
    }
    Ok((regs, !inside(&regs)))
}
