//! One thread.

use super::inside::Inside;
use super::{credentials, numa, seccomp, signals};
use crate::FreezerError;
use crate::proc::Stat;
use persist_mem::manifest::{Filter, MemoryPolicy, Rseq, Scheduling, Thread, ThreadUndo};
use std::sync::OnceLock;
use sys::batch::{Batch, Buffer, CallIndex, Output};
use sys::{Tid, process, ptrace, tracee};

const PRCTL: i64 = 157;
const SIGALTSTACK: i64 = 131;
const IOPRIO_GET: i64 = 252;
const PERSONALITY: i64 = 135;
const CLOCK_GETTIME: i64 = 228;
const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
const SCHED_GETSCHEDULER: i64 = 145;
pub(super) const SCHED_RESET_ON_FORK: u64 = 0x4000_0000;
const PR_MCE_KILL_GET: i32 = 34;
const KEYCTL: i64 = 250;
const KEYCTL_SET_REQKEY_KEYRING: u64 = 14;
/// `KEY_REQKEY_DEFL_NO_CHANGE`
const NO_CHANGE: u64 = u64::MAX;
const PR_GET_PDEATHSIG: i32 = 2;
const PR_GET_SECUREBITS: i32 = 27;
const PR_GET_TIMERSLACK: i32 = 30;
const PR_GET_TID_ADDRESS: i32 = 40;
const IOPRIO_WHO_PROCESS: i32 = 1;
const SCHED_GETATTR: i64 = 315;
const SCHED_OTHER: u32 = 0;
const SCHED_FIFO: u32 = 1;
const SCHED_RR: u32 = 2;
const SCHED_BATCH: u32 = 3;
const SCHED_IDLE: u32 = 5;
const SCHED_DEADLINE: u32 = 6;
/// `SCHED_ATTR_SIZE_VER0`
const SCHED_ATTR: usize = 56;
const PR_GET_SPECULATION_CTRL: i32 = 52;
const PR_GET_TSC: i32 = 25;
const PR_TSC_SIGSEGV: u32 = 2;
/// `PF_MEMALLOC_NOIO`, `PF_LOCAL_THROTTLE` (include/linux/sched.h). prctl(2) tells only who has
/// `CAP_SYS_RESOURCE`.
const IO_FLUSHER: u64 = 0x18_0000;
const ARCH_PRCTL: i64 = 158;
const ARCH_GET_CPUID: i32 = 0x1011;

/// Describes threads of one process. They answer side by side, in `room` bytes of scratch memory.
pub(super) fn capture(
    threads: &mut [Inside],
    room: usize,
    filters: &mut Vec<Filter>,
) -> Result<Vec<Thread>, FreezerError> {
    let mut batch = Batch::new();
    let question = Question::add(&mut batch);
    let mut found = Vec::new();
    for some in threads.chunks_mut(tracee::seats(&batch, room)) {
        let begin = |(seat, inside): (usize, &mut Inside)| inside.tracee.begin(&batch, seat);
        let begun: Vec<_> = some.iter_mut().enumerate().map(begin).collect();
        // All of them, also when one fails: nobody may be left running.
        let ended: Vec<_> = some
            .iter_mut()
            .zip(begun)
            .map(|(inside, begun)| inside.tracee.end(&batch, &begun?))
            .collect();
        for (inside, out) in some.iter_mut().zip(ended) {
            let out = out.map_err(FreezerError::tracee(inside.tracee.pid()))?;
            found.push(describe(inside, question.read(&out), filters)?);
        }
    }
    Ok(found)
}

