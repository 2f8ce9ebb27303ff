//! Processes.

use super::{
    AddressSpace, DescriptionId, FileRef, Filter, Itimer, Layer, Membership, PosixTimer, Remains,
    RemovedId, Thread, Traced,
};
use serde::{Deserialize, Serialize};
use sys::{Pid, Tid};

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Its thread group id.
    pub pid: Pid,
    /// Its parent.
    pub ppid: Pid,
    /// The thread of its parent that is its parent, None for the leader.
    pub parent_thread: Option<Tid>,
    /// Which one it is of the children of that thread, as wait(2) looks through them.
    pub place: u32,
    /// Its process group.
    pub pgid: Pid,
    /// Its session.
    pub sid: Pid,
    /// The signal its parent gets at its end (clone(2)), 0 for none.
    pub exit_signal: i32,
    /// Alive or not.
    pub state: State,
}

impl Process {
    /// What it holds, None for a zombie and for what is lost.
    #[must_use]
    pub fn live(&self) -> Option<&Live> {
        match &self.state {
            State::Live(live) => Some(live),
            State::Zombie { .. } | State::Lost { .. } => None,
        }
    }

    /// Whether it gets the orphans among its descendants (`PR_SET_CHILD_SUBREAPER`).
    #[must_use]
    pub fn is_subreaper(&self) -> bool {
        match &self.state {
            State::Live(live) => live.child_subreaper,
            State::Zombie { .. } => false,
            State::Lost {
                child_subreaper, ..
            } => *child_subreaper,
        }
    }
}

/// Alive or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum State {
    /// Alive.
    Live(Box<Live>),
    /// Ended, not waited for.
    Zombie {
        /// Raw wait status (`exit_code` of `/proc/PID/stat`).
        status: i32,
        /// Ignored and caught signals (bit n-1 for signal n).
        signals: [u64; 2],
        /// What is seen of it.
        remains: Box<Remains>,
        /// Its resource limits, by number.
        limits: Vec<(u64, u64)>,
    },
    /// It cannot be rebuilt: an empty process, which is killed when the others go on. No capture says this of anybody.
    Lost {
        /// PR_SET_CHILD_SUBREAPER: until then.
        child_subreaper: bool,
        /// What is seen of it.
        remains: Box<Remains>,
    },
}

/// What CLONE_FS shares.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Directories {
    /// Current directory.
    pub cwd: FileRef,
    /// It has been removed, and is this one.
    pub cwd_removed: Option<RemovedId>,
    /// Root directory.
    pub root: FileRef,
    /// File mode creation mask.
    pub umask: u32,
}

