//! What can go wrong, and what is refused.

use core::fmt;
use sys::tracee::TraceeError;
use sys::{Errno, Pid, Tid};

/// Something a process holds that is not carried.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Refusal {
    /// The process.
    pub pid: Pid,
    /// Its name.
    pub comm: String,
    /// What it holds, as it would be looked up: `fd 7`, `vma 7f00..`, `seccomp`.
    pub resource: String,
    /// Why it is not carried.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {} ({}): {}: {}",
            self.pid, self.comm, self.resource, self.reason
        )
    }
}

/// Why a tree could not be stopped or described.
#[derive(Debug, thiserror::Error)]
pub enum FreezerError {
    /// A file of `/proc` could not be read.
    #[error("process {pid}: cannot read {what}: {cause}")]
    Proc {
        /// The process.
        pid: Pid,
        /// Path below `/proc/PID`.
        what: String,
        /// Why.
        cause: std::io::Error,
    },
    /// A number that stands for no process of user space.
    #[error("there is no process {pid}{hint}")]
    NoProcess {
        /// The number.
        pid: Pid,
        /// What it is instead, if anything.
        hint: String,
    },
    /// A file of `/proc` does not say what it should.
    #[error("process {pid}: {what} is not understood: {text}")]
    Format {
        /// The process.
        pid: Pid,
        /// Path below `/proc/PID`.
        what: String,
        /// The line.
        text: String,
    },
    /// A thread could not be seized.
    #[error("thread {tid} of process {pid} cannot be stopped: {errno}{hint}")]
    Seize {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Tid,
        /// Why.
        errno: Errno,
        /// What to do about it.
        hint: &'static str,
    },
    /// A thread did not stop in time.
    #[error("thread {tid} of process {pid} did not stop within {seconds} s (state {state}){hint}")]
    WontStop {
        /// The process.
        pid: Pid,
        /// The thread.
        tid: Tid,
        /// The bound.
        seconds: u64,
        /// Its state letter in `/proc`.
        state: char,
        /// What it waits for, where that is known.
        hint: String,
    },
    /// Work in a stopped thread failed.
    #[error("process {pid}: {cause}")]
    Tracee {
        /// The process.
        pid: Pid,
        /// Why.
        #[source]
        cause: TraceeError,
    },
    /// A system call about a process failed.
    #[error("process {pid}: {doing}: {errno}")]
    Call {
        /// The process.
        pid: Pid,
        /// What was being done.
        doing: String,
        /// Why not.
        errno: Errno,
    },
    /// Pages could not be written to the store.
    #[error("process {pid}: saving pages at {va:#x}: {cause}")]
    Pages {
        /// The process.
        pid: Pid,
        /// Address.
        va: u64,
        /// Why.
        cause: std::io::Error,
    },
    /// Something is not carried.
    #[error("{}", list(.0))]
    Refused(Vec<Refusal>),
}

fn list(refusals: &[Refusal]) -> String {
    refusals
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

impl FreezerError {
    pub(crate) fn tracee(pid: Pid) -> impl Fn(TraceeError) -> FreezerError {
        move |cause| FreezerError::Tracee { pid, cause }
    }

    pub(crate) fn call(pid: Pid, doing: impl Into<String>) -> impl FnOnce(Errno) -> FreezerError {
        let doing = doing.into();
        move |errno| FreezerError::Call { pid, doing, errno }
    }

    /// Whether it comes of that a thread has ended since it was looked at.
    #[must_use]
    pub fn is_of_ended(&self) -> bool {
        match self {
            FreezerError::Proc { cause, .. } => crate::proc::gone(cause),
            FreezerError::Call { errno, .. } | FreezerError::Seize { errno, .. } => {
                *errno == Errno::ESRCH
            }
            FreezerError::Tracee { cause, .. } => match cause {
                TraceeError::Request { errno, .. } => *errno == Errno::ESRCH,
                TraceeError::Ended { .. } => true,
                _ => false,
            },
            _ => false,
        }
    }

    /// A single refusal.
    pub(crate) fn refuse(
        pid: Pid,
        resource: impl Into<String>,
        reason: impl Into<String>,
    ) -> FreezerError {
        let comm = crate::proc::comm(pid);
        FreezerError::Refused(vec![Refusal {
            pid,
            comm,
            resource: resource.into(),
            reason: reason.into(),
        }])
    }
}