pub(super) fn describe(
    inside: &mut Inside,
    asked: Asked,
    filters: &mut Vec<Filter>,
) -> Result<Thread, FreezerError> {
    let (pid, tid) = (inside.tracee.pid(), inside.tracee.tid());
    let call = |doing: &'static str| FreezerError::call(pid, format!("thread {tid}: {doing}"));
    let xstate = ptrace::get_xstate(tid).map_err(call("reading its extended state"))?;
    let (_, sigmask) = inside.tracee.rest().map_err(FreezerError::tracee(pid))?;
    let rseq = ptrace::rseq_configuration(tid).map_err(call("reading its rseq"))?;
    let robust_list = process::get_robust_list(tid).map_err(call("reading its robust list"))?;
    let status = &inside.status;
    let pending = signals::pending((pid, tid), status, false)?;
    let stat = Stat::read(pid, &format!("task/{tid}/stat"))?;
    Ok(Thread {
        tid,
        comm: stat.comm().to_vec(),
        cpu_time: asked.cpu_time,
        regs: inside.regs,
        xstate,
        sigmask,
        pending,
        altstack: asked.altstack,
        robust_list,
        clear_child_tid: asked.clear_child_tid,
        rseq: (rseq.pointer != 0).then_some(Rseq {
            pointer: rseq.pointer,
            size: rseq.size,
            signature: rseq.signature,
        }),
        credentials: credentials::capture(status, asked.securebits),
        scheduling: Scheduling {
            policy: stat.field(41) as i32,
            reset_on_fork: asked.policy & SCHED_RESET_ON_FORK != 0,
            priority: stat.field(40) as i32,
            deadline: asked.deadline,
            slice: asked.slice,
            utilisation: asked.utilisation,
            nice: stat.field(19) as i32,
            idle_nice: idle_nice(&stat),
            ioprio: asked.ioprio,
            affinity: status.cpu_mask("Cpus_allowed"),
            anywhere: false,
            timer_slack: asked.timer_slack,
            first_slack: None,
            io_flusher: is_io_flusher(&stat),
        },
        pdeathsig: asked.pdeathsig,
        personality: asked.personality,
        memory_failure: asked.memory_failure,
        request_keyring: asked.request_keyring,
        speculation: asked.processor.speculation,
        tsc_faults: asked.processor.tsc_faults,
        cpuid_faults: asked.processor.cpuid_faults,
        no_new_privs: status.mask("NoNewPrivs") != 0,
        seccomp: seccomp::capture(pid, tid, status, filters)?,
        layers: Vec::new(),
        domains: Vec::new(),
        profile: None,
        dispatch: inside.dispatch,
        memory_policy: asked.memory_policy,
        directories: None,
        files: None,
        undo: ThreadUndo::Shared,
        child_wait: None,
        io_of: None,
        cgroups: None,
        socket_wait: inside.socket_wait,
        limit: inside.limit,
        waits_since: inside.waits_since,
        sleep: inside.sleep,
    })
}

/// The nice value that the priority of a thread of SCHED_IDLE is by, where that is not its own (kernel/sched/syscalls.c,
/// `__setscheduler_params`).
pub(super) fn idle_nice(stat: &Stat) -> Option<i32> {
    const IDLE: i64 = 5;
    const NICE: core::ops::Range<i64> = -20..20;
    let by = stat.field(18) - 20;
    let another = stat.field(41) == IDLE && by != stat.field(19) && NICE.contains(&by);
    another.then_some(by as i32)
}

/// `PR_SET_IO_FLUSHER`
pub(super) fn is_io_flusher(stat: &Stat) -> bool {
    stat.field(9).cast_unsigned() & IO_FLUSHER == IO_FLUSHER
}

/// What another thread may ask, and what that one has in common with it.
pub(super) struct Others {
    policy: CallIndex,
    attr: Buffer,
    ioprio: CallIndex,
    processor: ProcessorCalls,
}

impl Others {
    pub(super) fn ask(batch: &mut Batch, tid: Tid) -> Others {
        let attr = batch.space(SCHED_ATTR);
        let args = [tid.0.into(), attr.into(), SCHED_ATTR.into(), 0.into()];
        batch.call("asking for a scheduling", SCHED_GETATTR, args);
        let ioprio = [IOPRIO_WHO_PROCESS.into(), tid.0.into()];
        let policy = "asking for a scheduling policy";
        Others {
            policy: batch.call(policy, SCHED_GETSCHEDULER, [tid.0.into()]),
            attr,
            ioprio: batch.call("asking for an I/O priority", IOPRIO_GET, ioprio),
            processor: ProcessorCalls::add(batch),
        }
    }

    pub(super) fn policy(&self, out: &Output) -> u64 {
        out.result(self.policy).unwrap_or(0)
    }

    pub(super) fn slice(&self, out: &Output) -> Option<u64> {
        slice(out, self.attr)
    }

    pub(super) fn utilisation(&self, out: &Output) -> Option<[u32; 2]> {
        utilisation(out, self.attr)
    }

