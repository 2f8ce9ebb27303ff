//! The world's namespaces.

use super::{Result, SupervisorError, call};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::pause;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use sys::Pid;
use sys::process::{kill, pidfd_open, spawn};

/// include/uapi/linux/sched.h; not in nix.
const CLONE_NEWTIME: i32 = 0x80;

/// A PID and a time namespace with a first process that does nothing yet.
#[derive(Debug)]
pub struct Namespaces {
    /// The first process, by its id outside.
    init: Pid,
    /// The same as a descriptor.
    init_fd: OwnedFd,
    /// Our own PID namespace.
    home: File,
}

impl Namespaces {
    /// Makes them. `proc` is where a `proc` of this process's PID namespace is mounted; `offsets`
    /// comes from [`super::clock::offsets`]. From now on every child of this process lives in the
    /// time namespace.
    ///
    /// The first process waits for a restorer to take it over; its memory is a copy of ours.
    ///
    /// # Errors
    /// A kernel without these namespaces; `EPERM`.
    pub fn create(proc: &Path, offsets: &str) -> Result<Namespaces> {
        let home_path = proc.join("self/ns/pid");
        let home = File::open(&home_path).map_err(|source| SupervisorError::File {
            path: home_path,
            source,
        })?;
        unshare(CloneFlags::from_bits_retain(CLONE_NEWTIME)).map_err(call("unshare(NEWTIME)"))?;
        let path: PathBuf = proc.join("self/timens_offsets");
        std::fs::write(&path, offsets).map_err(|source| SupervisorError::File { path, source })?;
        let flags = u64::from(CloneFlags::CLONE_NEWPID.bits().cast_unsigned());
        let init = spawn(flags, &[], stub).map_err(call("clone3(NEWPID)"))?;
        let init_fd = pidfd_open(init).map_err(call("pidfd_open"))?;
        Ok(Namespaces {
            init,
            init_fd,
            home,
        })
    }

    /// The world's first process, by its id outside.
    #[must_use]
    pub fn init(&self) -> Pid {
        self.init
    }

    /// Starts a child of this process inside, with the id `pid` there. Returns its id outside.
    ///
    /// # Errors
    /// `EEXIST` when the id is taken.
    pub fn spawn_inside(&self, pid: Pid, body: impl FnOnce() -> i32) -> Result<Pid> {
        setns(&self.init_fd, CloneFlags::CLONE_NEWPID).map_err(call("setns"))?;
        let child = spawn(0, &[pid], body).map_err(call("clone3(set_tid)"));
        setns(&self.home, CloneFlags::CLONE_NEWPID).map_err(call("setns back"))?;
        child
    }

    /// Ends everything inside: the kernel kills all when the first process ends.
    pub fn destroy(&self) {
        if let Err(errno) = kill(self.init, nix::libc::SIGKILL) {
            log::warn!("the world's first process cannot be ended: {errno}");
        }
    }
}

/// Waits for ever; a restorer puts the saved init in its place.
fn stub() -> i32 {
    // What the supervisor holds back is nothing to the saved init.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    loop {
        pause();
    }
}
