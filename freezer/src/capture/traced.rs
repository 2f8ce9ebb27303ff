//! A process whose only thread is in a stop of its tracer ([`crate::freeze::traced`]).
//!
//! Nothing is asked inside of it: what it did for that its tracer would see. Its registers, its signals and its
//! stop the tracer sees and is asked for them ([`by_tracer`]); the rest the kernel keeps ([`Kept`]) or `/proc`
//! shows. What none of them shows is refused ([`obstacle`]).

use super::inside;
use super::kept::{self, Kept, Reader};
use super::process::{self, Place, SCRATCH};
use super::timers::TimersAt;
use super::{attributes, credentials, mappings, signals, sleep, thread};
use crate::freeze::FrozenThread;
use crate::freeze::traced::{stands_still, tracer_of};
use crate::kernel::{Unreadable, half};
use crate::proc::{self, Stat, Status};
use crate::{FreezerError, Frozen};
use core::cmp::Ordering;
use persist_mem::manifest::{
    AddressSpace, Directories, Live, LockFuture, QueuedSignal, Scheduling, Seccomp, Sleep, Thread,
    Traced, TracedStop,
};
use std::sync::Arc;
use std::time::Duration;
use sys::batch::Batch;
use sys::by_tracer::{self, CallStop};
use sys::process::{KcmpKind, kcmp};
use sys::regs::Regs;
use sys::tracee::Tracee;
use sys::{Pid, Tid, process as calls};

const SIGTRAP: u32 = 5;
/// SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
const JOBS: core::ops::RangeInclusive<i32> = 18..=22;
const EVENT_STOP: u32 = 128;
/// `PT_SEIZED`, and where the options begin (include/linux/ptrace.h).
const SEIZED: u32 = 1 << 16;
const OPTIONS_SHIFT: u32 = 3;
const OPTIONS: u64 = 0x3000ff;
/// `JOBCTL_PENDING_MASK`, `JOBCTL_STOP_CONSUME`, `JOBCTL_TRAPPING`, `JOBCTL_LISTENING` (include/linux/sched/jobctl.h).
const JOBCTL: u64 = 0xfe_0000;
const SIGNAL_STOP_STOPPED: u32 = 1;
/// `MMF_HAS_MDWE`, its inheritance, and `MMF_VM_MERGE_ANY` (include/linux/mm_types.h, linux/sched/coredump.h).
const MM_SETTINGS: u32 = 7 << 28;
const VM_LOCKED: u64 = 0x2000;
const VM_LOCKONFAULT: u64 = 0x8_0000;
/// `PF_MCE_PROCESS`, `PF_MCE_EARLY`.
const MCE_PROCESS: i64 = 0x80;
const MCE_EARLY: i64 = 0x8000;
/// `CAP_SYS_PTRACE`, to attach to anybody, and `CAP_KILL`, to send it the signal of its stop.
const ANYBODY: u64 = 1 << 19 | 1 << 5;
/// `SUID_DUMP_USER`: who has the same ids may attach.
const DUMPABLE: u8 = 1;
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// How often one is looked at until it stands still.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// What the kernel keeps of it.
struct Stands {
    kept: Kept,
    seized: bool,
    options: u64,
    stop: Result<TracedStop, &'static str>,
    memory: Memory,
    obstacle: Option<&'static str>,
}

/// Of its address space.
struct Memory {
    brk: u64,
    dumpable: u8,
    membarrier: u32,
    lock_future: LockFuture,
    protection_keys: u16,
}

