//! The command and its worker.
//!
//! The worker does the upgrade and ends with its kernel. The command only waits for it, and is
//! carried like every other process: so whoever waits for the command gets its exit status, from
//! whichever kernel.

use super::before::Before;
use super::run;
use crate::{after, say};
use anyhow::{Context, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use std::path::Path;
use std::process::ExitCode;
use sys::Errno;
use sys::wait::{Status, wait_for};

/// What a terminal sends to all of us: the worker minds it, the command must not end before it.
const LEFT_TO_THE_WORKER: [Signal; 2] = [Signal::SIGINT, Signal::SIGQUIT];

/// Carries the host onto `kernel` and, there, tells how it went.
///
/// # Errors
/// The worker cannot be made, or the upgrade is not complete.
pub(crate) fn command(kernel: &Path, verify: bool) -> Result<ExitCode> {
    let me = nix::unistd::getpid();
    let mask: SigSet = LEFT_TO_THE_WORKER.into_iter().collect();
    mask.thread_block().context("holding back signals")?;
    let before = Before::note();
    let worker = sys::process::spawn(0, &[], || {
        // Whoever ends the command ends the upgrade.
        if set_pdeathsig(Signal::SIGTERM).is_err() || nix::unistd::getppid() != me {
            return 1;
        }
        let Err(error) = run(kernel, verify);
        log::info!("it ends here: {error:#}");
        say::aside(&format!("{error:#}"));
        1
    })
    .context("making the worker")?;
    let ended = wait_for(worker.leader());
    if let Ok(Status::Exited(_)) | Err(_) = ended {
        before.forget();
    } else {
        before.put_back();
    }
    match ended {
        Ok(Status::Exited(code)) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Ok(other) => anyhow::bail!("the worker was killed ({other:?}); the host is as before"),
        // It is not there: this is the other kernel.
        Err(Errno::ECHILD) => after::finish(),
        Err(errno) => Err(errno).context("waiting for the worker"),
    }
}
