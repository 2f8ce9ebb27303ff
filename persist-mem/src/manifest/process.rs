//! Processes and threads.

use super::{AddressSpace, DescriptionId, FileRef, Layer, Membership, RemovedId, Traced};
use serde::{Deserialize, Serialize};
use sys::regs::Regs;
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
    /// `PR_TIMER_CREATE_RESTORE_IDS`: it chooses the ids of new ones.
    pub chooses_timer_ids: bool,
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

/// `struct itimerval` in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Itimer {
    /// Time to the next expiry, 0 when disarmed.
    pub value_us: u64,
    /// Period.
    pub interval_us: u64,
}

/// A timer made by timer_create(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// Its id.
    pub id: i32,
    /// Its clock.
    pub clock: i32,
    /// `SIGEV_*`.
    pub notify: i32,
    /// Its signal.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// Thread for `SIGEV_THREAD_ID`, else 0.
    pub tid: Tid,
    /// Of CLOCK_THREAD_CPUTIME_ID the thread that made it, whose time it counts; else 0, and where nobody knows.
    pub made_by: Tid,
    /// Nanoseconds to the next expiry, 0 when disarmed.
    pub remaining: u64,
    /// Period in nanoseconds.
    pub interval: u64,
    /// Periods that have passed since it expired, while its signal waits; 0 when none does.
    pub missed: u64,
    /// For CLOCK_REALTIME: it follows when that is set (`TIMER_ABSTIME`).
    pub absolute: bool,
}

/// Whether a clock is that of the thread that makes a timer of it: CLOCK_THREAD_CPUTIME_ID, or the same for thread 0.
#[must_use]
pub fn counts_maker(clock: i32) -> bool {
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    const OF_THREAD_0: i32 = -2;
    clock == CLOCK_THREAD_CPUTIME_ID || clock == OF_THREAD_0
}

/// Whose time on the processor a timer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerOwner {
    /// A thread of its process.
    Thread(Tid),
    /// A process.
    Process(Pid),
}

impl PosixTimer {
    /// Whether its clock stands still with its process: CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, and those of
    /// other tasks (negative).
    #[must_use]
    pub fn counts_cpu(&self) -> bool {
        self.clock < 0 || self.clock == 2 || self.clock == 3
    }

    /// The thread that has to make it, None when any may.
    #[must_use]
    pub fn maker(&self) -> Option<Tid> {
        (counts_maker(self.clock) && self.made_by.0 != 0).then_some(self.made_by)
    }

    /// Whose time on the processor it counts, None for its own process's and for other clocks.
    #[must_use]
    pub fn owner(&self) -> Option<TimerOwner> {
        // include/linux/posix-timers_types.h, CPUCLOCK_*.
        const KIND: i32 = 3;
        const OF_A_THREAD: i32 = 4;
        const OF_A_FILE: i32 = 3;
        let id = !(self.clock >> 3);
        if self.clock >= 0 || self.clock & KIND == OF_A_FILE || id == 0 {
            return self.maker().map(TimerOwner::Thread);
        }
        Some(match self.clock & OF_A_THREAD {
            0 => TimerOwner::Process(Pid(id)),
            _ => TimerOwner::Thread(Tid(id)),
        })
    }

    /// Whether it signals one thread (`SIGEV_THREAD_ID`).
    #[must_use]
    pub fn signals_thread(&self) -> bool {
        const SIGEV_THREAD_ID: i32 = 4;
        self.notify & SIGEV_THREAD_ID != 0
    }

    /// Whether it sends a signal (all but `SIGEV_NONE`).
    #[must_use]
    pub fn notifies(&self) -> bool {
        const SIGEV_NONE: i32 = 1;
        self.notify & SIGEV_NONE == 0
    }

    /// Whether a queued signal is its.
    #[must_use]
    pub fn has_queued(&self, queued: &QueuedSignal) -> bool {
        const SI_TIMER: i32 = -2;
        let number = |at: usize| {
            let bytes = queued.0.get(at..at + 4)?;
            Some(i32::from_le_bytes(bytes.try_into().ok()?))
        };
        // si_signo, si_code, si_timerid.
        [number(0), number(8), number(16)] == [self.signal, SI_TIMER, self.id].map(Some)
    }
}

/// A leader that has ended while other threads run: what is seen of it from outside.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EndedLeader {
    /// What it gave to exit(2): `/proc/PID/stat` shows it. The code of the process is that of the thread that
    /// ends last (kernel/exit.c, synchronize_group_exit).
    pub code: u8,
    /// The signal that the parent gets at the end of the process, 0 for none.
    pub exit_signal: i32,
    /// What is seen of it.
    pub remains: Remains,
}

