//! What its tracer sees of a process, and what anybody may ask.

use super::super::foothold::Finder;
use super::super::kept::Kept;
use super::super::process::{self, Place, SCRATCH};
use super::super::restart::Block;
use super::super::{attributes, credentials, inside, mappings, signals, sleep, thread};
use super::{Runs, refuse, stands};
use crate::freeze::FrozenThread;
use crate::proc::{self, Stat, Status};
use crate::{FreezerError, Frozen};
use persist_mem::manifest::{
    AddressSpace, QueuedSignal, Scheduling, Seccomp, Sleep, Thread, ThreadUndo,
};
use std::sync::Arc;
use sys::batch::Batch;
use sys::by_tracer::{self, CallStop};
use sys::regs::Regs;
use sys::tracee::Tracee;
use sys::{Pid, Tid, process as calls};

const SIGTRAP: i32 = 5;
const SIGCHLD: i32 = 17;
const SIGSTOP: i32 = 19;
/// `PF_MCE_PROCESS`, `PF_MCE_EARLY`.
const MCE_PROCESS: i64 = 0x80;
const MCE_EARLY: i64 = 0x8000;

/// What its tracer sees of a thread, and what anybody may ask.
pub(super) struct Seen {
    pub(super) tid: Tid,
    pub(super) regs: Regs,
    pub(super) sleep: Option<Sleep>,
    pub(super) xstate: Vec<u8>,
    pub(super) sigmask: u64,
    pub(super) call: CallStop,
    pub(super) info: Vec<u8>,
    /// But for what is told by `to_stop`.
    pub(super) own: Vec<QueuedSignal>,
    /// A SIGSTOP of its tracer waits for it.
    pub(super) to_stop: bool,
    pub(super) shared: Vec<QueuedSignal>,
    pub(super) unread: bool,
    pub(super) break_points: [u64; 6],
    pub(super) policy: u64,
    pub(super) slice: Option<u64>,
    pub(super) utilisation: Option<[u32; 2]>,
    pub(super) ioprio: i32,
    pub(super) speculation: [u8; 3],
}

/// Does something inside of a stopped thread that traces others.
pub(crate) fn in_tracer<T>(
    frozen: &Frozen,
    tracer: Tid,
    finder: &mut Finder,
    work: impl FnOnce(Pid, &mut Tracee) -> Result<T, FreezerError>,
) -> Result<T, FreezerError> {
    let is_its = |of: &Pid| frozen.threads(*of).iter().any(|(tid, _)| *tid == tracer);
    let stopped = || refuse(Pid(tracer.0), "its tracer is not stopped".into());
    let owner = frozen.pids().find(is_its).ok_or_else(stopped)?;
    let mem = proc::memory(owner).map_err(FreezerError::call(owner, "opening its memory"))?;
    let maps = mappings::of_stopped(owner, frozen.first(owner)?)?;
    let mut threads = inside::threads(frozen, owner, mem)?;
    let place = Place {
        maps: &maps,
        finder,
    };
    let mut unused = AddressSpace::default();
    process::in_scratch(owner, &mut threads, place, &mut unused, |threads, _| {
        let mut threads = threads.iter_mut();
        let thread = threads.find(|thread| thread.tracee.tid() == tracer);
        work(owner, &mut thread.ok_or_else(stopped)?.tracee)
    })
}

/// Asks inside of the tracer.
pub(super) fn ask_tracer(
    frozen: &Frozen,
    (pid, tracer): (Pid, Tid),
    place: Place<'_>,
) -> Result<Vec<Seen>, FreezerError> {
    let tracees = frozen.threads(pid);
    let tids: Vec<Tid> = tracees.iter().map(|(tid, _)| *tid).collect();
    let runs = stands::runs(pid, &tids).map_err(|e| refuse(pid, e.to_string()))?;
    let seen = in_tracer(frozen, tracer, place.finder, |owner, tracer| {
        let one = |(tid, runs): (&Tid, &Runs)| {
            let tracer = (owner, &mut *tracer);
            match runs.listens {
                true => ask_listener(tracer, (pid, *tid)),
                false => ask(tracer, (pid, *tid)),
            }
        };
        let asked = tids.iter().zip(&runs).map(one);
        asked.collect::<Result<Vec<Seen>, FreezerError>>()
    })?;
    let mem = proc::memory(pid).map_err(FreezerError::call(pid, "opening its memory"))?;
    let mem = Arc::new(mem);
    let kept = sleep::kept(seen.iter().map(|one| (one.tid, &one.regs)));
    let both = seen.into_iter().zip(tracees);
    both.map(|(one, (tid, state))| {
        let tracee = Tracee::with_memory(pid, tid, Arc::clone(&mem));
        one.settled(&tracee, state, kept.get(&tid))
    })
    .collect()
}

/// Asks about a thread that listens, of which nothing is told as long as it does.
fn ask_listener(
    (owner, tracer): (Pid, &mut Tracee),
    (pid, tid): (Pid, Tid),
) -> Result<Seen, FreezerError> {
    let told = Status::read(owner, &format!("task/{}/status", tracer.tid()))?;
    let told = told.mask("SigPnd") | told.mask("ShdPnd");
    let it = by_tracer::Tracee(tid);
    let mut batch = Batch::new();
    it.interrupt(&mut batch);
    let stop = it.wait(&mut batch, false);
    let out = tracer.run(&batch).map_err(FreezerError::tracee(owner))?;
    let stops = stop.read(&out).map(|status| status & 0xff);
    let seen = ask((owner, &mut *tracer), (pid, tid));
    let mut batch = Batch::new();
    it.listen(&mut batch);
    if told >> (SIGCHLD - 1) & 1 == 0 {
        by_tracer::forget_stops(&mut batch);
    }
    tracer.run(&batch).map_err(FreezerError::tracee(owner))?;
    match stops {
        Some(SIGTRAP) | None => Err(refuse(pid, "its process goes on just now".into())),
        Some(_) => seen,
    }
}

