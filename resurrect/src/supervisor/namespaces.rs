//! The world's namespaces: a time namespace that the supervisor makes, a PID namespace that comes
//! with the first restored process.

use super::{Result, SupervisorError, call};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use std::fs::File;
use std::path::Path;
use sys::Pid;
use sys::process::{pidfd_open, spawn};
use sys::wait::{Status, wait_for};

/// include/uapi/linux/sched.h; not in nix.
const CLONE_NEWTIME: i32 = 0x80;

/// Makes the time namespace. `proc` is where this process's own procfs is mounted; `offsets` comes
/// from [`super::clock::offsets`]. From now on every child of this process lives in it.
///
/// # Errors
/// A kernel without time namespaces; `EPERM`.
pub fn new_time(proc: &Path, offsets: &str) -> Result<()> {
    unshare(CloneFlags::from_bits_retain(CLONE_NEWTIME)).map_err(call("unshare(NEWTIME)"))?;
    let path = proc.join("self/timens_offsets");
    std::fs::write(&path, offsets).map_err(|source| SupervisorError::File { path, source })
}

/// Our own PID namespace, to come back to.
#[derive(Debug)]
pub struct Home(File);

impl Home {
    /// `proc` is where this process's own procfs is mounted.
    ///
    /// # Errors
    /// It is not there.
    pub fn of(proc: &Path) -> Result<Home> {
        let path = proc.join("self/ns/pid");
        File::open(&path)
            .map(Home)
            .map_err(|source| SupervisorError::File { path, source })
    }

    /// Runs `body` in a short-lived child inside the PID namespace of `init` and waits for it.
    ///
    /// # Errors
    /// [`SupervisorError::Inside`] when the body returned another number than 0.
    pub fn run_inside(&self, init: Pid, body: impl FnOnce() -> i32) -> Result<()> {
        let namespace = pidfd_open(init).map_err(call("pidfd_open"))?;
        setns(&namespace, CloneFlags::CLONE_NEWPID).map_err(call("setns"))?;
        let child = spawn(0, &[], body).map_err(call("clone3"));
        setns(&self.0, CloneFlags::CLONE_NEWPID).map_err(call("setns back"))?;
        match wait_for(child?.leader()).map_err(call("waitpid"))? {
            Status::Exited(0) => Ok(()),
            other => Err(SupervisorError::Inside(other)),
        }
    }
}

/// Lets signals come that the supervisor holds back: what it starts has nothing to do with that.
pub fn release_signals() {
    // An empty set is always a good one.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}
