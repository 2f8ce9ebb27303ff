//! System call numbers (arch/x86/entry/syscalls/syscall_64.tbl), and long lists of calls cut into batches.

use crate::ResurrectError;
use sys::batch::{Batch, Output};
use sys::tracee::Tracee;
use sys::{Pid, Tid};

#[allow(missing_docs, reason = "named as in the kernel's table")]
pub(crate) mod nr {
    pub(crate) const WRITE: i64 = 1;
    pub(crate) const CLOSE: i64 = 3;
    pub(crate) const MMAP: i64 = 9;
    pub(crate) const MPROTECT: i64 = 10;
    pub(crate) const MUNMAP: i64 = 11;
    pub(crate) const RT_SIGACTION: i64 = 13;
    pub(crate) const RT_SIGPROCMASK: i64 = 14;
    pub(crate) const IOCTL: i64 = 16;
    pub(crate) const MREMAP: i64 = 25;
    pub(crate) const MADVISE: i64 = 28;
    pub(crate) const SHMGET: i64 = 29;
    pub(crate) const SHMAT: i64 = 30;
    pub(crate) const SHMDT: i64 = 67;
    pub(crate) const MSGSND: i64 = 69;
    pub(crate) const MSGRCV: i64 = 70;
    pub(crate) const NANOSLEEP: i64 = 35;
    pub(crate) const GETITIMER: i64 = 36;
    pub(crate) const SETITIMER: i64 = 38;
    pub(crate) const CONNECT: i64 = 42;
    pub(crate) const RECVMSG: i64 = 47;
    pub(crate) const LISTEN: i64 = 50;
    pub(crate) const SOCKETPAIR: i64 = 53;
    pub(crate) const SEMOP: i64 = 65;
    pub(crate) const SEMCTL: i64 = 66;
    pub(crate) const FCNTL: i64 = 72;
    pub(crate) const FLOCK: i64 = 73;
    pub(crate) const CHDIR: i64 = 80;
    pub(crate) const FCHDIR: i64 = 81;
    pub(crate) const UMASK: i64 = 95;
    pub(crate) const SETPGID: i64 = 109;
    pub(crate) const SETSID: i64 = 112;
    pub(crate) const SETGROUPS: i64 = 116;
    pub(crate) const SETRESUID: i64 = 117;
    pub(crate) const SETRESGID: i64 = 119;
    pub(crate) const SETFSUID: i64 = 122;
    pub(crate) const SETFSGID: i64 = 123;
    pub(crate) const CAPSET: i64 = 126;
    pub(crate) const RT_SIGQUEUEINFO: i64 = 129;
    pub(crate) const SIGALTSTACK: i64 = 131;
    pub(crate) const PERSONALITY: i64 = 135;
    pub(crate) const SETPRIORITY: i64 = 141;
    pub(crate) const SCHED_SETSCHEDULER: i64 = 144;
    pub(crate) const MUNLOCK: i64 = 150;
    pub(crate) const PRCTL: i64 = 157;
    pub(crate) const MLOCKALL: i64 = 151;
    pub(crate) const MODIFY_LDT: i64 = 154;
    pub(crate) const MBIND: i64 = 237;
    pub(crate) const SET_MEMPOLICY: i64 = 238;
    pub(crate) const ARCH_PRCTL: i64 = 158;
    pub(crate) const KEYCTL: i64 = 250;
    pub(crate) const CHROOT: i64 = 161;
    pub(crate) const SCHED_SETAFFINITY: i64 = 203;
    pub(crate) const SET_TID_ADDRESS: i64 = 218;
    pub(crate) const TIMER_CREATE: i64 = 222;
    pub(crate) const TIMER_SETTIME: i64 = 223;
    pub(crate) const TIMER_DELETE: i64 = 226;
    pub(crate) const EXIT_GROUP: i64 = 231;
    pub(crate) const EPOLL_WAIT: i64 = 232;
    pub(crate) const EPOLL_CTL: i64 = 233;
    pub(crate) const WAITID: i64 = 247;
    pub(crate) const EXIT: i64 = 60;
    pub(crate) const WAIT4: i64 = 61;
    pub(crate) const IOPRIO_SET: i64 = 251;
    pub(crate) const IO_SETUP: i64 = 206;
    pub(crate) const IO_SUBMIT: i64 = 209;
    pub(crate) const OPENAT: i64 = 257;
    pub(crate) const SET_ROBUST_LIST: i64 = 273;
    pub(crate) const DUP3: i64 = 292;
    pub(crate) const RT_TGSIGQUEUEINFO: i64 = 297;
    pub(crate) const SCHED_SETATTR: i64 = 314;
    pub(crate) const SECCOMP: i64 = 317;
    pub(crate) const USERFAULTFD: i64 = 323;
    pub(crate) const MEMBARRIER: i64 = 324;
    pub(crate) const PRLIMIT64: i64 = 302;
    pub(crate) const MLOCK2: i64 = 325;
    pub(crate) const PKEY_MPROTECT: i64 = 329;
    pub(crate) const PKEY_ALLOC: i64 = 330;
    pub(crate) const PKEY_FREE: i64 = 331;
    pub(crate) const RSEQ: i64 = 334;
    pub(crate) const MQ_NOTIFY: i64 = 244;
    pub(crate) const IO_URING_SETUP: i64 = 425;
    pub(crate) const IO_URING_ENTER: i64 = 426;
    pub(crate) const IO_URING_REGISTER: i64 = 427;
    pub(crate) const CLONE3: i64 = 435;
    pub(crate) const CLOSE_RANGE: i64 = 436;
    pub(crate) const PIDFD_GETFD: i64 = 438;
    pub(crate) const LANDLOCK_RESTRICT_SELF: i64 = 446;
    pub(crate) const LSM_SET_SELF_ATTR: i64 = 460;
    pub(crate) const MSEAL: i64 = 462;
}

