//! Making the processes, in the places they had.

mod birth;
mod core;
pub(crate) mod ids;
mod plan;
pub(crate) mod vfork;
pub(crate) mod zombies;

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use crate::task::Task;
use crate::thread::landlock::Early;
pub(crate) use birth::{OPTIONS, clone_args, taken, thread, wait_until_stopped};
use persist_mem::manifest::Manifest;
use plan::{Outside, Step};
use sys::batch::Batch;
use sys::{Errno, Pid};

const PR_SET_CHILD_SUBREAPER: i32 = 36;

/// Finds out whether there is a way to where all processes are, before anything is lost.
///
/// # Errors
/// The process without one, and why.
pub fn possible(manifest: &Manifest) -> Result<(), (Pid, String)> {
    let outside = Outside {
        sid: Pid(0),
        pgid: Pid(0),
    };
    let steps = plan::plan(&manifest.processes, outside)?;
    let mut early = Early::of(&manifest.processes);
    for step in steps {
        if let Step::Fork { pid, by, .. } = step {
            early.fork(pid, by)?;
        }
    }
    early.finish()
}

/// Makes every process, zombies-to-be included, as bare stopped shells.
pub(crate) fn build(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let me = nix::unistd::Pid::this();
    let sid =
        nix::unistd::getsid(Some(me)).map_err(ResurrectError::own("asking for the session"))?;
    let outside = if !restore.is_upgrade() {
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
                end(restore, pid, reaper)?;
            }
        }
    }
    if restore.tasks.contains_key(&birth::INTERMEDIATE) {
        end(restore, birth::INTERMEDIATE, None)?;
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
    end(restore, pid, Some(first))
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

/// Ends a helper; `reaper`, when given, waits for it.
fn end(restore: &mut Restore<'_>, pid: Pid, reaper: Option<Pid>) -> Result<(), ResurrectError> {
    let mut task = take(restore, pid)?;
    exit(pid, &mut task, Batch::new(), 0)?;
    match reaper {
        None => Ok(()),
        Some(reaper) => {
            const WALL: i32 = 0x4000_0000;
            let args = [pid.0.into(), 0.into(), WALL.into(), 0.into()];
            one(restore, reaper, "waiting for a helper", nr::WAIT4, &args)
        }
    }
}

/// A process that nothing is to be done for any more.
fn take(restore: &mut Restore<'_>, pid: Pid) -> Result<Task, ResurrectError> {
    let task = restore.tasks.remove(&pid);
    task.ok_or_else(|| ResurrectError::Impossible {
        pid,
        why: "it was not made".into(),
    })
}

/// Ends a process behind the calls of `batch`.
fn exit(pid: Pid, task: &mut Task, mut batch: Batch, code: i32) -> Result<(), ResurrectError> {
    batch.call("ending", nr::EXIT_GROUP, [code.into()]);
    match task.first.run_raw(&batch) {
        Err(sys::tracee::TraceeError::Ended { .. }) => Ok(()),
        Err(cause) => Err(ResurrectError::tracee(pid, "ending it")(cause)),
        Ok(_) => Err(ResurrectError::call(pid, "ending it")(Errno::EBUSY)),
    }
}
