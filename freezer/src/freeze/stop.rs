//! Seizing threads, and waiting until they stop.

use super::calls::{self, Repeated};
use super::sleepers::{self, Awake, Sleeper};
use super::{Frozen, FrozenThread, STOP_WITHIN, compat, position, traced, vfork};
use crate::{FreezerError, capture, proc};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use sys::ptrace::options::{SUSPEND_SECCOMP, TRACESYSGOOD};
use sys::regs::Regs;
use sys::wait::{self, Status};
use sys::{Errno, Pid, Tid, ptrace};

/// How long everybody may take before the slow ones are looked at more closely.
const SOON: Duration = Duration::from_millis(50);

/// A child that has not let go of its vfork parent by then is stopped instead of the parent.
const VFORK_LASTS: Duration = Duration::from_millis(100);

/// Seizes the threads of one process that are not stopped yet and asks them to stop; adds them to
/// `started` unless they have stopped already. `root` makes it an error when the process is gone. True when
/// there was one.
pub(super) fn begin(
    frozen: &mut Frozen,
    pid: Pid,
    root: bool,
    started: &mut Vec<(Pid, Tid)>,
) -> Result<bool, FreezerError> {
    let stat = match proc::Stat::read(pid, "stat") {
        Ok(stat) => stat,
        Err(e) if root => return Err(e),
        Err(_) => return Ok(false),
    };
    if may_let_go(frozen, pid) {
        std::thread::sleep(Duration::from_millis(1));
        return Ok(true);
    }
    let Ok(tids) = proc::threads(pid) else {
        return Ok(false);
    };
    let leader_ended = matches!(stat.state(), 'Z' | 'X');
    if leader_ended && tids.iter().all(|tid| *tid == pid.leader()) {
        frozen.release(pid);
        frozen.zombies.push(pid);
        return Ok(false);
    }
    if leader_ended {
        frozen.process(pid).remove(&pid.leader());
    }
    let new = unknown(frozen, pid, tids, leader_ended);
    let looked = sleepers::look_at(&frozen.clocks, pid, new.iter().copied());
    let others = new.iter().filter(|tid| !looked.contains_key(*tid));
    let awake = sleepers::look_at_awake(&frozen.clocks, others.copied());
    let waiting = waiting_in_vfork(frozen, pid, &looked);
    let new: Vec<Tid> = new
        .into_iter()
        .filter(|tid| !waiting.contains_key(tid))
        .collect();
    let mut seized = seize_all(pid, &new, |tid| looked.contains_key(&tid));
    let asked = ask(frozen, pid, &new, (&looked, &awake), &mut seized, started);
    if asked.is_err() {
        // Who was seized only is to be let go as well.
        for tid in seized {
            if ptrace::interrupt(tid).is_ok() {
                let thread = FrozenThread::looked_at(looked.get(&tid));
                frozen.process(pid).insert(tid, thread);
            }
        }
    }
    let mut news = asked? || !waiting.is_empty();
    frozen.process(pid).extend(waiting);
    if leader_ended && frozen.process(pid).is_empty() {
        news = true;
        others_are_ending(frozen, pid)?;
    }
    frozen.processes.retain(|(_, threads)| !threads.is_empty());
    Ok(news)
}

/// Threads that wait in vfork(2). They cannot run before their child does, which is stopped, and are not seized: as long
/// as a parent is traced the end of a child is told to it even if that is ignored, and another thread would be woken by
/// it.
fn waiting_in_vfork(
    frozen: &Frozen,
    pid: Pid,
    looked: &BTreeMap<Tid, Sleeper>,
) -> BTreeMap<Tid, FrozenThread> {
    let mut found = BTreeMap::new();
    for (tid, sleeper) in looked {
        if !vfork::is_one(sleeper.nr) || frozen.done_with_vfork.contains(tid) {
            continue;
        }
        let child = vfork::child_of(pid, *tid);
        // What is not carried may be over in a moment.
        let child = child.filter(|_| matches!(capture::vfork_obstacle(pid, *tid), Ok(None)));
        if child.is_some() {
            let mut thread = FrozenThread::looked_at(Some(sleeper));
            thread.in_vfork = child;
            thread.free_since = Some(Instant::now());
            found.insert(*tid, thread);
        }
    }
    found
}

