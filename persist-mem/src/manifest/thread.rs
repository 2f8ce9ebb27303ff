//! Threads.

use super::{Directories, Membership, QueuedSignal, ThreadFiles};
use serde::{Deserialize, Serialize};
use sys::regs::Regs;
use sys::{Pid, Tid};

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
    /// personality(2).
    pub personality: u32,
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
    /// KEYCTL_SET_REQKEY_KEYRING: in which keyring request_key(2) puts new keys, 0 for the usual.
    pub request_keyring: u8,
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
    /// The profile of AppArmor that it is in (apparmor(7)), or several (`one//&other`); None for no profile.
    pub profile: Option<Vec<u8>>,
    /// PR_SET_SYSCALL_USER_DISPATCH, None when it is off.
    pub dispatch: Option<Dispatch>,
    /// On which nodes its memory is to be, None for the usual.
    pub memory_policy: Option<super::MemoryPolicy>,
    /// Its directories, where they are not its process's (unshare(2), CLONE_FS).
    pub directories: Option<ThreadDirectories>,
    /// Its descriptors, where they are not its process's (unshare(2), CLONE_FILES).
    pub files: Option<ThreadFiles>,
    /// Whose semaphore undo list it has (CLONE_SYSVSEM).
    pub undo: ThreadUndo,
    /// The first of the threads whose I/O context it shares (CLONE_IO), None when it is that one.
    pub io_of: Option<Tid>,
    /// Its control groups, where they are others than its process's.
    pub cgroups: Option<Vec<Membership>>,
    /// The wait on a socket with a time-out that it repeats.
    pub socket_wait: Option<SocketTimeout>,
    /// The time-out of a call that it makes again.
    pub limit: Option<Limit>,
    /// When it began to wait in its call for what others may wait for as well, by some clock: who waited first has its
    /// turn first.
    pub waits_since: Option<u64>,
    /// The call it sleeps in with a relative time-out that only the kernel knew the rest of.
    pub sleep: Option<Sleep>,
    /// The wait for a child, which comes before all that it goes on with.
    pub child_wait: Option<ChildWait>,
}

/// A wait until a child does not use the memory of both any more, which a thread makes by itself: it was in vfork(2), and
/// nobody can have it wait there again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildWait {
    /// The child, whose word ([`Thread::clear_child_tid`]) is at the beginning of the room.
    pub child: Pid,
    /// Room in memory: address, bytes.
    pub room: (u64, u64),
}

/// Directories of a thread that are not its process's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ThreadDirectories {
    /// It does not share them, or others have them from it.
    Own(Box<Directories>),
    /// Those of another thread of its process, which has them as its own.
    Of(Tid),
}

impl ThreadDirectories {
    /// What a thread has of its own.
    #[must_use]
    pub fn own(&self) -> Option<&Directories> {
        match self {
            ThreadDirectories::Own(own) => Some(own),
            ThreadDirectories::Of(_) => None,
        }
    }
}

/// A list of what is undone of semaphores at the end of the last thread that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ThreadUndo {
    /// It has its process's.
    #[default]
    Shared,
    /// It has none, or one of its own, which others may have from it.
    Own,
    /// That of another thread of its process.
    Of(Tid),
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
            LimitPlace::R10 | LimitPlace::Rdx | LimitPlace::Completions => return None,
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
            LimitPlace::Completions if self.remaining < SOON => regs.rdx = regs.rdx.min(1),
            LimitPlace::Completions => {}
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
    /// Rdx says how many completions of a ring of io_uring it waits for. When the time of a request is over, any number
    /// is enough.
    Completions,
}

/// A time that may be over before its thread is in its call.
const SOON: u64 = 50_000_000;

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
    /// Who is asked about calls that it leaves open (`SECCOMP_FILTER_FLAG_NEW_LISTENER`).
    pub listener: Option<FilterListener>,
}

/// Who is asked about the calls that a seccomp filter leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FilterListener {
    /// Names the filter: [`super::DescriptionKind::SeccompListener`] has the same.
    pub filter: u64,
    /// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`.
    pub killable: bool,
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
    /// These are all that its control group has, and nobody has asked for some of them (sched_setaffinity(2)).
    pub anywhere: bool,
    /// Timer slack in nanoseconds.
    pub timer_slack: u64,
    /// What `PR_SET_TIMERSLACK` with 0 sets it to, where that is not the usual 50 µs: who made the thread had as much then.
    pub first_slack: Option<u64>,
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
