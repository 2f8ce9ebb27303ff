//! Name, scheduling, and what the C library registered for a thread.

use crate::ResurrectError;
use crate::calls::{nr, run_together};
use crate::memory::numa;
use crate::processor::wanted;
use crate::restore::Restore;
use persist_mem::manifest::{Scheduling, Thread};
use sys::Pid;
use sys::batch::{Arg, Batch};
use sys::tracee::Tracee;

const DOING: &str = "setting a thread's attributes";
const PR_SET_NAME: i32 = 15;
const PR_SET_TIMERSLACK: i32 = 29;
const PR_SET_IO_FLUSHER: i32 = 57;
const SCHED_OTHER: i32 = 0;
const SCHED_IDLE: i32 = 5;
const SCHED_RESET_ON_FORK: i32 = 0x4000_0000;
const KEYCTL_SET_REQKEY_KEYRING: u64 = 14;
const PR_MCE_KILL: i32 = 33;
/// `PR_MCE_KILL_DEFAULT`.
const MCE_KILL_DEFAULT: u8 = 2;
const PR_MCE_KILL_SET: i32 = 1;
const PR_SET_SPECULATION_CTRL: i32 = 53;
/// `PR_SPEC_PRCTL`; `PR_SPEC_DISABLE`, `_FORCE_DISABLE`, `_DISABLE_NOEXEC`.
const SPECULATION_PRCTL: u8 = 1;
const SPECULATION_OFF: u8 = 4 | 8 | 16;
const PR_SET_TSC: i32 = 26;
const PR_TSC_SIGSEGV: i32 = 2;
const ARCH_SET_CPUID: i32 = 0x1012;
const PRIO_PROCESS: i32 = 0;
const IOPRIO_WHO_PROCESS: i32 = 1;
/// `SS_ONSTACK` of sigaltstack(2).
const SS_ONSTACK: u32 = 1;

/// Sets them.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    // After the jump the deadlines of one thread are no reason to lose everybody.
    let may_fail = restore.is_upgrade();
    super::together(restore, DOING, |_, _, thread| calls(thread, may_fail))
}

/// Those of one thread.
pub(crate) fn of_thread(
    pid: Pid,
    tracee: &mut Tracee,
    thread: &Thread,
) -> Result<(), ResurrectError> {
    run_together(DOING, vec![(pid, tracee, calls(thread, false))]).map(drop)
}

/// They are made without a stack pointer, which the kernel looks at when the signal stack is set.
fn calls(thread: &Thread, may_fail: bool) -> Batch {
    let mut batch = Batch::new();
    registrations(&mut batch, thread);
    scheduling(&mut batch, &thread.scheduling, may_fail);
    policies(&mut batch, thread);
    processor(&mut batch, thread);
    batch
}

pub(crate) fn name(batch: &mut Batch, comm: &[u8]) {
    let name = batch.string(comm);
    batch.call("naming it", nr::PRCTL, [PR_SET_NAME.into(), name.into()]);
}

fn registrations(batch: &mut Batch, thread: &Thread) {
    name(batch, &thread.comm);
    let address = thread.clear_child_tid.into();
    batch.call("setting its tid address", nr::SET_TID_ADDRESS, [address]);
    let (head, len) = thread.robust_list;
    if len != 0 {
        let args = [head.into(), len.into()];
        batch.call("setting its robust list", nr::SET_ROBUST_LIST, args);
    }
    let (address, flags, size) = thread.altstack;
    // Said also when it has none: it was made with this process's.
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend_from_slice(&u64::from(flags & !SS_ONSTACK).to_le_bytes());
    bytes.extend_from_slice(&size.to_le_bytes());
    let stack = batch.data(&bytes);
    let args = [stack.into(), 0.into()];
    batch.call("setting its signal stack", nr::SIGALTSTACK, args);
    if let Some(rseq) = thread.rseq {
        let args = [
            rseq.pointer.into(),
            rseq.size.into(),
            0.into(),
            rseq.signature.into(),
        ];
        batch.call("registering its rseq area", nr::RSEQ, args);
    }
}

/// What the thread may do with the processor.
fn processor(batch: &mut Batch, thread: &Thread) {
    for (what, state) in (0..).zip(thread.speculation) {
        let wanted = state & SPECULATION_OFF;
        if state & SPECULATION_PRCTL != 0 && wanted != 0 {
            let args = [
                PR_SET_SPECULATION_CTRL.into(),
                Arg::Value(what),
                u64::from(wanted).into(),
                0.into(),
                0.into(),
            ];
            // A kernel that limits everybody's lets nobody ask.
            batch.try_call("limiting its speculation", nr::PRCTL, args);
        }
    }
    if thread.tsc_faults {
        let args = [PR_SET_TSC.into(), PR_TSC_SIGSEGV.into()];
        batch.call("forbidding it time stamps", nr::PRCTL, args);
    }
    if thread.cpuid_faults {
        let args = [ARCH_SET_CPUID.into(), 0.into()];
        batch.call("forbidding it cpuid", nr::ARCH_PRCTL, args);
    }
}

/// struct sched_attr of sched_setattr(2). Kernels let deadlines have more or less of the processors' time.
fn set_deadline(batch: &mut Batch, [flags, runtime, deadline, period]: [u64; 4], may_fail: bool) {
    const SIZE: u64 = 48;
    const POLICY: u64 = 6;
    let words = [SIZE | POLICY << 32, flags, 0, runtime, deadline, period];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let attr = batch.data(&bytes);
    let args = [0.into(), attr.into(), 0.into()];
    let doing = "setting its deadlines";
    if may_fail {
        batch.try_call(doing, nr::SCHED_SETATTR, args);
    } else {
        batch.call(doing, nr::SCHED_SETATTR, args);
    }
}