/// What everybody sees of a thread that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Remains {
    /// Its name, up to 15 bytes.
    pub comm: Vec<u8>,
    /// Blocked signals (bit n-1 for signal n).
    pub sigmask: u64,
    /// Who it acted as; securebits are not shown any more.
    pub credentials: Credentials,
    /// How it was scheduled, without deadlines and I/O priority.
    pub scheduling: Scheduling,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
}

/// One thread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    /// Its id.
    pub tid: Tid,
    /// Its name, up to 15 bytes.
    pub comm: Vec<u8>,
    /// Its processor time in nanoseconds.
    pub cpu_time: u64,
    /// General registers as they shall be when it goes on.
    pub regs: Regs,
    /// Extended state, non-compacted XSAVE format.
    #[serde(with = "serde_bytes")]
    pub xstate: Vec<u8>,
    /// Blocked signals (bit n-1 for signal n).
    pub sigmask: u64,
    /// Signals queued for this thread, in order.
    pub pending: Vec<QueuedSignal>,
    /// sigaltstack(2): address, flags, size.
    pub altstack: (u64, u32, u64),
    /// Robust futex list: head, length.
    pub robust_list: (u64, u64),
    /// Address cleared when it ends (set_tid_address(2)), 0 for none.
    pub clear_child_tid: u64,
    /// rseq(2) registration, None when there is none.
    pub rseq: Option<Rseq>,
    /// Who it acts as.
    pub credentials: Credentials,
    /// How it is scheduled.
    pub scheduling: Scheduling,
    /// Signal when the parent ends (PR_SET_PDEATHSIG), 0 for none.
    pub pdeathsig: i32,
    /// personality(2).
    pub personality: u32,
    /// PR_MCE_KILL_GET: 0 late, 1 early, 2 the system's default.
    pub memory_failure: u8,
    /// PR_GET_SPECULATION_CTRL of store bypass, indirect branches and L1D flushing; 0 where the kernel
    /// does not know them.
    pub speculation: [u8; 3],
    /// PR_SET_TSC: reading the time stamp counter is a SIGSEGV.
    pub tsc_faults: bool,
    /// ARCH_SET_CPUID: cpuid is a SIGSEGV.
    pub cpuid_faults: bool,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// seccomp(2).
    pub seccomp: Seccomp,
    /// What it has forbidden itself (landlock(7)), the first at the start: indices of [`Live::layers`].
    pub layers: Vec<u32>,
    /// What tells each of them from others that are alike: threads and processes with the same number are in it
    /// together.
    pub domains: Vec<u64>,
    /// PR_SET_SYSCALL_USER_DISPATCH, None when it is off.
    pub dispatch: Option<Dispatch>,
    /// On which nodes its memory is to be, None for the usual.
    pub memory_policy: Option<super::MemoryPolicy>,
    /// Its directories, where it has its own (unshare(2), CLONE_FS).
    pub directories: Option<Box<Directories>>,
    /// Its descriptors, where they are not its process's (unshare(2), CLONE_FILES).
    pub files: Option<ThreadFiles>,
    /// It does not share its leader's semaphore undo list (CLONE_SYSVSEM).
    pub own_undo: bool,
    /// The thread before it whose I/O context it shares (CLONE_IO).
    pub io_of: Option<Tid>,
    /// Its control groups, where they are others than its process's.
    pub cgroups: Option<Vec<Membership>>,
    /// The wait on a socket with a time-out that it repeats.
    pub socket_wait: Option<SocketTimeout>,
    /// The time-out of a call that it makes again.
    pub limit: Option<Limit>,
    /// The call it sleeps in with a relative time-out that only the kernel knew the rest of.
    pub sleep: Option<Sleep>,
}

/// How long a call that is made again waits, as its argument says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Where the call reads it.
    pub place: LimitPlace,
    /// Nanoseconds that remain.
    pub remaining: u64,
}

