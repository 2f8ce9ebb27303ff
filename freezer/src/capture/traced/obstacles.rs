//! What stands in the way of carrying a traced process.

use super::super::{kept_memory, kept_timers, mappings};
use super::refuse;
use super::seen::Seen;
use super::stands::{AT_EVENT, Stands, are_at_events, look};
use crate::FreezerError;
use crate::files::sent;
use crate::freeze::traced::{stands_still, tracer_of};
use crate::freeze::{held, rest, vfork};
use crate::proc::{self, Stat, Status};
use core::cmp::Ordering;
use persist_mem::manifest::TracedStop;
use std::time::{Duration, Instant};
use sys::by_tracer::CallStop;
use sys::process::{KcmpKind, kcmp};
use sys::{Pid, Tid};

/// SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
const JOBS: core::ops::RangeInclusive<i32> = 18..=22;
/// `CAP_SYS_PTRACE`, to attach to anybody, and `CAP_KILL`, to send it the signal of its stop.
const ANYBODY: u64 = 1 << 19 | 1 << 5;
/// `SUID_DUMP_USER`: who has the same ids may attach.
const DUMPABLE: u8 = 1;
const SIGSTOP: i32 = 19;
const SIG_DFL: u64 = 0;
const TRACESYSGOOD: u64 = 1;
const MORE_WAIT: &str = "more signals of the kind of its stop wait for it";
const FORBIDDEN: &str = "its tracer might not be allowed to attach to it once more";
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// `PROT_EXEC`
const EXECUTABLE: u32 = 4;
/// How often one is looked at until it stands still.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
/// How long what is over in a moment, as a rule, is looked at.
const MOMENTS: Duration = Duration::from_millis(300);
const BETWEEN_MOMENTS: Duration = Duration::from_millis(3);

/// Why threads are not carried in the stops that they are in.
pub(super) fn of_stops<'a>(
    pid: Pid,
    threads: impl Iterator<Item = (&'a Seen, &'a Stands)> + Clone,
) -> Result<Option<String>, FreezerError> {
    let mut waiting = 0;
    let mut takes = false;
    for (seen, stands) in threads.clone() {
        let stop = stands.stop.map_err(|why| refuse(pid, why.into()))?;
        let status = Status::read(pid, &format!("task/{}/status", seen.tid))?;
        if let Some(why) = seen.obstacle(pid, (&status, stop), stands)? {
            return Ok(Some(why));
        }
        waiting |= seen.own_mask(&status) | status.mask("ShdPnd");
        let job = match stop {
            TracedStop::Signal(signal) => JOBS.contains(&signal),
            TracedStop::Group(_) => true,
            _ => false,
        };
        takes |= !stands.seized || seen.to_stop || job;
    }
    // Signals that stop and SIGCONT take each other away (kernel/signal.c, prepare_signal).
    let conflict = takes && JOBS.clone().any(|signal| waits(waiting, signal));
    Ok(conflict.then(|| MORE_WAIT.to_owned()))
}

/// Why a process is not carried whose threads are in a group stop: that stops them all, by the disposition that its
/// signal has then, and the parent hears of it.
pub(super) fn of_group_stop(
    (pid, tracer): (Pid, Tid),
    threads: &[Stands],
) -> Result<Option<&'static str>, FreezerError> {
    let signal = |one: &Stands| match one.stop {
        Ok(TracedStop::Group(signal)) => Some(signal),
        _ => None,
    };
    let mut signals = threads.iter().map(signal);
    let first = signals.next().flatten();
    if signals.any(|signal| signal != first) {
        return Ok(Some(
            "its process is stopped (job control), and some of its threads go on",
        ));
    }
    let (Some(signal), Some(stands)) = (first, threads.first()) else {
        return Ok(None);
    };
    // The process of a thread has its directory under the thread's number, too.
    let owner = Status::read(Pid(tracer.0), "status")?;
    let owner = owner.value("Tgid").and_then(|tgid| tgid.parse().ok());
    if owner != Some(Stat::read(pid, "stat")?.pid(4).0) {
        return Ok(Some(
            "its process is stopped (job control), and its parent is not its tracer",
        ));
    }
    let action = usize::try_from(signal - 1).ok();
    let action = action.and_then(|at| stands.kept.actions.get(at));
    let stops = signal == SIGSTOP || action.is_some_and(|action| action.handler == SIG_DFL);
    let why = "its process is stopped (job control) by a signal that would not stop it now";
    Ok((!stops).then_some(why))
}