/// What a live process is made of.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Live {
    /// Its threads that live, the leader first, if it does; but for those of [`Live::vforks`].
    pub threads: Vec<Thread>,
    /// Its threads that wait in vfork(2), the leader first. Where all do, [`Live::threads`] is empty.
    pub vforks: Vec<InVfork>,
    /// Its leader, where that has ended before the others.
    pub ended_leader: Option<EndedLeader>,
    /// Its memory.
    pub mm: AddressSpace,
    /// Its descriptors in ascending order.
    pub files: Vec<Descriptor>,
    /// Who traces its only thread, and in which stop that is.
    pub traced: Option<Box<Traced>>,
    /// The process whose memory it has, if that is not its own (CLONE_VM); [`Live::mm`] names no pages then.
    pub mm_of: Option<Pid>,
    /// The process whose signal actions it has, if those are not its own (CLONE_SIGHAND).
    pub actions_of: Option<Pid>,
    /// The process whose descriptor table it has, if that is not its own (CLONE_FILES).
    pub files_of: Option<Pid>,
    /// The process whose directories and umask it has, if those are not its own (CLONE_FS).
    pub fs_of: Option<Pid>,
    /// The process whose semaphore undo list it has, if that is not its own (CLONE_SYSVSEM).
    pub undo_of: Option<Pid>,
    /// Its directories and umask, and those of its threads that have none of their own.
    pub directories: Directories,
    /// Signal dispositions, signal 1 first.
    pub actions: Vec<SigAction>,
    /// Signals queued for the process as a whole, in order.
    pub pending: Vec<QueuedSignal>,
    /// The signal that stopped it (job control), if it is stopped.
    pub stopped: Option<i32>,
    /// Children that have stopped or gone on without its having been told by wait(2).
    pub reports: Vec<(Pid, ChildReport)>,
    /// Processor time of all its threads by now, ended ones too, in nanoseconds.
    pub cpu_time: u64,
    /// Resource limits in the order of `RLIMIT_*` numbers: soft, hard.
    pub limits: Vec<(u64, u64)>,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    pub itimers: [Itimer; 3],
    /// POSIX timers in ascending order of id.
    pub timers: Vec<PosixTimer>,
    /// The id that the next one gets, where the kernel counts on behind removed ones.
    pub next_timer_id: Option<i32>,
    /// `PR_TIMER_CREATE_RESTORE_IDS`: it chooses the ids of new ones.
    pub chooses_timer_ids: bool,
    /// It has asked for AMX (ARCH_REQ_XCOMP_PERM).
    pub may_use_tiles: bool,
    /// seccomp filters that its threads have.
    pub filters: Vec<Filter>,
    /// Layers of the domains of Landlock that its threads are in.
    pub layers: Vec<Layer>,
    /// So many of the first layers all its threads are in together, as scopes ask for.
    pub layers_together: u32,
    /// How soon it is killed when memory runs out.
    pub oom_score: OomScore,
    /// PR_SET_CHILD_SUBREAPER.
    pub child_subreaper: bool,
    /// PR_GET_DUMPABLE: 0, 1 or 2.
    pub dumpable: u8,
    /// It shares its parent's I/O context (CLONE_IO).
    pub shares_io: bool,
    /// Its control groups, one in each hierarchy.
    pub cgroups: Vec<Membership>,
    /// The nice value of its session's autogroup.
    pub autogroup_nice: i32,
}

/// `/proc/PID/oom_score_adj` (proc_pid_oom_score_adj(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomScore {
    /// What it is.
    pub now: i16,
    /// How low the process may set it without CAP_SYS_RESOURCE: the last that somebody with it has written. None where
    /// nobody tells.
    pub least: Option<i16>,
}

/// A thread that waits in vfork(2) until its child ends or runs another program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InVfork {
    /// As it is once that is over.
    pub thread: Thread,
    /// The child, which has its process's memory.
    pub child: Pid,
}

impl Live {
    /// All its threads, those that wait in vfork(2) last.
    pub fn all_threads(&self) -> impl Iterator<Item = &Thread> {
        let waiting = self.vforks.iter().map(|waiting| &waiting.thread);
        self.threads.iter().chain(waiting)
    }

    /// Whether a thread of it waits in vfork(2).
    #[must_use]
    pub fn waits_in_vfork(&self, tid: Tid) -> bool {
        self.vforks.iter().any(|waiting| waiting.thread.tid == tid)
    }
}

/// What a wait(2) would tell of a child that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChildReport {
    /// `WUNTRACED`: it has stopped.
    Stopped,
    /// `WCONTINUED`: it has gone on.
    Continued,
}

/// An entry of a descriptor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its number.
    pub fd: i32,
    /// `FD_CLOEXEC`.
    pub cloexec: bool,
    /// The open file description.
    pub description: DescriptionId,
}

/// Descriptors of a thread that are not its process's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThreadFiles {
    /// In a table that it does not share, or that others have from it; in ascending order.
    Own(Vec<Descriptor>),
    /// In the table of another thread of its process, which has it as its own.
    Of(Tid),
}

/// `struct kernel_sigaction` (x86_64: handler, flags, restorer, mask).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SigAction {
    /// Address, or SIG_DFL 0, SIG_IGN 1.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Address of the restorer.
    pub restorer: u64,
    /// Signals blocked while it runs.
    pub mask: u64,
}

/// A queued signal: a `siginfo_t` byte for byte (128 bytes).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedSignal(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// A leader that has ended while other threads run: what is seen of it from outside.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EndedLeader {
    /// What it gave to exit(2): `/proc/PID/stat` shows it. The code of the process is that of the thread that
    /// ends last (kernel/exit.c, synchronize_group_exit).
    pub code: u8,
    /// What is seen of it.
    pub remains: Remains,
}