/// A time slice of its own, and a policy and the nice value with it.
fn set_slice(batch: &mut Batch, scheduling: &Scheduling, [policy, nice]: [i32; 2], slice: u64) {
    const SIZE: u64 = 48;
    const RESET_ON_FORK: u64 = 1;
    let policy = u64::from(policy.cast_unsigned());
    let flags = if scheduling.reset_on_fork {
        RESET_ON_FORK
    } else {
        0
    };
    let nice = u64::from(nice.cast_unsigned());
    let words = [SIZE | policy << 32, flags, nice, slice, 0, 0];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let attr = batch.data(&bytes);
    let args = [0.into(), attr.into(), 0.into()];
    // A kernel that has none leaves it aside.
    batch.try_call("setting its time slice", nr::SCHED_SETATTR, args);
}

/// Bounds of utilisation alone.
fn set_utilisation(batch: &mut Batch, [least, most]: [u32; 2]) {
    const SIZE: u64 = 56;
    // SCHED_FLAG_KEEP_ALL | SCHED_FLAG_UTIL_CLAMP
    const FLAGS: u64 = 0x78;
    let bounds = u64::from(least) | u64::from(most) << 32;
    let words = [SIZE, FLAGS, 0, 0, 0, 0, bounds];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let attr = batch.data(&bytes);
    let args = [0.into(), attr.into(), 0.into()];
    // Left aside where the kernel has none.
    batch.try_call("setting its utilisation", nr::SCHED_SETATTR, args);
}

pub(super) fn processors(batch: &mut Batch, s: &Scheduling) {
    let mask = wanted(s);
    if !mask.is_empty() {
        let args = [0.into(), mask.len().into(), batch.data(&mask).into()];
        // None of them may be there any more.
        batch.try_call("setting its processors", nr::SCHED_SETAFFINITY, args);
    }
}

/// All but its processors.
pub(super) fn scheduling(batch: &mut Batch, s: &Scheduling, may_fail: bool) {
    let args = [PRIO_PROCESS.into(), 0.into(), s.nice.into()];
    batch.call("setting its nice value", nr::SETPRIORITY, args);
    let is_idle = s.policy == SCHED_IDLE;
    if let Some(slice) = s.slice.filter(|_| is_idle) {
        // It is of a policy that it had before: this one leaves it alone (kernel/sched/syscalls.c,
        // __setscheduler_params).
        set_slice(batch, s, [SCHED_OTHER, s.nice], slice);
    }
    if let Some(deadline) = s.deadline {
        // The kernel wants all processors for them (sched(7)); the others get theirs at the end.
        processors(batch, s);
        set_deadline(batch, deadline, may_fail);
    } else if let Some(nice) = s.idle_nice {
        // Set together with the policy: later ones are for nothing.
        set_slice(batch, s, [s.policy, nice], 0);
    } else if s.policy != 0 || s.reset_on_fork {
        let priority = batch.data(&s.priority.to_le_bytes());
        let reset = if s.reset_on_fork {
            SCHED_RESET_ON_FORK
        } else {
            0
        };
        let args = [0.into(), (s.policy | reset).into(), priority.into()];
        batch.call(
            "setting its scheduling policy",
            nr::SCHED_SETSCHEDULER,
            args,
        );
    }
    if let Some(slice) = s.slice.filter(|_| !is_idle) {
        set_slice(batch, s, [s.policy, s.nice], slice);
    }
    if let Some(bounds) = s.utilisation {
        set_utilisation(batch, bounds);
    }
    let args = [IOPRIO_WHO_PROCESS.into(), 0.into(), s.ioprio.into()];
    batch.call("setting its I/O priority", nr::IOPRIO_SET, args);
    let args = [PR_SET_TIMERSLACK.into(), s.timer_slack.into()];
    batch.call("setting its timer slack", nr::PRCTL, args);
}

fn policies(batch: &mut Batch, thread: &Thread) {
    if let Some(policy) = &thread.memory_policy {
        let args = numa::arguments(batch, policy);
        // Left aside where the kernel or the machine cannot.
        batch.try_call("setting its memory policy", nr::SET_MEMPOLICY, args);
    }
    if thread.request_keyring != 0 {
        let keyring = u64::from(thread.request_keyring);
        let args = [KEYCTL_SET_REQKEY_KEYRING.into(), keyring.into()];
        // A kernel without keys has no need of it.
        batch.try_call("setting its keyring of new keys", nr::KEYCTL, args);
    }
    if thread.memory_failure != MCE_KILL_DEFAULT {
        let policy = u64::from(thread.memory_failure);
        let args = [
            PR_MCE_KILL.into(),
            PR_MCE_KILL_SET.into(),
            policy.into(),
            0.into(),
            0.into(),
        ];
        batch.call("setting its memory failure policy", nr::PRCTL, args);
    }
    personality(batch, thread.personality);
    if thread.scheduling.io_flusher {
        let args = [PR_SET_IO_FLUSHER, 1, 0, 0, 0].map(Into::into);
        batch.call("making it an I/O flusher", nr::PRCTL, args);
    }
}

/// personality(2).
pub(crate) fn personality(batch: &mut Batch, personality: u32) {
    if personality != 0 {
        let args = [u64::from(personality).into()];
        batch.call("setting its personality", nr::PERSONALITY, args);
    }
}