/// Describes the process.
pub(super) fn describe(
    frozen: &Frozen,
    (pid, tracer): (Pid, Tid),
    place: Place<'_>,
    mm: &mut AddressSpace,
) -> Result<(Live, TimersAt), FreezerError> {
    if let Some(why) = obstacle(pid, tracer)? {
        return Err(refuse(pid, why));
    }
    let has_keys = place.maps.iter().any(|map| map.protection_key.is_some());
    let state = frozen.threads(pid).first().map(|(_, state)| *state);
    let state = state.ok_or_else(|| refuse(pid, "it has ended".into()))?;
    let seen = ask_tracer(frozen, (pid, tracer), place)?.settled(pid, state)?;
    let stands = look(pid, seen.regs.rsp).map_err(|e| refuse(pid, e.to_string()))?;
    let stop = stands.stop.map_err(|why| refuse(pid, why.into()))?;
    if let Some(why) = seen.obstacle(pid, stop, &stands)? {
        return Err(refuse(pid, why));
    }
    mm.layout.brk = stands.memory.brk;
    mm.membarrier = stands.memory.membarrier;
    mm.lock_future = stands.memory.lock_future;
    mm.protection_keys = 1;
    if has_keys {
        mm.protection_keys = stands.memory.protection_keys;
    }
    let status = Status::read(pid, "status")?;
    let live = Live {
        traced: Some(Box::new(Traced {
            tracer,
            seized: stands.seized,
            options: stands.options,
            stop,
            info: QueuedSignal(seen.info.clone()),
            unread: seen.unread,
        })),
        actions: stands.kept.actions.clone(),
        child_subreaper: stands.kept.child_subreaper,
        pending: signals::with_bare(seen.shared.clone(), status.mask("ShdPnd")),
        directories: Directories {
            umask: status.umask(),
            ..Directories::default()
        },
        limits: attributes::limits(pid)?,
        oom_score_adj: attributes::number(pid, "oom_score_adj", 10)? as i32,
        dumpable: stands.memory.dumpable,
        threads: vec![seen.thread(pid, &status, &stands.kept)?],
        ..process::nothing()
    };
    Ok((live, TimersAt::now()))
}

fn refuse(pid: Pid, why: String) -> FreezerError {
    FreezerError::refuse(pid, "ptrace", format!("it is traced: {why}"))
}

/// What its tracer sees of it, and what anybody may ask.
struct Seen {
    regs: Regs,
    sleep: Option<Sleep>,
    xstate: Vec<u8>,
    sigmask: u64,
    call: CallStop,
    info: Vec<u8>,
    own: Vec<QueuedSignal>,
    shared: Vec<QueuedSignal>,
    unread: bool,
    policy: u64,
    slice: Option<u64>,
    ioprio: i32,
    speculation: [u8; 3],
}

/// Asks inside of the tracer.
fn ask_tracer(
    frozen: &Frozen,
    (pid, tracer): (Pid, Tid),
    place: Place<'_>,
) -> Result<Seen, FreezerError> {
    let is_its = |of: &Pid| frozen.threads(*of).iter().any(|(tid, _)| *tid == tracer);
    let owner = frozen.pids().find(is_its);
    let owner = owner.ok_or_else(|| refuse(pid, format!("{tracer} is not stopped")))?;
    let mem = proc::memory(owner).map_err(FreezerError::call(owner, "opening its memory"))?;
    let maps = mappings::of_stopped(owner, frozen.first(owner)?)?;
    let mut threads = inside::threads(frozen, owner, mem)?;
    let place = Place {
        maps: &maps,
        finder: place.finder,
    };
    let mut unused = AddressSpace::default();
    process::in_scratch(owner, &mut threads, place, &mut unused, |threads, _| {
        let thread = threads
            .iter_mut()
            .find(|thread| thread.tracee.tid() == tracer);
        let thread = thread.ok_or_else(|| refuse(pid, format!("{tracer} is not stopped")))?;
        let mut batch = Batch::new();
        let asked = by_tracer::Tracee(pid.leader()).ask(&mut batch);
        let others = thread::Others::ask(&mut batch, pid.leader());
        debug_assert!(batch.size() < SCRATCH);
        let out = thread.tracee.run(&batch);
        let out = out.map_err(FreezerError::tracee(owner))?;
        let queued = |shared| {
            let found = asked.queued(&out, shared);
            found.ok_or_else(|| refuse(pid, "many signals wait for it".into()))
        };
        let seen = Seen {
            regs: asked.regs(&out),
            sleep: None,
            xstate: asked.xstate(&out),
            sigmask: asked.sigmask(&out),
            call: asked.call(&out),
            info: asked.siginfo(&out).map_or_else(Vec::new, |i| i.to_vec()),
            own: queued(false)?.into_iter().map(QueuedSignal).collect(),
            shared: queued(true)?.into_iter().map(QueuedSignal).collect(),
            unread: asked.unread(&out),
            policy: others.policy(&out),
            slice: others.slice(&out),
            ioprio: others.ioprio(&out),
            speculation: others.speculation(&out),
        };
        Ok(seen)
    })
}