/// Whether a process is the child of a thread that waits for it in vfork(2), and may let it go on in a moment.
fn may_let_go(frozen: &Frozen, child: Pid) -> bool {
    let waits = |(pid, threads): &(Pid, BTreeMap<Tid, FrozenThread>)| {
        threads.iter().any(|(tid, thread)| {
            let since = thread.free_since.filter(|_| thread.in_vfork == Some(child));
            since.is_some_and(|since| since.elapsed() < VFORK_LASTS) && vfork::waits(*pid, *tid)
        })
    };
    frozen.processes.iter().any(waits)
}

/// Forgets those that were not seized as they waited in vfork(2), and do so no more. True when there was one.
pub(super) fn forget_done_with_vfork(frozen: &mut Frozen) -> bool {
    let over = |pid: Pid, tid: Tid, thread: &FrozenThread| {
        thread.free_since.is_some() && vfork::child_of(pid, tid) != thread.in_vfork
    };
    let all = frozen.processes.iter();
    let gone = all.flat_map(|(pid, threads)| {
        let over = threads
            .iter()
            .filter(|(tid, thread)| over(*pid, **tid, thread));
        over.map(|(tid, _)| *tid)
    });
    let gone: BTreeSet<Tid> = gone.collect();
    for (_, threads) in &mut frozen.processes {
        threads.retain(|tid, _| !gone.contains(tid));
    }
    frozen.processes.retain(|(_, threads)| !threads.is_empty());
    let found = !gone.is_empty();
    frozen.done_with_vfork.extend(gone);
    found
}

/// Asks the threads of one process to stop, of which some are seized. True when there was one.
fn ask(
    frozen: &mut Frozen,
    pid: Pid,
    new: &[Tid],
    (looked, awake): (&BTreeMap<Tid, Sleeper>, &BTreeMap<Tid, Awake>),
    seized: &mut BTreeSet<Tid>,
    started: &mut Vec<(Pid, Tid)>,
) -> Result<bool, FreezerError> {
    let mut news = false;
    for tid in new.iter().copied() {
        let sleeper = looked.get(&tid).copied();
        if sleeper.is_none() && proc::is_worker(pid, tid) {
            continue;
        }
        match meet(pid, tid, seized.remove(&tid))? {
            Met::Seized => {}
            Met::Gone => continue,
            Met::Ending => {
                // What its process is now is seen in the next round.
                news |= tid == pid.leader();
                continue;
            }
            Met::Traced(tracer) => {
                let thread = FrozenThread::traced_by(tracer);
                frozen.process(pid).insert(tid, thread);
                news = true;
                continue;
            }
        }
        let left = frozen.leaving.iter().position(|(_, left, _)| *left == tid);
        let left = left.map(|index| frozen.leaving.swap_remove(index).2);
        let mut thread = FrozenThread::looked_at(looked.get(&tid));
        // It may have stopped before it was looked at.
        let asleep = thread.asleep.or(left.and_then(|left| left.asleep));
        thread.asleep = asleep.or_else(|| Some(awake.get(&tid)?.asleep(tid)));
        frozen.process(pid).insert(tid, thread);
        news = true;
        started.push((pid, tid));
        // Should we die between the stop and the first repair of such a call, the thread sees EINTR: that time is
        // kept short.
        if sleeper.is_some_and(|sleeper| calls::is_interrupted_by_stops(sleeper.nr))
            && let Some(stop) = wait_until_stopped(tid, SOON)
        {
            record(frozen, pid, tid, stop)?;
            started.pop();
        }
    }
    Ok(news)
}