/// Asks about one thread.
fn ask((owner, tracer): (Pid, &mut Tracee), (pid, tid): (Pid, Tid)) -> Result<Seen, FreezerError> {
    let mut batch = Batch::new();
    let asked = by_tracer::Tracee(tid).ask(&mut batch);
    let others = thread::Others::ask(&mut batch, tid);
    debug_assert!(batch.size() < SCRATCH);
    let out = tracer.run(&batch).map_err(FreezerError::tracee(owner))?;
    let queued = |shared| {
        let found = asked.queued(&out, shared);
        let found = found.ok_or_else(|| refuse(pid, "many signals wait for it".into()))?;
        Ok(found.into_iter().map(QueuedSignal).collect())
    };
    let mut own: Vec<QueuedSignal> = queued(false)?;
    let all = own.len();
    own.retain(|signal| !is_sent_to_stop(signal, owner));
    Ok(Seen {
        tid,
        regs: asked.regs(&out),
        sleep: None,
        xstate: asked.xstate(&out),
        sigmask: asked.sigmask(&out),
        call: asked.call(&out),
        info: asked.siginfo(&out).map_or_else(Vec::new, |i| i.to_vec()),
        to_stop: own.len() < all,
        own,
        shared: queued(true)?,
        unread: asked.unread(&out),
        break_points: asked.break_points(&out),
        policy: others.policy(&out),
        slice: others.slice(&out),
        utilisation: others.utilisation(&out),
        ioprio: others.ioprio(&out),
        speculation: others.speculation(&out),
    })
}

/// Whether a signal is the SIGSTOP by which `tracer` stops a thread that it has attached to (tgkill(2)), as
/// debuggers do with all others when one has stopped.
fn is_sent_to_stop(QueuedSignal(info): &QueuedSignal, tracer: Pid) -> bool {
    const SI_TKILL: i32 = -6;
    let half = |at: usize| {
        let bytes = info.get(at..at + 4)?.try_into().ok()?;
        Some(i32::from_le_bytes(bytes))
    };
    [half(0), half(8), half(16)] == [Some(SIGSTOP), Some(SI_TKILL), Some(tracer.0)]
}

impl Seen {
    /// With what remains of a sleep.
    fn settled(
        mut self,
        tracee: &Tracee,
        state: FrozenThread,
        kept: Option<&Block>,
    ) -> Result<Seen, FreezerError> {
        let (regs, sleep) = sleep::settle(tracee, self.regs, state, kept)?;
        if sleep.is_none() && regs != self.regs {
            let why = "it sleeps for a time that only the kernel knows";
            return Err(refuse(tracee.pid(), why.into()));
        }
        // Its tracer sees the call under the number that it has, restart_syscall(2) or its own.
        self.sleep = sleep;
        Ok(self)
    }

    /// The signals that wait for it alone, but for what is told by `to_stop`.
    pub(super) fn own_mask(&self, status: &Status) -> u64 {
        let sent = if self.to_stop { 1 << (SIGSTOP - 1) } else { 0 };
        status.mask("SigPnd") & !sent
    }

    pub(super) fn thread(&self, pid: Pid, kept: &Kept) -> Result<Thread, FreezerError> {
        let tid = self.tid;
        let status = &Status::read(pid, &format!("task/{tid}/status"))?;
        let stat = Stat::read(pid, &format!("task/{tid}/stat"))?;
        // Of other threads, too (fs/proc/base.c, which looks at who has that number).
        let slack = proc::read_text(Pid(tid.0), "timerslack_ns")?;
        let personality = attributes::number(Pid(tid.0), "personality", 16)?;
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
            cpu_time: process::thread_time(pid, tid).unwrap_or(0),
            regs: self.regs,
            xstate: self.xstate.clone(),
            sigmask: self.sigmask,
            pending: signals::with_bare(self.own.clone(), self.own_mask(status)),
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
                utilisation: self.utilisation,
                nice: stat.field(19) as i32,
                idle_nice: thread::idle_nice(&stat),
                ioprio: self.ioprio,
                affinity: status.cpu_mask("Cpus_allowed"),
                anywhere: false,
                timer_slack: slack.trim().parse().unwrap_or(50_000),
                first_slack: None,
                io_flusher: thread::is_io_flusher(&stat),
            },
            pdeathsig: kept.pdeathsig,
            personality: personality as u32,
            memory_failure,
            request_keyring: 0,
            speculation: self.speculation,
            tsc_faults: false,
            cpuid_faults: false,
            no_new_privs: status.mask("NoNewPrivs") != 0,
            seccomp: Seccomp::Off,
            layers: Vec::new(),
            domains: Vec::new(),
            profile: None,
            dispatch: None,
            memory_policy: None,
            directories: None,
            files: None,
            undo: ThreadUndo::Shared,
            child_wait: None,
            io_of: None,
            cgroups: None,
            socket_wait: None,
            limit: None,
            waits_since: None,
            sleep: self.sleep,
        })
    }
}