impl Seen {
    /// With what remains of a sleep.
    fn settled(mut self, pid: Pid, state: FrozenThread) -> Result<Seen, FreezerError> {
        let tid = pid.leader();
        let kept = sleep::kept(std::iter::once((tid, &self.regs)));
        let mem = proc::memory(pid).map_err(FreezerError::call(pid, "opening its memory"))?;
        let tracee = Tracee::with_memory(pid, tid, Arc::new(mem));
        let (regs, sleep) = sleep::settle(&tracee, self.regs, state, kept.get(&tid))?;
        if sleep.is_none() && regs != self.regs {
            let why = "it sleeps for a time that only the kernel knows";
            return Err(refuse(pid, why.into()));
        }
        // Its tracer sees the call under the number that it has, restart_syscall(2) or its own.
        self.sleep = sleep;
        Ok(self)
    }

    fn obstacle(
        &self,
        pid: Pid,
        stop: TracedStop,
        stands: &Stands,
    ) -> Result<Option<String>, FreezerError> {
        let told = |why: &str| Ok(Some(why.to_owned()));
        let fits = match stop {
            TracedStop::Entry => self.call == CallStop::Entry,
            TracedStop::Exit => self.call == CallStop::Exit,
            TracedStop::Signal(_) | TracedStop::Interrupted => self.call == CallStop::None,
        };
        if !fits || self.info.is_empty() {
            return told("its stop is not understood");
        }
        let status = Status::read(pid, "status")?;
        if status.mask("SigBlk") != self.sigmask {
            return told("its signal mask is to be put back");
        }
        let waiting = status.mask("SigPnd") | status.mask("ShdPnd");
        let waits = |signal: i32| waiting >> (signal - 1) & 1 != 0;
        let comes = match stop {
            TracedStop::Signal(signal) => Some(signal),
            _ => None,
        };
        // Signals that stop and SIGCONT take each other away (kernel/signal.c, prepare_signal).
        let takes = !stands.seized || comes.is_some_and(|signal| JOBS.contains(&signal));
        if comes.is_some_and(waits) || takes && JOBS.clone().any(waits) {
            return told("more signals of the kind of its stop wait for it");
        }
        if stop == TracedStop::Entry {
            let mem = proc::memory(pid).map_err(FreezerError::call(pid, "opening its memory"))?;
            let code = mem.read_vec(self.regs.rip.wrapping_sub(2), 2);
            if code.ok().as_deref() != Some(&SYSCALL) {
                return told("its system call is none of the 64-bit ones");
            }
        }
        Ok(None)
    }

    fn thread(&self, pid: Pid, status: &Status, kept: &Kept) -> Result<Thread, FreezerError> {
        let tid = pid.leader();
        let stat = Stat::read(pid, "stat")?;
        let slack = proc::read_text(pid, "timerslack_ns")?;
        let robust_list = calls::get_robust_list(tid);
        let flags = stat.field(9);
        let memory_failure = match (flags & MCE_PROCESS, flags & MCE_EARLY) {
            (0, _) => 2,
            (_, 0) => 0,
            _ => 1,
        };
        Ok(Thread {
            tid,
            comm: stat.comm().to_vec(),
            regs: self.regs,
            xstate: self.xstate.clone(),
            sigmask: self.sigmask,
            pending: signals::with_bare(self.own.clone(), status.mask("SigPnd")),
            altstack: kept.altstack,
            robust_list: robust_list.map_err(FreezerError::call(pid, "reading its robust list"))?,
            clear_child_tid: kept.clear_child_tid,
            rseq: kept.rseq,
            credentials: credentials::capture(status, kept.securebits),
            scheduling: Scheduling {
                policy: stat.field(41) as i32,
                reset_on_fork: self.policy & thread::SCHED_RESET_ON_FORK != 0,
                priority: stat.field(40) as i32,
                deadline: None,
                slice: self.slice,
                nice: stat.field(19) as i32,
                ioprio: self.ioprio,
                affinity: status.cpu_mask("Cpus_allowed"),
                timer_slack: slack.trim().parse().unwrap_or(50_000),
                io_flusher: thread::is_io_flusher(&stat),
            },
            pdeathsig: kept.pdeathsig,
            personality: attributes::number(pid, "personality", 16)? as u32,
            memory_failure,
            speculation: self.speculation,
            tsc_faults: false,
            cpuid_faults: false,
            no_new_privs: status.mask("NoNewPrivs") != 0,
            seccomp: Seccomp::Off,
            dispatch: None,
            memory_policy: None,
            directories: None,
            files: None,
            own_undo: false,
            shares_io: false,
            cgroups: None,
            socket_wait: None,
            limit: None,
            sleep: self.sleep,
        })
    }
}