/// Threads that are not stopped yet, in the order in which they are to be.
fn unknown(frozen: &mut Frozen, pid: Pid, mut tids: Vec<Tid>, leader_ended: bool) -> Vec<Tid> {
    let known: BTreeSet<Tid> = frozen.process(pid).keys().copied().collect();
    let ended = |tid: Tid| leader_ended && tid == pid.leader();
    tids.retain(|tid| !known.contains(tid) && !ended(*tid));
    // As long as it runs, it takes the signals that come for the process.
    tids.sort_by_key(|tid| *tid == pid.leader());
    tids
}

/// Seizes threads of one process before any of them is asked to stop. Which it could.
///
/// The kernel drops a signal that is ignored unless it is for a traced thread (kernel/signal.c, sig_ignored); SIGCHLD
/// is for the thread that has the child. While that one is stopped, another one is woken: if it is traced, it stops
/// on its way, and otherwise its call would fail.
fn seize_all(pid: Pid, tids: &[Tid], is_known: impl Fn(Tid) -> bool) -> BTreeSet<Tid> {
    if tids.len() < 2 {
        return BTreeSet::new();
    }
    let ordinary = |tid: &Tid| is_known(*tid) || !proc::is_worker(pid, *tid);
    let all = tids.iter().copied().filter(ordinary);
    all.filter(|tid| ptrace::seize(*tid, TRACESYSGOOD).is_ok())
        .collect()
}

/// What came of seizing a thread.
enum Met {
    Seized,
    Gone,
    Ending,
    /// This one of another process has it already.
    Traced(Tid),
}

fn meet(pid: Pid, tid: Tid, is_seized: bool) -> Result<Met, FreezerError> {
    if is_seized && ptrace::interrupt(tid).is_ok() {
        return Ok(Met::Seized);
    }
    if is_seized {
        // It has just ended, which we hear of before its process does.
        let _ = wait::wait_for_at_most(tid, SOON);
    }
    match seize(pid, tid) {
        Ok(()) => Ok(Met::Seized),
        Err(FreezerError::Seize {
            errno: Errno::ESRCH,
            ..
        }) => Ok(Met::Gone),
        Err(e) if has_ended(pid, tid) => {
            log::debug!("{e}: it has just ended");
            Ok(Met::Ending)
        }
        Err(e) => traced::tracer_of(pid, tid).map(Met::Traced).ok_or(e),
    }
}

/// The leader has ended and no other thread could be stopped: they will be gone in a moment, unless
/// somebody who traces them does not wait for them.
fn others_are_ending(frozen: &Frozen, pid: Pid) -> Result<(), FreezerError> {
    if frozen.begun.elapsed() > STOP_WITHIN {
        let why =
            "all its threads have ended, but somebody who traces them has not waited for them";
        return Err(FreezerError::refuse(pid, "thread", why));
    }
    std::thread::sleep(Duration::from_millis(1));
    Ok(())
}

/// A thread that is ending cannot be seized (EPERM).
fn has_ended(pid: Pid, tid: Tid) -> bool {
    proc::Stat::read(pid, &format!("task/{tid}/stat"))
        .map_or(true, |stat| matches!(stat.state(), 'Z' | 'X'))
}

fn seize(pid: Pid, tid: Tid) -> Result<(), FreezerError> {
    let failed = |errno| {
        let hint = match errno {
            Errno::EPERM => ": is another tracer attached to it, or are privileges missing?",
            _ => "",
        };
        FreezerError::Seize {
            pid,
            tid,
            errno,
            hint,
        }
    };
    ptrace::seize(tid, TRACESYSGOOD)
        .or_else(|errno| match errno {
            // It was let go and has not stopped since.
            Errno::EPERM if is_held(pid, tid) => Ok(()),
            errno => Err(errno),
        })
        .map_err(failed)?;
    ptrace::interrupt(tid).map_err(failed)
}

