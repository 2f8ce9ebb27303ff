//! What its tracer sees of a process, and what anybody may ask.

use super::super::kept::Kept;
use super::super::process::{self, Place, SCRATCH};
use super::super::{attributes, credentials, inside, mappings, signals, sleep, thread};
use super::refuse;
use crate::freeze::FrozenThread;
use crate::proc::{self, Stat, Status};
use crate::{FreezerError, Frozen};
use persist_mem::manifest::{AddressSpace, QueuedSignal, Scheduling, Seccomp, Sleep, Thread};
use std::sync::Arc;
use sys::batch::Batch;
use sys::by_tracer::{self, CallStop};
use sys::regs::Regs;
use sys::tracee::Tracee;
use sys::{Pid, Tid, process as calls};

/// `PF_MCE_PROCESS`, `PF_MCE_EARLY`.
const MCE_PROCESS: i64 = 0x80;
const MCE_EARLY: i64 = 0x8000;

/// What its tracer sees of it, and what anybody may ask.
pub(super) struct Seen {
    pub(super) regs: Regs,
    pub(super) sleep: Option<Sleep>,
    pub(super) xstate: Vec<u8>,
    pub(super) sigmask: u64,
    pub(super) call: CallStop,
    pub(super) info: Vec<u8>,
    pub(super) own: Vec<QueuedSignal>,
    pub(super) shared: Vec<QueuedSignal>,
    pub(super) unread: bool,
    pub(super) policy: u64,
    pub(super) slice: Option<u64>,
    pub(super) ioprio: i32,
    pub(super) speculation: [u8; 3],
}

/// Asks inside of the tracer.
pub(super) fn ask_tracer(
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
    pub(super) fn settled(mut self, pid: Pid, state: FrozenThread) -> Result<Seen, FreezerError> {
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

    pub(super) fn thread(
        &self,
        pid: Pid,
        status: &Status,
        kept: &Kept,
    ) -> Result<Thread, FreezerError> {
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
