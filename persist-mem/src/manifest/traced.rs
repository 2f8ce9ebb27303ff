//! Processes that another one of those saved traces (ptrace(2)).

use super::QueuedSignal;
use serde::{Deserialize, Serialize};
use sys::Tid;

/// Who traces a process, and in which of its stops its threads are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// The thread that traces all of its threads.
    pub tracer: Tid,
    /// Them, in the order of the process's threads.
    pub threads: Vec<TracedThread>,
}

/// How a thread is traced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedThread {
    /// `PTRACE_SEIZE`, not `PTRACE_ATTACH` or `PTRACE_TRACEME`.
    pub seized: bool,
    /// `PTRACE_O_*` bits.
    pub options: u64,
    /// Its stop.
    pub stop: TracedStop,
    /// `PTRACE_GETSIGINFO`, which has nothing in a group stop of a thread that was not seized.
    pub info: QueuedSignal,
    /// It listens in its group stop (`PTRACE_LISTEN`).
    pub listens: bool,
    /// Its tracer has not waited for the stop yet.
    pub unread: bool,
    /// A SIGSTOP that its tracer has sent to it waits as well.
    pub to_stop: bool,
    /// It does not make the call that it stands before (`PTRACE_SYSEMU`).
    pub makes_none: bool,
    /// Hardware break points: DR0 to DR3, and DR6 and DR7.
    pub break_points: Option<[u64; 6]>,
}

/// Stops of a tracee, as ptrace(2) tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TracedStop {
    /// Before this signal is delivered.
    Signal(i32),
    /// `PTRACE_EVENT_STOP` without a group stop.
    Interrupted,
    /// Before a system call.
    Entry,
    /// Behind a system call.
    Exit,
    /// Before a system call that a seccomp filter asks its tracer about (`PTRACE_EVENT_SECCOMP`).
    Filter,
    /// A group stop by this signal: its process is stopped.
    Group(i32),
}
