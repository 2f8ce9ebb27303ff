//! Job control: processes that a signal had stopped, and what their parents know of that.
//!
//! Stopped while their parents are, so that the parents' queues, which are filled later, do not tell of
//! it twice.

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::ChildReport;
use std::time::Duration;
use sys::batch::Batch;
use sys::tracee::Tracee;
use sys::wait::{self, Status};
use sys::{Errno, Pid, process, ptrace};

const SIGSTOP: i32 = 19;
const SIGCONT: i32 = 18;
const SIG_DFL: u64 = 0;
const P_PID: i32 = 1;
const WNOHANG: i32 = 1;
const WSTOPPED: i32 = 2;
const WALL: i32 = 0x4000_0000;
const WITHIN: Duration = Duration::from_secs(10);

/// Stops them again.
pub(crate) fn stop(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let reports: Vec<_> = restore
        .lives()
        .map(|(pid, live)| (pid, live.reports.clone()))
        .collect();
    let report = |child: Pid| {
        let all = reports.iter().flat_map(|(_, reports)| reports);
        all.filter(|(pid, _)| *pid == child)
            .map(|(_, report)| *report)
            .next()
    };
    for (pid, live) in restore.lives() {
        let went_on = report(pid) == Some(ChildReport::Continued);
        let signal = live.stopped.or(went_on.then_some(SIGSTOP));
        let Some(signal) = signal else { continue };
        // A handler or a disposition of its own would not stop it.
        let action = usize::try_from(signal - 1)
            .ok()
            .and_then(|at| live.actions.get(at));
        let stops = signal == SIGSTOP || action.is_none_or(|action| action.handler == SIG_DFL);
        let signal = if stops { signal } else { SIGSTOP };
        stop_one(restore, pid, signal)?;
        if went_on {
            let host = restore.task(pid)?.host_pid();
            process::kill(host, SIGCONT).map_err(ResurrectError::call(pid, "continuing it"))?;
        }
    }
    for process in &restore.manifest.processes {
        let stopped = process.live().is_some_and(|live| live.stopped.is_some());
        if stopped && report(process.pid).is_none() && restore.tasks.contains_key(&process.ppid) {
            tell(restore, process.ppid, process.pid)?;
        }
    }
    Ok(())
}

fn stop_one(restore: &mut Restore<'_>, pid: Pid, signal: i32) -> Result<(), ResurrectError> {
    let task = restore.task(pid)?;
    let failed = || ResurrectError::call(pid, "stopping it as it was");
    let host = task.host_pid();
    let bit = 1_u64 << (signal - 1);
    let mask = ptrace::get_sigmask(task.first.tid()).map_err(failed())?;
    ptrace::set_sigmask(task.first.tid(), mask & !bit).map_err(failed())?;
    process::tgkill(host, task.first.tid(), signal).map_err(failed())?;
    ptrace::cont(task.first.tid(), 0).map_err(failed())?;
    expect(pid, &task.first, Status::Signal(signal))?;
    ptrace::cont(task.first.tid(), signal).map_err(failed())?;
    // It tells of its own stop at once. Before that the others would run on: they are where a batch ended.
    expect(pid, &task.first, Status::GroupStop(signal))?;
    for thread in task.threads.values() {
        ptrace::cont(thread.tid(), 0).map_err(failed())?;
        expect(pid, thread, Status::GroupStop(signal))?;
    }
    ptrace::set_sigmask(task.first.tid(), mask).map_err(failed())
}

fn expect(pid: Pid, tracee: &Tracee, wanted: Status) -> Result<(), ResurrectError> {
    let failed = || ResurrectError::call(pid, "stopping it as it was");
    match wait::wait_for_at_most(tracee.tid(), WITHIN).map_err(failed())? {
        Some(status) if status == wanted => Ok(()),
        Some(status) => Err(ResurrectError::Impossible {
            pid,
            why: format!(
                "thread {} stopped with {status:?} instead of {wanted:?}",
                tracee.tid()
            ),
        }),
        None => Err(failed()(Errno::ETIMEDOUT)),
    }
}

/// Lets a parent hear of a stop that it knows.
fn tell(restore: &mut Restore<'_>, parent: Pid, child: Pid) -> Result<(), ResurrectError> {
    let mut batch = Batch::new();
    let how = WNOHANG | WSTOPPED | WALL;
    let args = [P_PID.into(), child.0.into(), 0.into(), how.into(), 0.into()];
    batch.call("hearing of a stopped child", nr::WAITID, args);
    let first = &mut restore.task(parent)?.first;
    run(parent, "hearing of a stopped child", first, &batch).map(drop)
}