impl Limit {
    /// What is to be in memory, and at which address. None for a register.
    #[must_use]
    pub fn bytes(&self) -> Option<(u64, [u8; 16])> {
        let (at, unit) = match self.place {
            LimitPlace::R10 | LimitPlace::Rdx => return None,
            LimitPlace::Timespec(at) => (at, 1),
            LimitPlace::Timeval(at) => (at, 1000),
        };
        // Not less than remains.
        let ns = self.remaining.div_ceil(unit).saturating_mul(unit);
        let (seconds, rest) = (ns / 1_000_000_000, ns % 1_000_000_000);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&seconds.to_le_bytes());
        bytes[8..].copy_from_slice(&(rest / unit).to_le_bytes());
        Some((at, bytes))
    }

    /// Sets the register, if it is in one.
    pub fn set(&self, regs: &mut Regs) {
        let milliseconds = self.remaining.div_ceil(1_000_000);
        match self.place {
            LimitPlace::R10 => regs.r10 = milliseconds,
            LimitPlace::Rdx => regs.rdx = milliseconds,
            LimitPlace::Timespec(_) | LimitPlace::Timeval(_) => {}
        }
    }
}

/// Where a call reads its time-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitPlace {
    /// Milliseconds in r10.
    R10,
    /// Milliseconds in rdx.
    Rdx,
    /// A `struct timespec` at this address.
    Timespec(u64),
    /// A `struct timeval` at this address.
    Timeval(u64),
}

/// A wait whose time-out is `SO_RCVTIMEO` or `SO_SNDTIMEO` of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketTimeout {
    /// The descriptor.
    pub fd: i32,
    /// `SO_SNDTIMEO`.
    pub sends: bool,
    /// Nanoseconds that remain.
    pub remaining: u64,
}

/// What seccomp(2) does to a thread's calls.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Seccomp {
    /// Nothing.
    #[default]
    Off,
    /// `SECCOMP_MODE_STRICT`.
    Strict,
    /// Filters, the one installed first at the start: indices of [`Live::filters`].
    Filters(Vec<u32>),
}

/// A seccomp filter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Filter {
    /// Its instructions (`struct sock_filter`), byte for byte.
    #[serde(with = "serde_bytes")]
    pub code: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_LOG`.
    pub log: bool,
}

/// Syscall user dispatch (`struct ptrace_sud_config`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispatch {
    /// `PR_SYS_DISPATCH_*` mode.
    pub mode: u64,
    /// Address of the selector byte.
    pub selector: u64,
    /// Start of the range the mode speaks of.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

/// An rseq registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rseq {
    /// Address of `struct rseq`.
    pub pointer: u64,
    /// Registered length.
    pub size: u32,
    /// Signature.
    pub signature: u32,
}

/// User, groups and capabilities (credentials(7), capabilities(7)).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved, file system user id.
    pub uid: [u32; 4],
    /// Real, effective, saved, file system group id.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable set.
    pub inheritable: u64,
    /// Permitted set.
    pub permitted: u64,
    /// Effective set.
    pub effective: u64,
    /// Bounding set.
    pub bounding: u64,
    /// Ambient set.
    pub ambient: u64,
    /// PR_SET_SECUREBITS.
    pub securebits: u32,
}

/// Scheduling of one thread (sched(7)).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scheduling {
    /// SCHED_* number.
    pub policy: i32,
    /// `SCHED_RESET_ON_FORK`.
    pub reset_on_fork: bool,
    /// Real-time priority.
    pub priority: i32,
    /// SCHED_DEADLINE's flags, runtime, deadline and period (sched_setattr(2)), in nanoseconds.
    pub deadline: Option<[u64; 4]>,
    /// The time slice it asked for instead of the usual one (`sched_runtime` of an ordinary policy, since
    /// 6.12), in nanoseconds.
    pub slice: Option<u64>,
    /// Least and most utilisation (`sched_util_min`, `sched_util_max` of sched_setattr(2)), where they are not the
    /// usual ones.
    pub utilisation: Option<[u32; 2]>,
    /// Nice value.
    pub nice: i32,
    /// Of SCHED_IDLE the nice value that its priority is by, where it is another one: sched_setattr(2) sets that, and
    /// not its nice value.
    pub idle_nice: Option<i32>,
    /// ioprio_get(2).
    pub ioprio: i32,
    /// CPUs it may run on, as `sched_getaffinity(2)` gives them.
    pub affinity: Vec<u8>,
    /// Timer slack in nanoseconds.
    pub timer_slack: u64,
    /// `PR_SET_IO_FLUSHER`: its allocations start no I/O.
    pub io_flusher: bool,
}

/// A sleep that goes on through `restart_syscall(2)`: on the new kernel the call is made again with
/// what remained, so that the kernel keeps the rest as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sleep {
    /// The call.
    pub nr: i64,
    /// What remained when it was stopped, in nanoseconds; without meaning for a poll without a time-out.
    pub remaining: u64,
    /// Its clock counts its process's time on the processor, which stands still with it.
    pub counts_cpu: bool,
}