    pub(super) fn ioprio(&self, out: &Output) -> i32 {
        out.result(self.ioprio).unwrap_or(0) as i32
    }

    /// What scheduling there is, but for deadlines, processors and timer slack.
    pub(super) fn scheduling(&self, out: &Output, stat: &Stat) -> Scheduling {
        Scheduling {
            policy: stat.field(41) as i32,
            reset_on_fork: self.policy(out) & SCHED_RESET_ON_FORK != 0,
            priority: stat.field(40) as i32,
            deadline: None,
            slice: self.slice(out),
            utilisation: self.utilisation(out),
            nice: stat.field(19) as i32,
            idle_nice: idle_nice(stat),
            ioprio: self.ioprio(out),
            affinity: Vec::new(),
            anywhere: false,
            timer_slack: 0,
            first_slack: None,
            io_flusher: is_io_flusher(stat),
        }
    }

    /// Of the thread that asks.
    pub(super) fn speculation(&self, out: &Output) -> [u8; 3] {
        self.processor.read(out).speculation
    }
}

/// The time slice that is not the usual one.
fn slice(out: &Output, attr: Buffer) -> Option<u64> {
    let runtime = out.u64(attr, 3);
    let ordinary = matches!(out.u32(attr, 1), SCHED_OTHER | SCHED_BATCH | SCHED_IDLE);
    (ordinary && runtime != usual_slice()).then_some(runtime)
}

/// The bounds of utilisation that are not the usual ones; the kernel shows none where it has none
/// (`CONFIG_UCLAMP_TASK`).
fn utilisation(out: &Output, attr: Buffer) -> Option<[u32; 2]> {
    // `SCHED_CAPACITY_SCALE`
    const ALL: u32 = 1024;
    let bounds = [out.u32(attr, 12), out.u32(attr, 13)];
    let real_time = matches!(out.u32(attr, 1), SCHED_FIFO | SCHED_RR);
    let usual = [if real_time { ALL } else { 0 }, ALL];
    (bounds != [0, 0] && bounds != usual).then_some(bounds)
}

/// What only the thread itself can ask for.
pub(super) struct Asked {
    altstack: (u64, u32, u64),
    cpu_time: u64,
    clear_child_tid: u64,
    securebits: u32,
    policy: u64,
    ioprio: i32,
    timer_slack: u64,
    pdeathsig: i32,
    personality: u32,
    memory_failure: u8,
    request_keyring: u8,
    processor: Processor,
    deadline: Option<[u64; 4]>,
    slice: Option<u64>,
    utilisation: Option<[u32; 2]>,
    memory_policy: Option<MemoryPolicy>,
}

/// What a thread may do with the processor.
struct Processor {
    speculation: [u8; 3],
    tsc_faults: bool,
    cpuid_faults: bool,
}

/// The calls that ask for [`Asked`].
pub(super) struct Question {
    stack: Buffer,
    cpu_time: Buffer,
    tid_address: Buffer,
    death: Buffer,
    secure: CallIndex,
    slack: CallIndex,
    ioprio: CallIndex,
    policy: CallIndex,
    attr: Buffer,
    failure: CallIndex,
    keyring: CallIndex,
    personality: CallIndex,
    memory_policy: numa::Asked,
    processor: ProcessorCalls,
}

