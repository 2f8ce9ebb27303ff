//! Making the processes, in the places they had.

mod birth;
mod core;
pub(crate) mod ids;
mod plan;
pub(crate) mod vfork;

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
pub(crate) use birth::{OPTIONS, clone_args, taken, wait_until_stopped};
use persist_mem::manifest::State;
use plan::{Outside, Step};
use sys::batch::Batch;
use sys::wait::{self, Status};
use sys::{Errno, Pid};

const PR_SET_CHILD_SUBREAPER: i32 = 36;

/// Makes every process, zombies-to-be included, as bare stopped shells.
pub(crate) fn build(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let me = nix::unistd::Pid::this();
    let sid =
        nix::unistd::getsid(Some(me)).map_err(ResurrectError::own("asking for the session"))?;
    let outside = if restore.options.root_flags == 0 {
        Outside {
            sid: Pid(sid.as_raw()),
            pgid: Pid(nix::unistd::getpgrp().as_raw()),
        }
    } else {
        // Seen from a new PID namespace, this process's session and group have no number.
        Outside {
            sid: Pid(0),
            pgid: Pid(0),
        }
    };
    let steps = plan::plan(&restore.manifest.processes, outside)
        .map_err(|(pid, why)| ResurrectError::Impossible { pid, why })?;
    for step in steps {
        match step {
            Step::Fork { pid, by, sibling } => birth::fork(restore, pid, by, sibling)?,
            Step::Subreaper(pid) => {
                let args = [PR_SET_CHILD_SUBREAPER.into(), 1.into()];
                one(restore, pid, "becoming a subreaper", nr::PRCTL, &args)?;
            }
            Step::Session(pid) => {
                one(restore, pid, "founding its session", nr::SETSID, &[])?;
                crate::files::terminal::control(restore, pid)?;
            }
            Step::Group { pid, pgid } => {
                let args = [0.into(), pgid.0.into()];
                one(
                    restore,
                    pid,
                    "joining its process group",
                    nr::SETPGID,
                    &args,
                )?;
            }
            Step::End { pid, reaper } => {
                let founder = restore.tasks.contains_key(&birth::INTERMEDIATE);
                let reaper = reaper.or(founder.then_some(birth::INTERMEDIATE));
                end(restore, pid, reaper, &Ending::Exit(0))?;
            }
        }
    }
    if restore.tasks.contains_key(&birth::INTERMEDIATE) {
        end(restore, birth::INTERMEDIATE, None, &Ending::Exit(0))?;
    }
    crate::files::terminal::set_foreground(restore)
}

/// Makes a short-lived child of the first process with the id `pid`, for what only a process with that id
/// can do; [`end_helper`] ends it.
///
/// # Errors
/// [`ResurrectError::Taken`] among others.
pub(crate) fn helper(restore: &mut Restore<'_>, pid: Pid) -> Result<(), ResurrectError> {
    let first = first(restore, pid)?;
    birth::fork(restore, pid, Some(first), false)
}

/// Ends a helper.
pub(crate) fn end_helper(restore: &mut Restore<'_>, pid: Pid) -> Result<(), ResurrectError> {
    let first = first(restore, pid)?;
    end(restore, pid, Some(first), &Ending::Exit(0))
}

fn first(restore: &Restore<'_>, pid: Pid) -> Result<Pid, ResurrectError> {
    let first = restore
        .manifest
        .processes
        .first()
        .map(|process| process.pid);
    first.ok_or_else(|| ResurrectError::Impossible {
        pid,
        why: "there is no process to make it".into(),
    })
}

/// One call in the thread that acts for a process.
fn one(
    restore: &mut Restore<'_>,
    pid: Pid,
    doing: &'static str,
    nr: i64,
    args: &[sys::batch::Arg],
) -> Result<(), ResurrectError> {
    let mut batch = Batch::new();
    let mut all = [sys::batch::Arg::Value(0); 6];
    all[..args.len()].copy_from_slice(args);
    batch.call(doing, nr, all);
    let first = &mut restore.task(pid)?.first;
    run(pid, doing, first, &batch).map(drop)
}

/// How a process ends.
enum Ending {
    Exit(i32),
    Signal(i32),
}

/// Ends a process; `reaper`, when given, waits for it.
fn end(
    restore: &mut Restore<'_>,
    pid: Pid,
    reaper: Option<Pid>,
    ending: &Ending,
) -> Result<(), ResurrectError> {
    let gone = || ResurrectError::Impossible {
        pid,
        why: "it was not made".into(),
    };
    let mut task = restore.tasks.remove(&pid).ok_or_else(gone)?;
    match *ending {
        Ending::Exit(code) => {
            let mut batch = Batch::new();
            batch.call("ending", nr::EXIT_GROUP, [code.into()]);
            match task.first.run_raw(&batch) {
                Err(sys::tracee::TraceeError::Ended { .. }) => {}
                Err(cause) => return Err(ResurrectError::tracee(pid, "ending it")(cause)),
                Ok(_) => return Err(ResurrectError::call(pid, "ending it")(Errno::EBUSY)),
            }
        }
        Ending::Signal(signal) => end_by_signal(pid, &task, signal)?,
    }
    match reaper {
        None => Ok(()),
        Some(reaper) => {
            const WALL: i32 = 0x4000_0000;
            let args = [pid.0.into(), 0.into(), WALL.into(), 0.into()];
            one(restore, reaper, "waiting for a helper", nr::WAIT4, &args)
        }
    }
}

/// A deadly signal that is not blocked ends it wherever it is.
fn end_by_signal(pid: Pid, task: &crate::task::Task, signal: i32) -> Result<(), ResurrectError> {
    let failed = || ResurrectError::call(pid, "ending it by a signal");
    // SIGKILL waits for nothing, and then there is nobody to be told.
    let unless_gone = |done: sys::Result<()>| match done {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(failed()(errno)),
    };
    let tid = task.first.tid();
    sys::process::kill(task.host_pid(), signal).map_err(failed())?;
    unless_gone(sys::ptrace::set_sigmask(tid, 0))?;
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

/// Ends the processes that had ended and were not waited for yet.
pub(crate) fn end_zombies(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let mut cores = None;
    let zombies = restore.manifest.processes.iter().rev();
    for process in zombies.filter(|p| plan::is_zombie(p)) {
        let State::Zombie {
            status,
            comm,
            users,
            groups,
        } = &process.state
        else {
            continue;
        };
        birth::name(restore, process.pid, comm)?;
        let dumped = status & core::DUMPED != 0;
        if dumped {
            let place = match cores.take() {
                Some(place) => place,
                None => core::Place::make(restore)?,
            };
            place.enter(restore, process.pid)?;
            cores = Some(place);
        }
        birth::belong(restore, process.pid, *users, *groups)?;
        if dumped {
            core::allow(restore, process.pid)?;
        }
        let tid = restore.task(process.pid)?.first.tid();
        if let Some(processor) = &restore.processor {
            processor.release(tid);
        }
        let ending = match status & 0x7f {
            0 => Ending::Exit(status >> 8 & 0xff),
            signal => Ending::Signal(signal),
        };
        end(restore, process.pid, None, &ending)?;
    }
    Ok(())
}
