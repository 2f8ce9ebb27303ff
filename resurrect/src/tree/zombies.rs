//! Processes that had ended and that nobody has waited for yet.
//!
//! They end again, as they looked. What stands for lost ones ([`crate::lost`]) looks as they did, and waits for its end.

use super::{core, exit, plan, take};
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::process::limits;
use crate::process::signals::{forget, put_action};
use crate::restore::Restore;
use crate::task::Task;
use crate::thread::leader::appearance;
use crate::thread::{attributes, credentials};
use persist_mem::manifest::{SigAction, State};
use sys::batch::Batch;
use sys::wait::{self, Status};
use sys::{Errno, Pid};

const SIG_IGN: u64 = 1;
/// The address of a handler that never runs.
const NOWHERE: u64 = 0x1000;
const SIG_SETMASK: i32 = 2;
const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;

/// Ends them all.
pub(crate) fn end_all(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    dress_lost(restore)?;
    let mut cores = None;
    let zombies = restore.manifest.processes.iter().rev();
    for process in zombies.filter(|p| plan::is_zombie(p)) {
        let State::Zombie {
            status,
            signals,
            remains,
            limits: had,
        } = &process.state
        else {
            continue;
        };
        let pid = process.pid;
        let dumped = status & core::DUMPED != 0;
        if dumped {
            let place = match cores.take() {
                Some(place) => place,
                None => core::Place::make(restore)?,
            };
            place.enter(restore, pid)?;
            cores = Some(place);
        }
        let tid = restore.task(pid)?.first.tid();
        if let Some(processor) = &restore.processor {
            processor.release(tid);
        }
        let signal = status & 0x7f;
        let mut batch = Batch::new();
        // A core needs room.
        let later = |which: u32| dumped && which == limits::CORE;
        limits::show(&mut batch, had, later);
        actions(&mut batch, *signals, signal);
        appearance(&mut batch, remains);
        let doing = "preparing its end";
        run(pid, doing, &mut restore.task(pid)?.first, &batch)?;
        if dumped {
            core::allow(restore, pid)?;
        }
        let mut task = take(restore, pid)?;
        if signal == 0 {
            let mut last = Batch::new();
            let mask = last.data(&remains.sigmask.to_le_bytes());
            let args = [SIG_SETMASK.into(), mask.into(), 0.into(), 8.into()];
            last.call("blocking its signals", nr::RT_SIGPROCMASK, args);
            exit(pid, &mut task, last, status >> 8 & 0xff)?;
        } else {
            by_signal(pid, &task, signal, remains.sigmask)?;
        }
        if dumped && let Some(limit) = had.get(limits::CORE as usize) {
            // Nothing depends on it any more.
            let _ = sys::process::prlimit(task.host_pid(), limits::CORE, Some(*limit));
        }
    }
    Ok(())
}

/// Has what stands for lost processes look like them.
fn dress_lost(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for process in &restore.manifest.processes {
        if let State::Lost { remains, .. } = &process.state {
            let pid = process.pid;
            let mut batch = Batch::new();
            attributes::name(&mut batch, &remains.comm);
            credentials::become_ended_user(&mut batch, &remains.credentials);
            let first = &mut restore.task(pid)?.first;
            run(pid, "standing for it", first, &batch)?;
        }
    }
    Ok(())
}

/// Ignores and catches what it did, and nothing that this process does; the signal that ends it does so. Those that
/// helpers have left, when it founded the group that it is in, do not come where it has a handler.
fn actions(batch: &mut Batch, [ignored, caught]: [u64; 2], deadly: i32) {
    forget(batch);
    for signal in (1..=64).filter(|signal| ![SIGKILL, SIGSTOP].contains(signal)) {
        let bit = |mask: u64| signal != deadly && mask >> (signal - 1) & 1 != 0;
        let handler = match (bit(ignored), bit(caught)) {
            (true, _) => SIG_IGN,
            (_, true) => NOWHERE,
            _ => 0,
        };
        let action = SigAction {
            handler,
            ..SigAction::default()
        };
        put_action(batch, signal as usize, &action);
    }
}

/// A deadly signal that is not blocked ends it wherever it is.
fn by_signal(pid: Pid, task: &Task, signal: i32, mask: u64) -> Result<(), ResurrectError> {
    let failed = || ResurrectError::call(pid, "ending it by a signal");
    // SIGKILL waits for nothing, and then there is nobody to be told.
    let unless_gone = |done: sys::Result<()>| match done {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(failed()(errno)),
    };
    let tid = task.first.tid();
    sys::ptrace::set_sigmask(tid, mask & !(1 << (signal - 1))).map_err(failed())?;
    sys::process::kill(task.host_pid(), signal).map_err(failed())?;
    unless_gone(sys::ptrace::cont(tid, 0))?;
    loop {
        match wait::wait_for(tid).map_err(failed())? {
            Status::Exited(_) | Status::Killed(_) => return Ok(()),
            // The stop before a signal takes effect: let it.
            Status::Signal(signal) => unless_gone(sys::ptrace::cont(tid, signal))?,
            _ => unless_gone(sys::ptrace::cont(tid, 0))?,
        }
    }
}