impl Question {
    pub(super) fn add(batch: &mut Batch) -> Question {
        let mut into = |what, option: i32| {
            let buffer = batch.space(8);
            batch.call(what, PRCTL, [option.into(), buffer.into()]);
            buffer
        };
        let tid_address = into("asking for its tid address", PR_GET_TID_ADDRESS);
        let death = into("asking for its parent death signal", PR_GET_PDEATHSIG);
        let stack = batch.space(24);
        let args = [0.into(), stack.into()];
        batch.call("asking for its signal stack", SIGALTSTACK, args);
        let cpu_time = batch.space(16);
        let args = [CLOCK_THREAD_CPUTIME_ID.into(), cpu_time.into()];
        batch.call("asking for its processor time", CLOCK_GETTIME, args);
        let attr = batch.space(SCHED_ATTR);
        let args = [0.into(), attr.into(), SCHED_ATTR.into(), 0.into()];
        batch.call("asking for its scheduling", SCHED_GETATTR, args);
        let who = IOPRIO_WHO_PROCESS.into();
        let policy = "asking for its scheduling policy";
        let all = u64::from(u32::MAX).into();
        let failure = "asking for its memory failure policy";
        let keyring = [KEYCTL_SET_REQKEY_KEYRING.into(), NO_CHANGE.into()];
        Question {
            stack,
            cpu_time,
            tid_address,
            death,
            attr,
            secure: batch.call("asking for securebits", PRCTL, [PR_GET_SECUREBITS.into()]),
            slack: batch.call("asking for timer slack", PRCTL, [PR_GET_TIMERSLACK.into()]),
            ioprio: batch.call("asking for its I/O priority", IOPRIO_GET, [who, 0.into()]),
            policy: batch.call(policy, SCHED_GETSCHEDULER, [0.into()]),
            failure: batch.call(failure, PRCTL, [PR_MCE_KILL_GET.into()]),
            keyring: batch.try_call("asking for its keyring of new keys", KEYCTL, keyring),
            personality: batch.call("asking for its personality", PERSONALITY, [all]),
            memory_policy: numa::Asked::add(batch, None),
            processor: ProcessorCalls::add(batch),
        }
    }

    pub(super) fn read(&self, out: &Output) -> Asked {
        let (stack, attr) = (self.stack, self.attr);
        // struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
        let deadline = (out.u32(attr, 1) == SCHED_DEADLINE).then(|| {
            let word = |index| out.u64(attr, index);
            [word(1), word(3), word(4), word(5)]
        });
        Asked {
            processor: self.processor.read(out),
            deadline,
            slice: slice(out, attr),
            utilisation: utilisation(out, attr),
            memory_policy: self.memory_policy.read(out),
            altstack: (out.u64(stack, 0), out.u32(stack, 2), out.u64(stack, 2)),
            cpu_time: out.u64(self.cpu_time, 0) * 1_000_000_000 + out.u64(self.cpu_time, 1),
            clear_child_tid: out.u64(self.tid_address, 0),
            securebits: out.result(self.secure).unwrap_or(0) as u32,
            policy: out.result(self.policy).unwrap_or(0),
            ioprio: out.result(self.ioprio).unwrap_or(0) as i32,
            timer_slack: out.result(self.slack).unwrap_or(50_000),
            pdeathsig: out.u32(self.death, 0) as i32,
            personality: out.result(self.personality).unwrap_or(0) as u32,
            memory_failure: out.result(self.failure).map_or(2, |policy| policy as u8),
            request_keyring: out.result(self.keyring).map_or(0, |keyring| keyring as u8),
        }
    }
}

/// The time slice of this thread, which asks for none of its own; 0 where the kernel does not tell it.
fn usual_slice() -> u64 {
    static USUAL: OnceLock<u64> = OnceLock::new();
    *USUAL.get_or_init(|| sys::process::time_slice().unwrap_or(0))
}

/// The calls that ask for [`Processor`].
struct ProcessorCalls {
    speculation: [CallIndex; 3],
    tsc: Buffer,
    cpuid: CallIndex,
}

impl ProcessorCalls {
    fn add(batch: &mut Batch) -> ProcessorCalls {
        let speculation = [0, 1, 2].map(|what| {
            let get = PR_GET_SPECULATION_CTRL.into();
            let args = [get, what.into(), 0.into(), 0.into(), 0.into()];
            batch.try_call("asking for its speculation", PRCTL, args)
        });
        let tsc = batch.space(8);
        let args = [PR_GET_TSC.into(), tsc.into()];
        batch.try_call("asking for its time stamps", PRCTL, args);
        let cpuid = batch.try_call("asking for cpuid", ARCH_PRCTL, [ARCH_GET_CPUID.into()]);
        ProcessorCalls {
            speculation,
            tsc,
            cpuid,
        }
    }

    fn read(&self, out: &Output) -> Processor {
        let state = |call| out.result(call).map_or(0, |value| value as u8);
        Processor {
            speculation: self.speculation.map(state),
            tsc_faults: out.u32(self.tsc, 0) == PR_TSC_SIGSEGV,
            cpuid_faults: out.result(self.cpuid) == Ok(0),
        }
    }
}