fn waits(mask: u64, signal: i32) -> bool {
    mask >> (signal - 1) & 1 != 0
}

impl Seen {
    /// Why it is not carried in the stop it is in.
    fn obstacle(
        &self,
        pid: Pid,
        (status, stop): (&Status, TracedStop),
        stands: &Stands,
    ) -> Result<Option<String>, FreezerError> {
        let told = |why: &str| Ok(Some(why.to_owned()));
        let seized = stands.seized;
        let fits = match stop {
            // Without the option they are not told from others (kernel/ptrace.c, ptrace_get_syscall_info).
            TracedStop::Entry | TracedStop::Exit if stands.options & TRACESYSGOOD == 0 => {
                self.call == CallStop::None
            }
            TracedStop::Entry => self.call == CallStop::Entry,
            TracedStop::Exit => self.call == CallStop::Exit,
            TracedStop::Filter => self.call == CallStop::Other,
            TracedStop::Signal(_) | TracedStop::Interrupted | TracedStop::Group(_) => {
                self.call == CallStop::None
            }
        };
        let without = matches!(stop, TracedStop::Group(_)) && !seized;
        if !fits || self.info.is_empty() != without {
            return told("its stop is not understood");
        }
        if status.mask("SigBlk") != self.sigmask {
            return told("its signal mask is to be put back");
        }
        let waiting = self.own_mask(status) | status.mask("ShdPnd");
        if matches!(stop, TracedStop::Signal(signal) if waits(waiting, signal)) {
            return told(MORE_WAIT);
        }
        if matches!(stop, TracedStop::Entry | TracedStop::Filter) {
            let mem = proc::memory(pid).map_err(FreezerError::call(pid, "opening its memory"))?;
            let code = mem.read_vec(self.regs.rip.wrapping_sub(2), 2);
            if code.ok().as_deref() != Some(&SYSCALL) {
                return told("its system call is none of the 64-bit ones");
            }
        }
        if stop == TracedStop::Filter && self.regs.orig_rax.cast_signed() < 0 {
            return told("its tracer has taken away the call that a filter of it asks about");
        }
        Ok(None)
    }
}

/// Why a process that `tracer` traces is not carried, found without stopping it.
pub(crate) fn obstacle(pid: Pid, tracer: Tid) -> Result<Option<String>, FreezerError> {
    let told = |why: &str| Ok(Some(why.to_owned()));
    let threads = proc::threads(pid)?;
    if proc::representative(pid) != Some(pid.leader()) {
        return told("its first thread has ended");
    }
    if threads
        .iter()
        .any(|tid| tracer_of(pid, *tid) != Some(tracer))
    {
        return told("some of its threads are not traced, or by somebody else");
    }
    if let Some(why) = of_moments((pid, tracer), &threads)? {
        return told(why);
    }
    if !sent::needed(pid, pid.leader(), &threads).is_empty() {
        return told("a thread has descriptors of its own, which only it can hand over");
    }
    // The process of a thread has its directory under the thread's number, too.
    let its_tracer = Status::read(Pid(tracer.0), "status")?;
    if tracer_of(Pid(tracer.0), tracer).is_some() {
        return told("its tracer is traced itself");
    }
    if let Some(why) = kept_timers::obstacle(pid, pid.leader())? {
        return told(why);
    }
    if let Some(why) = kept_memory::obstacle(pid)? {
        return told(why);
    }
    let maps = mappings::of_stopped(pid, pid.leader())?;
    if !maps.iter().any(|map| map.prot() & EXECUTABLE != 0) {
        return told("it has unmapped all its code, by which it would be brought here");
    }
    for tid in &threads {
        if let Some(why) = of_thread((pid, *tid), &its_tracer)? {
            return told(why);
        }
    }
    if Status::read(pid, "status")?.mask("Seccomp") != 0 && !rest::has_room(pid) {
        return told(
            "it has seccomp filters, and its vdso no room for code that waits without a call",
        );
    }
    // ptrace(2), PTRACE_MODE_ATTACH_REALCREDS; that it is a child satisfies Yama.
    let anybody = its_tracer.mask("CapEff") & ANYBODY == ANYBODY;
    let stat = Stat::read(pid, "stat")?;
    if !anybody && (stat.pid(4) != Pid(tracer.0) || !is_like(pid, &threads, &its_tracer)?) {
        return told(FORBIDDEN);
    }
    let places: Vec<(Tid, u64)> = threads.iter().map(|tid| (*tid, 0)).collect();
    let all = match look(pid, &places) {
        Ok(all) => all,
        Err(why) => return Ok(Some(why.to_string())),
    };
    if !anybody && all.iter().any(|one| one.memory.dumpable != DUMPABLE) {
        return told(FORBIDDEN);
    }
    if threads.iter().all(|tid| stands_still(pid, *tid))
        && let Some(why) = of_group_stop((pid, tracer), &all)?
    {
        return told(why);
    }
    let why = |(one, (tid, _)): (&Stands, &(Tid, u64))| {
        let stops = || one.stop.err().filter(|_| stands_still(pid, *tid));
        one.obstacle.or_else(stops)
    };
    Ok(all.iter().zip(&places).find_map(why).map(str::to_owned))
}

