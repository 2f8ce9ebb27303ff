//! A checkpoint is made by a process of its own.
//!
//! A thread whose tracer is killed just after it was stopped sees its call fail. So whoever kills the command
//! or its group (SIGKILL) ends this one's parent, which has it let the processes go on in order. Only who kills both
//! leaves that to the kernel.

use crate::say;
use anyhow::{Context, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use std::process::ExitCode;
use sys::Pid;
use sys::wait::{Status, poll};

/// What would end the command: the worker minds it, and the command ends after it.
const LEFT_TO_THE_WORKER: [Signal; 4] = crate::signals::HELD;

/// Does `work` in a child and waits for that.
///
/// # Errors
/// The child cannot be made, or was killed.
pub(crate) fn run(work: impl FnOnce() -> Result<()>) -> Result<ExitCode> {
    let me = nix::unistd::getpid();
    let mut awaited: SigSet = LEFT_TO_THE_WORKER.into_iter().collect();
    awaited.add(Signal::SIGCHLD);
    let before = SigSet::thread_get_mask().context("asking for blocked signals")?;
    awaited.thread_block().context("holding back signals")?;
    let worker = sys::process::spawn(0, &[], || {
        let ready = set_pdeathsig(Signal::SIGTERM)
            .and_then(|()| before.thread_set_mask())
            .and_then(|()| nix::unistd::setsid());
        let done = ready.context("preparing the process for the work");
        let done = done.and_then(|_| {
            let is_waited_for = nix::unistd::getppid() == me;
            is_waited_for.then(work).context("the command was ended")?
        });
        match done {
            Ok(()) => 0,
            Err(error) => {
                say::failure(&error);
                1
            }
        }
    })
    .context("making a process for the work")?;
    match wait_for(worker, &awaited)? {
        Status::Exited(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        other => {
            anyhow::bail!(
                "the process that made it was killed ({other:?}); everything goes on as before unless the directory \
                 has a manifest"
            )
        }
    }
}

/// Waits for the end of the worker, and hands on what comes for it meanwhile.
fn wait_for(worker: Pid, awaited: &SigSet) -> Result<Status> {
    loop {
        let ended = poll(worker.leader()).context("waiting for the work")?;
        if let Some(status @ (Status::Exited(_) | Status::Killed(_))) = ended {
            return Ok(status);
        }
        let came = awaited.wait().context("waiting for the work")?;
        if came != Signal::SIGCHLD {
            // It may just have ended.
            let _ = sys::process::kill(worker, came as i32);
        }
    }
}