/// Why a process that `tracer` traces is not carried, found without stopping it.
pub(crate) fn obstacle(pid: Pid, tracer: Tid) -> Result<Option<String>, FreezerError> {
    let told = |why: &str| Ok(Some(why.to_owned()));
    if proc::threads(pid)? != [pid.leader()] {
        return told("it has several threads");
    }
    let mut looks = LOOKS;
    while !stands_still(pid, pid.leader()) {
        looks -= 1;
        if looks == 0 {
            return told("it runs, and nobody but its tracer can stop it");
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    let status = Status::read(pid, "status")?;
    // The process of a thread has its directory under the thread's number, too.
    let its_tracer = Status::read(Pid(tracer.0), "status")?;
    if tracer_of(Pid(tracer.0), tracer).is_some() {
        return told("its tracer is traced itself");
    }
    if status.mask("Seccomp") != 0 {
        return told("it has seccomp filters");
    }
    if status.value("THP_enabled") == Some("0") {
        return told("huge pages are switched off for it");
    }
    for key in ["Speculation_Store_Bypass", "SpeculationIndirectBranch"] {
        if status.value(key) != its_tracer.value(key) {
            return told("it speculates as its tracer does not");
        }
    }
    let stat = Stat::read(pid, "stat")?;
    if stat.field(41) != 0 {
        return told("it has a scheduling policy");
    }
    if !proc::read(pid, "timers")?.is_empty() {
        return told("it has POSIX timers");
    }
    if has_policies(pid)? {
        return told("its memory has policies");
    }
    // ptrace(2), PTRACE_MODE_ATTACH_REALCREDS; that it is a child satisfies Yama.
    let ids = |of: &Status| (of.numbers("Uid"), of.numbers("Gid"));
    let anybody = its_tracer.mask("CapEff") & ANYBODY == ANYBODY;
    let own = stat.pid(4) == Pid(tracer.0)
        && ids(&status) == ids(&its_tracer)
        && status.mask("CapPrm") & !its_tracer.mask("CapPrm") == 0;
    let forbidden = || told("its tracer might not be allowed to attach to it once more");
    if !anybody && !own {
        return forbidden();
    }
    let relatives = proc::children(pid)?.into_iter().chain([stat.pid(4)]);
    let shares = |other: Pid| {
        let same = kcmp(pid.leader(), other.leader(), KcmpKind::Vm, 0, 0);
        same.is_ok_and(Ordering::is_eq)
    };
    if relatives.into_iter().any(shares) {
        return told("others have its memory");
    }
    Ok(match look(pid, 0) {
        Ok(stands) if !anybody && stands.memory.dumpable != DUMPABLE => return forbidden(),
        Ok(stands) => stands.obstacle.or(stands.stop.err()).map(str::to_owned),
        Err(why) => Some(why.to_string()),
    })
}

/// Policies of nodes, of its own or of mappings (`/proc/PID/numa_maps`: address, policy, the rest).
fn has_policies(pid: Pid) -> Result<bool, FreezerError> {
    let text = match proc::read_text(pid, "numa_maps") {
        Ok(text) => text,
        // A kernel without CONFIG_NUMA.
        Err(FreezerError::Proc { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {
            return Ok(false);
        }
        Err(e) => return Err(e),
    };
    let policy = |line: &str| line.split(' ').nth(1).is_some_and(|word| word != "default");
    Ok(text.lines().any(policy))
}

/// Looks at the process; `rsp` tells whether its thread is on its signal stack.
fn look(pid: Pid, rsp: u64) -> Result<Stands, Unreadable> {
    kept::look(pid, |reader, children| {
        let flags = reader.half_of("ptrace")?;
        let mut obstacle = reader.obstacle_but_signals(children)?;
        let mut refuse = |why| {
            obstacle.get_or_insert(why);
        };
        let options = u64::from((flags & !SEIZED) >> OPTIONS_SHIFT);
        if options & !OPTIONS != 0 {
            refuse("it has options that are not known");
        }
        let signal = reader.pointer("signal")?;
        let flags_at = signal + reader.offset("signal_struct", "flags")?;
        if reader.pointer("jobctl")? & JOBCTL != 0
            || reader.half_at(flags_at, "a process")? & SIGNAL_STOP_STOPPED != 0
        {
            refuse("its process is stopped (job control)");
        }
        let points = reader.task + reader.offset("task_struct", "thread.ptrace_bps")?;
        let points = reader.bytes(points, 4 * 8, "break points")?;
        if points.iter().any(|byte| *byte != 0) {
            refuse("its tracer has set hardware break points");
        }
        let traces = reader.task + reader.offset("task_struct", "ptraced")?;
        if reader.kernel.word(traces, "its tracees")? != traces {
            refuse("it traces others");
        }
        Ok(Stands {
            kept: reader.kept(rsp)?,
            seized: flags & SEIZED != 0,
            options: options & OPTIONS,
            stop: stop(reader, flags & SEIZED != 0)?,
            memory: memory(reader, &mut refuse)?,
            obstacle,
        })
    })
}

/// Which stop it is in: by the siginfo of the stop, and the message that tells calls apart.
fn stop(
    reader: &mut Reader<'_>,
    seized: bool,
) -> Result<Result<TracedStop, &'static str>, Unreadable> {
    const WHAT: &str = "the signal of a stop";
    const GOOD: u32 = SIGTRAP | 0x80;
    let info = reader.pointer("last_siginfo")?;
    if info == 0 {
        return Ok(Err("its process is stopped (job control)"));
    }
    let bytes = reader.bytes(info, 12, WHAT)?;
    let (Some(signal), Some(code)) = (half(&bytes, 0), half(&bytes, 8)) else {
        return Err(Unreadable::Inconsistent(WHAT));
    };
    let message = reader.pointer("ptrace_message")?;
    Ok(match (signal, code) {
        (SIGTRAP, SIGTRAP | GOOD) if message == 1 => Ok(TracedStop::Entry),
        (SIGTRAP, SIGTRAP | GOOD) if message == 2 => Ok(TracedStop::Exit),
        (SIGTRAP, GOOD) => Err("its stop is not understood"),
        (SIGTRAP, code) if code >> 8 == EVENT_STOP && seized => Ok(TracedStop::Interrupted),
        (_, code) if code >> 8 == EVENT_STOP => Err("its process is stopped (job control)"),
        (SIGTRAP, code) if code & 0xff == SIGTRAP && (1..=8).contains(&(code >> 8)) => {
            Err("it stands at an event (PTRACE_O_TRACE*)")
        }
        (signal, _) => Ok(TracedStop::Signal(signal.cast_signed())),
    })
}

/// What is not carried of memory is told to `refuse`.
fn memory(
    reader: &mut Reader<'_>,
    refuse: &mut impl FnMut(&'static str),
) -> Result<Memory, Unreadable> {
    const WHAT: &str = "an address space";
    let mm = reader.pointer("mm")?;
    let at = |reader: &Reader<'_>, path: &str| Ok(mm + reader.offset("mm_struct", path)?);
    let flags = at(reader, "flags")?;
    let flags = reader.half_at(flags, WHAT)?;
    if flags & MM_SETTINGS != 0 {
        refuse("its memory has settings that only it can tell (PR_SET_MDWE, PR_SET_MEMORY_MERGE)");
    }
    let table = at(reader, "context.ldt")?;
    if reader.kernel.word(table, WHAT)? != 0 {
        refuse("it has segments of its own");
    }
    if reader.offset("task_struct", "mempolicy").is_ok() && reader.pointer("mempolicy")? != 0 {
        refuse("its memory has a policy");
    }
    let keys = at(reader, "context.pkey_allocation_map");
    let protection_keys = match keys {
        Ok(place) => reader.half_at(place, WHAT)? as u16,
        Err(_) => 1,
    };
    let [brk, locked] = [at(reader, "brk")?, at(reader, "def_flags")?];
    let locked = reader.kernel.word(locked, WHAT)?;
    let barriers = at(reader, "membarrier_state")?;
    Ok(Memory {
        brk: reader.kernel.word(brk, WHAT)?,
        dumpable: (flags & 3) as u8,
        membarrier: registrations(reader.half_at(barriers, WHAT)?),
        lock_future: match (locked & VM_LOCKED, locked & VM_LOCKONFAULT) {
            (0, _) => LockFuture::No,
            (_, 0) => LockFuture::Now,
            _ => LockFuture::OnFault,
        },
        protection_keys,
    })
}

/// The commands of membarrier(2) that register for what the state allows (`MEMBARRIER_STATE_*`,
/// include/linux/sched/mm.h).
fn registrations(state: u32) -> u32 {
    const STATES: [(u32, u32); 4] = [
        (1 << 0, 1 << 4),
        (1 << 2, 1 << 2),
        (1 << 4, 1 << 6),
        (1 << 6, 1 << 8),
    ];
    let ready = STATES.iter().filter(|(ready, _)| state & ready != 0);
    ready.fold(0, |all, (_, command)| all | command)
}
