//! Signals that would end kupgrade wait while processes are stopped, so that they are let go in order.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};

pub(crate) const HELD: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// Those that end nobody, and mean what they always mean when they have waited.
const HARMLESS: [Signal; 5] = [
    Signal::SIGCHLD,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// Holds them back until dropped.
#[derive(Debug)]
pub(crate) struct Held {
    before: SigSet,
}

impl Held {
    pub(crate) fn hold() -> Result<Held> {
        let mut before = SigSet::empty();
        // Also the others: the end of a process whose leader has ended before its other threads is told to its tracer
        // by the signal that its parent is to have, whichever that is (kernel/exit.c, release_task).
        sigprocmask(
            SigmaskHow::SIG_BLOCK,
            Some(&SigSet::all()),
            Some(&mut before),
        )
        .context("holding back signals")?;
        Ok(Held { before })
    }

    /// Fails when one of them came: that is its effect.
    ///
    /// # Errors
    /// Names the signal.
    pub(crate) fn check(&self) -> Result<()> {
        // SigPnd and ShdPnd of proc_pid_status(5).
        let me = sys::Pid(nix::unistd::getpid().as_raw());
        let status = freezer::proc::Status::read(me, "status")?;
        let waiting = status.mask("SigPnd") | status.mask("ShdPnd");
        for signal in HELD {
            if waiting >> (signal as i32 - 1) & 1 == 1 {
                SigSet::from(signal)
                    .wait()
                    .context("taking a signal that waits")?;
                bail!("the signal {signal} came; everything goes on as before");
            }
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let left = HELD.into_iter().chain(HARMLESS);
        let left = left.fold(0, |mask, signal| mask | 1 << (signal as u64 - 1));
        sys::process::forget_signals(!left);
        // There is nothing to be done about a failure, which the mask itself rules out.
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}