/// What is in the way at one moment, and still after some looks.
fn of_moments(
    (pid, tracer): (Pid, Tid),
    threads: &[Tid],
) -> Result<Option<&'static str>, FreezerError> {
    let still = || threads.iter().all(|tid| stands_still(pid, *tid));
    let begun = Instant::now();
    loop {
        let found = match passing(pid)? {
            None if !still() => held::obstacle(pid, tracer)?,
            found => found,
        };
        if found.is_none() {
            return Ok(None);
        }
        if begun.elapsed() > MOMENTS {
            break;
        }
        std::thread::sleep(BETWEEN_MOMENTS);
    }
    match passing(pid)? {
        // It may stand still seldom, but for longer.
        None if stand_still(pid, threads) => Ok(None),
        None => held::obstacle(pid, tracer),
        found => Ok(found),
    }
}

/// What keeps a traced process from being carried and is over in a moment, as a rule: an event that its tracer is told
/// of, a vfork(2).
pub(crate) fn passing(pid: Pid) -> Result<Option<&'static str>, FreezerError> {
    let parent = Stat::read(pid, "stat")?.pid(4);
    let brothers = proc::children(parent).unwrap_or_default();
    let brothers = brothers.into_iter().filter(|other| *other != pid);
    let relatives = proc::children(pid)?.into_iter().chain([parent]);
    let mut relatives = relatives.chain(brothers);
    let shares = |other: Pid| {
        let same = kcmp(pid.leader(), other.leader(), KcmpKind::Vm, 0, 0);
        same.is_ok_and(Ordering::is_eq)
    };
    if relatives.any(shares) {
        return Ok(Some("others have its memory"));
    }
    let threads = proc::threads(pid)?;
    if threads.iter().any(|tid| vfork::waits(pid, *tid)) {
        return Ok(Some("it waits in vfork(2)"));
    }
    let still = threads.into_iter().filter(|tid| stands_still(pid, *tid));
    let still: Vec<Tid> = still.collect();
    match are_at_events(pid, &still) {
        Ok(at) if at.contains(&true) => Ok(Some(AT_EVENT)),
        Ok(_) => Ok(None),
        // What cannot be read is told where it is needed.
        Err(_) => Ok(None),
    }
}

/// Whether all threads stand still, or do so soon.
fn stand_still(pid: Pid, threads: &[Tid]) -> bool {
    (0..LOOKS).any(|look| {
        if look > 0 {
            std::thread::sleep(BETWEEN_LOOKS);
        }
        threads.iter().all(|tid| stands_still(pid, *tid))
    })
}

/// Whether all threads have the ids of their tracer, and no more capabilities.
fn is_like(pid: Pid, threads: &[Tid], tracer: &Status) -> Result<bool, FreezerError> {
    let ids = |of: &Status| (of.numbers("Uid"), of.numbers("Gid"));
    for tid in threads {
        let status = Status::read(pid, &format!("task/{tid}/status"))?;
        if ids(&status) != ids(tracer) || status.mask("CapPrm") & !tracer.mask("CapPrm") != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What of one thread is in the way, as `/proc` tells.
fn of_thread(
    (pid, tid): (Pid, Tid),
    its_tracer: &Status,
) -> Result<Option<&'static str>, FreezerError> {
    let status = Status::read(pid, &format!("task/{tid}/status"))?;
    for key in ["Speculation_Store_Bypass", "SpeculationIndirectBranch"] {
        if status.value(key) != its_tracer.value(key) {
            return Ok(Some("it speculates as its tracer does not"));
        }
    }
    let stat = Stat::read(pid, &format!("task/{tid}/stat"))?;
    let ordinary = stat.field(41) == 0;
    Ok((!ordinary).then_some("it has a scheduling policy"))
}
