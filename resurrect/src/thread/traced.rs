//! Processes that one of the others traces (ptrace(2)).
//!
//! A thread has one tracer: as long as this process builds it, that is this one. When it is complete it is let go
//! to wait where nothing happens to it, and its tracer, from inside, attaches to it and brings it to the stop it
//! was in. From then on nobody else can do anything to it.

use super::registers::{own_gate, remove_scratch, to_go_on, xstate};
use super::{in_order, sleeps};
use crate::ResurrectError;
use crate::restore::Restore;
use persist_mem::manifest::{Backing, Live, Seccomp, Thread, Traced, TracedStop, TracedThread};
use std::collections::{BTreeMap, BTreeSet};
use sys::batch::Batch;
use sys::by_tracer;
use sys::regs::{NO_SYSCALL, Regs};
use sys::remainder;
use sys::tracee::Tracee;
use sys::{Errno, Pid, Tid, ptrace};

const PAUSE: u64 = 34;
const TGKILL: i64 = 234;
const EVERY: u64 = u64::MAX;
const SIGCHLD: i32 = 17;
const SIGSTOP: i32 = 19;
/// `PTRACE_O_EXITKILL`
const EXITKILL: u64 = 1 << 20;
const DOING: &str = "bringing a tracee to its stop";

/// Gives every traced process to its tracer.
pub(crate) fn hand_over(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let elapsed = restore.elapsed();
    let returned = sleeps::go_on(restore, elapsed, |live| live.traced.is_some())?;
    let mut tracers = BTreeSet::new();
    for (pid, live) in restore.lives() {
        let Some(traced) = &live.traced else {
            continue;
        };
        let stopped = park_all(restore, (pid, live), traced, &returned)?;
        // A group stop stops all, and they are to have their tracer by then.
        let attaching = stopped.iter().map(Stopped::attached);
        let bringing = stopped.iter().enumerate();
        let bringing = bringing.map(|(place, tracee)| tracee.brought(place == 0));
        for batch in attaching.chain(bringing) {
            let (by, tracer) = tracer(restore, pid, traced.tracer)?;
            let doing = ResurrectError::tracee(by, DOING);
            tracer.run(&batch).map(drop).map_err(doing)?;
            tracers.insert((by, traced.tracer));
        }
    }
    tracers
        .into_iter()
        .try_for_each(|(by, tid)| forget_stops(restore, by, tid))
}

/// Completes the threads of a process and has them wait for their tracer.
fn park_all<'a>(
    restore: &mut Restore<'_>,
    (pid, live): (Pid, &Live),
    traced: &'a Traced,
    returned: &BTreeMap<Tid, u64>,
) -> Result<Vec<Stopped<'a>>, ResurrectError> {
    let passed = u64::try_from(restore.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let task = restore.task(pid)?;
    let gate = own_gate(&task.first, live, &mut None);
    let gate = gate.ok_or_else(|| ResurrectError::Impossible {
        pid,
        why: "no system call instruction is mapped in it".into(),
    })?;
    remove_scratch(pid, &mut task.first, live, &mut None)?;
    let confined = |thread: &Thread| thread.seccomp != Seccomp::Off;
    let endless = match live.threads.iter().any(confined) {
        true => Some(endless(pid, &task.first, live)?),
        false => None,
    };
    let how = |tid: Tid| {
        let place = live.threads.iter().position(|thread| thread.tid == tid)?;
        traced.threads.get(place)
    };
    let mut stopped = Vec::new();
    for (tracee, thread) in task.all().zip(in_order(&live.threads)) {
        let how = how(thread.tid).ok_or_else(|| ResurrectError::Impossible {
            pid,
            why: format!("nothing tells how its thread {} is traced", thread.tid),
        })?;
        let returned = returned.get(&thread.tid).copied();
        let mut regs = to_go_on(pid, tracee, thread, returned, passed)?;
        if returned.is_none() {
            regs.orig_rax = thread.regs.orig_rax;
        }
        xstate(pid, tracee, &thread.xstate)?;
        // Whatever call it made there its filters would see.
        let place = endless.filter(|_| confined(thread)).unwrap_or(gate);
        park(pid, tracee, &regs, place)?;
        stopped.push(Stopped {
            pid,
            tid: thread.tid,
            how,
            regs,
            gate,
            sigmask: thread.sigmask,
        });
    }
    task.handed_over = true;
    Ok(stopped)
}