/// Filters must not see the calls made inside, but all that the thread makes itself until it has stopped. Where the
/// kernel cannot suspend them, `check` has already refused processes that have any.
fn suspend_filters(tid: Tid) {
    if let Err(why) = ptrace::set_options(tid, SUSPEND_SECCOMP | TRACESYSGOOD) {
        log::debug!("thread {tid}: its filters cannot be suspended: {why}");
    }
}

/// Whether a thread is traced by this one.
fn is_held(pid: Pid, tid: Tid) -> bool {
    let status = proc::Status::read(pid, &format!("task/{tid}/status"));
    let tracer = status
        .ok()
        .and_then(|status| status.value("TracerPid")?.parse().ok());
    tracer == Some(nix::unistd::gettid().as_raw())
}

/// Waits until all of `started` have stopped or ended.
pub(super) fn finish(frozen: &mut Frozen, started: &[(Pid, Tid)]) -> Result<(), FreezerError> {
    let begun = Instant::now();
    let mut slow = Vec::new();
    for &(pid, tid) in started {
        let left = SOON.saturating_sub(begun.elapsed());
        match wait_until_stopped(tid, left) {
            Some(stop) => record(frozen, pid, tid, stop)?,
            None => slow.push((pid, tid)),
        }
    }
    while !slow.is_empty() {
        if begun.elapsed() > VFORK_LASTS {
            slow.retain(|(pid, tid)| !note_vfork(frozen, *pid, *tid));
        }
        frozen.see_off();
        // A vfork parent stops once its child has let go, so the child must run.
        for (pid, tid) in &slow {
            if state(*pid, *tid) == 'D' {
                for child in proc::children(*pid).unwrap_or_default() {
                    frozen.release(child);
                }
            }
        }
        for (pid, tid) in core::mem::take(&mut slow) {
            match wait_until_stopped(tid, SOON) {
                Some(stop) => record(frozen, pid, tid, stop)?,
                // A leader is not reported before all others have ended.
                None if has_ended(pid, tid) => record(frozen, pid, tid, Stop::Gone)?,
                // Its process may just have been let go.
                None if frozen.process(pid).contains_key(&tid) => slow.push((pid, tid)),
                None => {}
            }
        }
        if let Some((pid, tid)) = slow.first()
            && begun.elapsed() > STOP_WITHIN
        {
            return Err(wont_stop(*pid, *tid));
        }
    }
    Ok(())
}

/// Whether a thread waits in vfork(2), so that its child is to be stopped in its place.
fn note_vfork(frozen: &mut Frozen, pid: Pid, tid: Tid) -> bool {
    let child = vfork::child_of(pid, tid);
    // What is not carried may be over in a moment.
    let child = child.filter(|_| matches!(capture::vfork_obstacle(pid, tid), Ok(None)));
    let Some(thread) = frozen.process(pid).get_mut(&tid) else {
        return false;
    };
    thread.in_vfork = child;
    child.is_some()
}

/// Those whose child let go before it was stopped: they are about to stop themselves.
pub(super) fn no_longer_in_vfork(frozen: &mut Frozen) -> Vec<(Pid, Tid)> {
    let mut found = Vec::new();
    for (pid, threads) in &mut frozen.processes {
        for (tid, thread) in threads {
            if thread.in_vfork.is_some()
                && thread.free_since.is_none()
                && vfork::child_of(*pid, *tid) != thread.in_vfork
            {
                thread.in_vfork = None;
                found.push((*pid, *tid));
            }
        }
    }
    found
}

/// Notes how a thread has stopped, and moves it to where it can be described.
fn record(frozen: &mut Frozen, pid: Pid, tid: Tid, stop: Stop) -> Result<(), FreezerError> {
    let rings = frozen.rings;
    let threads = frozen.process(pid);
    if let Stop::Gone = stop {
        threads.remove(&tid);
    }
    let Some(thread) = threads.get_mut(&tid) else {
        return Ok(());
    };
    thread.recorded = true;
    let Some(regs) = cut_off(pid, tid, stop, thread)? else {
        return Ok(());
    };
    let repeated = match position::settle(pid, tid, regs, thread, rings) {
        // Another one of its process has ended all of them: the next round sees that.
        Err(error) if error.is_of_ended() => return Ok(()),
        repeated => repeated?,
    };
    suspend_filters(tid);
    if let Some(call) = repeated {
        call.repeat()?;
        frozen.repeating.insert(tid, call);
    }
    Ok(())
}