/// Room that one batch may take, call table and data together.
const ENOUGH: usize = 96 << 10;

/// A list of calls for one thread, made a batch at a time.
pub(crate) struct Calls<'a> {
    pid: Pid,
    doing: &'static str,
    tracee: &'a mut Tracee,
    batch: Batch,
}

impl<'a> Calls<'a> {
    pub(crate) fn new(pid: Pid, doing: &'static str, tracee: &'a mut Tracee) -> Calls<'a> {
        Calls::with(pid, doing, tracee, Batch::new())
    }

    /// A list that begins with these.
    pub(crate) fn with(
        pid: Pid,
        doing: &'static str,
        tracee: &'a mut Tracee,
        batch: Batch,
    ) -> Calls<'a> {
        Calls {
            pid,
            doing,
            tracee,
            batch,
        }
    }

    /// The batch under construction; results can be referred to until the next [`Calls::breathe`].
    pub(crate) fn batch(&mut self) -> &mut Batch {
        &mut self.batch
    }

    /// Whether the batch is so full that it should be made.
    pub(crate) fn full(&self) -> bool {
        self.batch.size() > ENOUGH
    }

    /// Makes the calls so far when they are many.
    pub(crate) fn breathe(&mut self) -> Result<(), ResurrectError> {
        if self.full() { self.flush() } else { Ok(()) }
    }

    /// Those that are still to be made.
    pub(crate) fn rest(self) -> Batch {
        self.batch
    }

    /// Makes the calls so far.
    pub(crate) fn flush(&mut self) -> Result<(), ResurrectError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = core::mem::take(&mut self.batch);
        run(self.pid, self.doing, self.tracee, &batch).map(drop)
    }
}

/// Makes a batch in a thread that is being built.
pub(crate) fn run(
    pid: Pid,
    doing: &str,
    tracee: &mut Tracee,
    batch: &Batch,
) -> Result<Output, ResurrectError> {
    let output = tracee
        .run_raw(batch)
        .map_err(ResurrectError::tracee(pid, doing))?;
    succeeded(pid, doing, tracee.tid(), (batch, &output))?;
    Ok(output)
}

/// Makes a batch in each of several threads that are being built, side by side.
pub(crate) fn run_together(
    doing: &str,
    work: Vec<(Pid, &mut Tracee, Batch)>,
) -> Result<Vec<Output>, ResurrectError> {
    let Some(first) = work.first().map(|(pid, _, _)| *pid) else {
        return Ok(Vec::new());
    };
    let whose: Vec<(Pid, Tid)> = work.iter().map(|(pid, t, _)| (*pid, t.tid())).collect();
    let (tracees, batches): (Vec<_>, Vec<_>) = work.into_iter().map(|(_, t, b)| (t, b)).unzip();
    let outputs = sys::tracee::run_together(tracees.into_iter().zip(&batches))
        .map_err(ResurrectError::tracee(first, doing))?;
    for ((pid, tid), work) in whose.into_iter().zip(batches.iter().zip(&outputs)) {
        succeeded(pid, doing, tid, work)?;
    }
    Ok(outputs)
}

fn succeeded(
    pid: Pid,
    doing: &str,
    tid: Tid,
    (batch, output): (&Batch, &Output),
) -> Result<(), ResurrectError> {
    match batch.failure(output) {
        None => Ok(()),
        Some(failure) => {
            let cause = sys::tracee::TraceeError::Call {
                tid,
                failure: Box::new(failure),
            };
            Err(ResurrectError::tracee(pid, doing)(cause))
        }
    }
}