/// A loop in the end of its vdso's image, where nobody looks.
fn endless(pid: Pid, first: &Tracee, live: &Live) -> Result<u64, ResurrectError> {
    let failed = || ResurrectError::call(pid, "having it wait without a call");
    let mut vmas = live.mm.vmas.iter();
    let vdso = vmas.find(|vma| vma.backing == Backing::Vdso);
    let image = vdso.map(|vma| {
        let len = usize::try_from(vma.len()).map_err(|_| Errno::ERANGE)?;
        first.mem().read_vec(vma.start, len)
    });
    let image = image.transpose().map_err(failed())?;
    let place = image.as_deref().and_then(remainder::place);
    let (Some(vdso), Some(at)) = (vdso, place) else {
        return Err(ResurrectError::Impossible {
            pid,
            why: "its vdso has no room for a loop in which it waits for its tracer".into(),
        });
    };
    let start = vdso.start + at as u64;
    let written = first.mem().write(start, remainder::code());
    written.map_err(failed())?;
    Ok(start + remainder::endless())
}

/// Lets it wait in pause(2) or, where there is no call, in a loop, with all signals blocked.
fn park(pid: Pid, tracee: &mut Tracee, regs: &Regs, gate: u64) -> Result<(), ResurrectError> {
    let parked = Regs {
        rip: gate,
        rax: PAUSE,
        orig_rax: NO_SYSCALL,
        ..*regs
    };
    let doing = "letting it wait for its tracer";
    tracee
        .set_regs(&parked)
        .and_then(|()| tracee.set_sigmask(EVERY))
        .map_err(ResurrectError::tracee(pid, doing))?;
    ptrace::detach(tracee.tid(), 0).map_err(ResurrectError::call(pid, doing))
}

/// The thread that traces `pid`, and whose it is.
fn tracer<'a>(
    restore: &'a mut Restore<'_>,
    pid: Pid,
    tid: Tid,
) -> Result<(Pid, &'a mut Tracee), ResurrectError> {
    let is_its = |live: &Live| live.threads.iter().position(|thread| thread.tid == tid);
    let mut lives = restore.lives();
    let found = lives.find_map(|(by, live)| Some((by, is_its(live)?)));
    let missing = || ResurrectError::Impossible {
        pid,
        why: format!("{tid}, which traces it, was not made"),
    };
    let (by, place) = found.ok_or_else(missing)?;
    let task = restore.task(by)?;
    let tracee = match place {
        0 => Some(&mut task.first),
        _ => task.threads.get_mut(&tid),
    };
    Ok((by, tracee.ok_or_else(missing)?))
}

/// Stops tell the tracer of themselves: it has nothing from them but what it had.
fn forget_stops(restore: &mut Restore<'_>, by: Pid, tid: Tid) -> Result<(), ResurrectError> {
    let mut lives = restore.lives();
    let waits =
        lives.any(|(pid, live)| pid == by && super::signals::queued(live).contains(&SIGCHLD));
    if waits {
        return Ok(());
    }
    let mut batch = Batch::new();
    by_tracer::forget_stops(&mut batch);
    let (by, tracer) = tracer(restore, by, tid)?;
    let doing = ResurrectError::tracee(by, DOING);
    tracer.run(&batch).map(drop).map_err(doing)
}

/// A tracee, and where it is to be.
struct Stopped<'a> {
    pid: Pid,
    tid: Tid,
    how: &'a TracedThread,
    regs: Regs,
    /// A `syscall` instruction of its own.
    gate: u64,
    sigmask: u64,
}