/// The call that a thread repeats which is let go right after it has stopped, so that it does not hear of the stop.
pub(super) fn only_passing(
    pid: Pid,
    tid: Tid,
    stop: Stop,
    thread: &mut FrozenThread,
) -> Result<Option<Repeated>, FreezerError> {
    match cut_off(pid, tid, stop, thread)? {
        Some(regs) => Repeated::find(pid, tid, &regs, *thread),
        None => Ok(None),
    }
}

/// Notes what a thread that has stopped did, and has it do that anew should we die. None when there is no more to do.
fn cut_off(
    pid: Pid,
    tid: Tid,
    stop: Stop,
    thread: &mut FrozenThread,
) -> Result<Option<Regs>, FreezerError> {
    match stop {
        Stop::Group(signal) => thread.group_stop = Some(signal),
        Stop::Trap => {}
        Stop::Gone => return Ok(None),
    }
    let Some(regs) = position::stopped_with(pid, tid)? else {
        return Ok(None);
    };
    if let Some(waits) = compat::go_on(pid, tid, &regs)? {
        thread.in_compat_wait = waits;
        suspend_filters(tid);
        return Ok(None);
    }
    if thread.group_stop.is_none() {
        calls::begin_again(tid, &regs);
    }
    let sleep = thread.asleep.map(|asleep| asleep.of_stopped(pid, tid));
    let sleep = sleep.unwrap_or_default();
    thread.asleep_since_ns = sleep.since_ns;
    thread.ends_ns = sleep.ends_ns;
    thread.moved_to = sleep.moved_to;
    Ok(Some(regs))
}

fn state(pid: Pid, tid: Tid) -> char {
    proc::Stat::read(pid, &format!("task/{tid}/stat")).map_or('?', |stat| stat.state())
}

fn wont_stop(pid: Pid, tid: Tid) -> FreezerError {
    let state = state(pid, tid);
    let call = proc::read_text(pid, &format!("task/{tid}/syscall")).unwrap_or_default();
    let children = proc::children(pid).unwrap_or_default();
    let hint = match call.split_ascii_whitespace().next() {
        // clone, vfork, clone3
        Some("56" | "58" | "435") if state == 'D' => {
            let list: Vec<_> = children.iter().map(ToString::to_string).collect();
            format!(
                ": it waits in vfork(2) until its child ({}) ends or runs another program",
                list.join(", ")
            )
        }
        Some(call) if state == 'D' => format!(": system call {call} cannot be interrupted"),
        _ => String::new(),
    };
    FreezerError::WontStop {
        pid,
        tid,
        seconds: STOP_WITHIN.as_secs(),
        state,
        hint,
    }
}

pub(super) enum Stop {
    Trap,
    Group(i32),
    Gone,
}

/// None when it did not stop in time.
pub(super) fn wait_until_stopped(tid: Tid, limit: Duration) -> Option<Stop> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let status = match wait::wait_for_at_most(tid, left) {
            Ok(status) => status?,
            Err(_) => return Some(Stop::Gone),
        };
        match status {
            Status::Trap => return Some(Stop::Trap),
            Status::GroupStop(signal) => return Some(Stop::Group(signal)),
            Status::Exited(_) | Status::Killed(_) => return Some(Stop::Gone),
            // A signal on its way: let it take effect; the stop asked for comes right behind.
            Status::Signal(signal) => {
                let _ = ptrace::cont(tid, signal);
            }
            Status::Event(_) | Status::Syscall | Status::Continued => {
                let _ = ptrace::cont(tid, 0);
            }
        }
    }
}