impl Stopped<'_> {
    /// Whether the stop by which its tracer attaches is the one it was in.
    fn is_attached_in_it(&self) -> bool {
        match self.how.stop {
            TracedStop::Interrupted => true,
            TracedStop::Signal(signal) => self.attaches_by(signal),
            TracedStop::Entry | TracedStop::Exit | TracedStop::Filter | TracedStop::Group(_) => {
                false
            }
        }
    }

    /// Whether the stop by which its tracer attaches is the one before this signal.
    fn attaches_by(&self, signal: i32) -> bool {
        signal == SIGSTOP && !self.how.seized
    }

    /// How its tracer attaches. The last stop is the one that it may not have been told of.
    fn attached(&self) -> Batch {
        let mut batch = Batch::new();
        let it = by_tracer::Tracee(self.tid);
        it.attach(&mut batch, self.how.seized);
        it.wait(&mut batch, self.how.unread && self.is_attached_in_it());
        it.set_options(&mut batch, self.how.options | EXITKILL);
        batch
    }

    /// What its tracer does then; `leads` is who stops its process.
    fn brought(&self, leads: bool) -> Batch {
        let mut batch = Batch::new();
        let it = by_tracer::Tracee(self.tid);
        let keep = self.how.unread;
        match self.how.stop {
            _ if self.is_attached_in_it() => {}
            TracedStop::Signal(signal) => self.come_to(&mut batch, signal, keep),
            TracedStop::Group(signal) => {
                if leads && !self.attaches_by(signal) {
                    self.come_to(&mut batch, signal, false);
                }
                // The others come to it by themselves.
                it.go_on_with(&mut batch, if leads { signal } else { 0 });
                it.wait(&mut batch, keep);
            }
            TracedStop::Entry | TracedStop::Filter => {
                let calling = Regs {
                    rip: self.regs.rip.wrapping_sub(2),
                    rax: self.regs.orig_rax,
                    orig_rax: NO_SYSCALL,
                    ..self.regs
                };
                it.set_regs(&mut batch, &calling);
                match self.how.makes_none {
                    true => it.go_on_to_none(&mut batch),
                    // Its filter asks behind the stop before the call.
                    false => it.go_on(&mut batch, self.how.stop == TracedStop::Entry),
                }
                it.wait(&mut batch, keep);
            }
            TracedStop::Exit => {
                let none = Regs {
                    rip: self.gate,
                    rax: NO_SYSCALL,
                    orig_rax: NO_SYSCALL,
                    ..self.regs
                };
                it.set_regs(&mut batch, &none);
                it.go_on_to_none(&mut batch);
                it.wait(&mut batch, false);
                it.go_on(&mut batch, true);
                it.wait(&mut batch, keep);
            }
            TracedStop::Interrupted => {}
        }
        it.set_regs(&mut batch, &self.regs);
        it.set_sigmask(&mut batch, self.sigmask);
        if !self.how.info.0.is_empty() {
            it.set_siginfo(&mut batch, &self.how.info.0);
        }
        if self.how.to_stop {
            self.send(&mut batch, SIGSTOP);
        }
        if let Some(points) = self.how.break_points {
            it.set_break_points(&mut batch, points);
        }
        it.set_options(&mut batch, self.how.options);
        if self.how.listens {
            it.listen(&mut batch);
        }
        batch
    }

    /// To the stop before a signal.
    fn come_to(&self, batch: &mut Batch, signal: i32, keep: bool) {
        let it = by_tracer::Tracee(self.tid);
        it.set_sigmask(batch, !(1 << (signal - 1)));
        self.send(batch, signal);
        it.go_on(batch, false);
        it.wait(batch, keep);
    }

    fn send(&self, batch: &mut Batch, signal: i32) {
        let args = [self.pid.0.into(), self.tid.0.into(), signal.into()];
        batch.call("sending a tracee its signal", TGKILL, args);
    }
}
