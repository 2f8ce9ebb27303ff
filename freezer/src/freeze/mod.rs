//! Stopping every thread of processes, and letting go again.
//!
//! All threads are seized and asked to stop first and waited for afterwards, in rounds, until a
//! round finds nobody new. A thread is stopped where it can be described: not inside the vdso,
//! not inside a restartable sequence ([`mod@position`]).

mod awaited;
mod barred;
mod calls;
pub(crate) mod compat;
pub(crate) mod held;
mod moved;
pub(crate) mod position;
pub(crate) mod rest;
pub(crate) mod ring_offsets;
mod run_on;
mod scope;
mod sleepers;
mod stop;
pub(crate) mod traced;
mod turns;
mod uring;
pub(crate) mod vfork;

use crate::held_groups::{self, LetGo};
use crate::{FreezerError, capture, proc};
use calls::Repeated;
pub(crate) use calls::USED_BELOW_STACK;
use persist_mem::manifest::Limit;
use persist_mem::rings::Layout;
use scope::Scope;
pub(crate) use sleepers::monotonic_ns;
use sleepers::{Asleep, SchedulerClocks, Sleeper};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};
use stop::Stop;
use sys::first_taker::{Leader, wait_for_all};
use sys::urgent::Urgent;
use sys::{Pid, Tid, ptrace, wait};
pub use traced::tracer_of;

/// How long a thread may take to stop. Longer waits are uninterruptible sleeps, or a vfork parent
/// whose child does not let go.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How long those may take that are let go at the end; our own end detaches everybody.
const SOON: Duration = Duration::from_secs(1);

/// A stopped thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrozenThread {
    /// The signal that had stopped its process before (job control).
    pub group_stop: Option<i32>,
    /// CLOCK_MONOTONIC in nanoseconds when it went to sleep, or when it was in the call that it was stopped in at the
    /// latest; None when its sleep has no relative time-out, or the kernel does not tell (`/proc/PID/task/TID/sched`).
    pub asleep_since_ns: Option<u64>,
    /// The sleep it was in when it was looked at last before it was stopped.
    asleep: Option<Asleep>,
    /// CLOCK_MONOTONIC in nanoseconds when a timer would have ended its sleep, where that could be read.
    ends_ns: Option<u64>,
    /// The futex it waited at when that is another one than its call names.
    moved_to: Option<u64>,
    /// The child it waits for in vfork(2): it is not stopped, and cannot run before that one does.
    pub in_vfork: Option<Pid>,
    /// When it was found to wait so, if it was not seized then.
    free_since: Option<Instant>,
    /// The thread of another process that traces it: it is in one of that one's stops.
    pub traced_by: Option<Tid>,
    /// It slept in a call whose rest is to be read from the kernel's memory.
    pub rest_is_kept: bool,
    /// It waits for a time in a 32-bit call.
    pub in_compat_wait: bool,
    /// When it began to wait in its call for what others may wait for as well, where that is known: nanoseconds by a
    /// clock of the scheduler.
    pub waits_since_ns: Option<u64>,
    /// It has been seen to stop.
    recorded: bool,
}

impl FrozenThread {
    /// One that is to stop, in the sleep that it was in when it was looked at.
    fn looked_at(sleeper: Option<&Sleeper>) -> FrozenThread {
        FrozenThread {
            asleep: sleeper.and_then(|sleeper| sleeper.asleep),
            rest_is_kept: sleeper.is_some_and(|sleeper| sleeper.rest_is_kept),
            waits_since_ns: sleeper.and_then(|sleeper| sleeper.waits_since),
            ..FrozenThread::default()
        }
    }

    /// It has come to another call than it slept in, if any, by CLOCK_MONOTONIC in nanoseconds.
    fn call_has_begun(&mut self, by: u64) {
        self.asleep_since_ns = Some(by);
        self.ends_ns = None;
        self.moved_to = None;
        self.waits_since_ns = None;
    }

    /// One in a stop of its tracer.
    fn traced_by(tracer: Tid) -> FrozenThread {
        FrozenThread {
            traced_by: Some(tracer),
            rest_is_kept: true,
            ..FrozenThread::default()
        }
    }

    /// Whether it runs when it is let go.
    fn goes_on(&self) -> bool {
        self.group_stop.is_none() && self.in_vfork.is_none() && self.traced_by.is_none()
    }
}

/// Processes whose threads are all stopped. They go on when this is dropped, also when the
/// tracer ends in any way: the kernel detaches them then.
#[derive(Debug)]
pub struct Frozen {
    processes: Vec<(Pid, BTreeMap<Tid, FrozenThread>)>,
    zombies: Vec<Pid>,
    /// Those that have children.
    parents: BTreeSet<Pid>,
    clocks: SchedulerClocks,
    /// Calls that threads repeat.
    repeating: BTreeMap<Tid, Repeated>,
    begun: Instant,
    /// Groups that held some of them.
    let_go: LetGo,
    /// Threads that were let go before they had stopped: they are detached when they have, or held again.
    leaving: Vec<(Pid, Tid, FrozenThread)>,
    /// Threads that waited in vfork(2) when they were looked at, and went on.
    done_with_vfork: BTreeSet<Tid>,
    /// How this kernel lays out rings of io_uring, if the other one does that otherwise.
    rings: Option<Layout>,
}

impl Frozen {
    /// Live processes, parents before children.
    pub fn pids(&self) -> impl Iterator<Item = Pid> + '_ {
        self.processes.iter().map(|(pid, _)| *pid)
    }

    /// The threads of all of them.
    #[must_use]
    pub fn tids(&self) -> Vec<Tid> {
        let threads = self.processes.iter().flat_map(|(_, threads)| threads);
        threads.map(|(tid, _)| *tid).collect()
    }

    /// Ended processes that nobody has waited for.
    #[must_use]
    pub fn zombies(&self) -> &[Pid] {
        &self.zombies
    }

    /// The threads of one process, the leader first, if it lives.
    #[must_use]
    pub fn threads(&self, pid: Pid) -> Vec<(Tid, FrozenThread)> {
        let mut threads: Vec<_> = self
            .processes
            .iter()
            .filter(|(found, _)| *found == pid)
            .flat_map(|(_, threads)| threads.iter().map(|(tid, thread)| (*tid, *thread)))
            .collect();
        threads.sort_by_key(|(tid, _)| (*tid != pid.leader(), *tid));
        threads
    }

    /// The thread that answers for a process: its leader, unless that has ended or waits in vfork(2).
    pub(crate) fn first(&self, pid: Pid) -> Result<Tid, FreezerError> {
        let threads = self.threads(pid);
        let mut answering = threads.iter().filter(|(_, it)| it.in_vfork.is_none());
        let first = answering.next().or(threads.first()).map(|(tid, _)| *tid);
        first.ok_or_else(|| FreezerError::refuse(pid, "threads", "it has none"))
    }

    /// Whether a control group holds its threads when they go on.
    pub(crate) fn is_held_by(&self, group: &Path) -> bool {
        self.let_go.has(group)
    }

    /// Threads of a process that wait in vfork(2), the leader first, and for whom.
    pub(crate) fn in_vfork(&self, pid: Pid) -> Vec<(Tid, Pid)> {
        let threads = self.threads(pid).into_iter();
        let waiting = threads.filter_map(|(tid, thread)| Some((tid, thread.in_vfork?)));
        waiting.collect()
    }

    /// Whether no thread of a process can be asked anything, since all wait in vfork(2).
    pub(crate) fn all_in_vfork(&self, pid: Pid) -> bool {
        let threads = self.threads(pid);
        threads.iter().all(|(_, thread)| thread.in_vfork.is_some())
    }

    /// The thread that traces those of a process.
    pub(crate) fn traced_by(&self, pid: Pid) -> Option<Tid> {
        let threads = self.threads(pid);
        threads.iter().find_map(|(_, thread)| thread.traced_by)
    }

    /// What a thread waits for on a socket with a time-out: descriptor, whether it sends, and the
    /// nanoseconds that remain.
    pub(crate) fn socket_wait(&self, tid: Tid) -> Option<(i32, bool, u64)> {
        self.repeating.get(&tid)?.socket_wait()
    }

    /// How long the call that a thread makes again waits, as its argument says.
    pub(crate) fn limit(&self, tid: Tid) -> Option<Limit> {
        self.repeating.get(&tid)?.limit()
    }

    /// Makes sure that everybody still stands where they were described: a parent that waits in vfork(2) is not held, and
    /// goes on when somebody else ends its child.
    ///
    /// # Errors
    /// [`FreezerError::Refused`] when one has gone on.
    pub fn stands(&self) -> Result<(), FreezerError> {
        for (pid, threads) in &self.processes {
            for (tid, thread) in threads {
                let is_free = thread.free_since.is_some();
                if is_free && vfork::child_of(*pid, *tid) != thread.in_vfork {
                    let why = "its child of vfork(2) has been ended by somebody else meanwhile";
                    return Err(FreezerError::refuse(*pid, format!("thread {tid}"), why));
                }
            }
        }
        Ok(())
    }

    /// Ends every process (SIGKILL), children first, instead of letting it go on.
    pub fn kill(mut self) {
        self.let_go.hold_again();
        let processes = core::mem::take(&mut self.processes);
        proc::forget_stopped(processes.iter().map(|(pid, _)| *pid));
        // Who waits for a child in vfork(2), and is not seized, must not see its end.
        let waits = |(_, threads): &&(Pid, BTreeMap<Tid, FrozenThread>)| {
            threads.values().any(|thread| thread.free_since.is_some())
        };
        let (waiting, others): (Vec<_>, Vec<_>) = processes.iter().partition(waits);
        for (pid, threads) in waiting.into_iter().chain(others.into_iter().rev()) {
            let ours = |thread: &FrozenThread| thread.traced_by.is_none();
            let traced = threads.iter().find(|(_, thread)| ours(thread));
            let tid = traced.map_or(pid.leader(), |(tid, _)| *tid);
            // A process that is gone already is what is wanted.
            let _ = sys::process::end_traced(*pid, tid);
        }
        for (pid, threads) in processes.iter().rev() {
            // The leader can be waited for when the others are gone.
            let rest = threads.keys().filter(|tid| **tid != pid.leader());
            for tid in rest.chain([&pid.leader()]) {
                let _ = wait::wait_for_at_most(*tid, STOP_WITHIN);
            }
            let is_another =
                |thread: &FrozenThread| thread.traced_by.is_some() || thread.free_since.is_some();
            if threads.values().any(is_another) {
                traced::wait_for_end(*pid, SOON);
            }
        }
    }

    fn process(&mut self, pid: Pid) -> &mut BTreeMap<Tid, FrozenThread> {
        let index = self.processes.iter().position(|(found, _)| *found == pid);
        let index = index.unwrap_or_else(|| {
            self.processes.push((pid, BTreeMap::new()));
            self.processes.len() - 1
        });
        &mut self.processes[index].1
    }

    /// Lets one process go on again.
    fn release(&mut self, pid: Pid) {
        let threads = core::mem::take(self.process(pid));
        self.let_all_go(vec![(pid, threads)]);
        self.processes.retain(|(found, _)| *found != pid);
    }

    /// Detaches the threads of processes, the leaders first: what came for a process meanwhile is its leader's.
    fn let_all_go(&mut self, mut processes: Vec<(Pid, BTreeMap<Tid, FrozenThread>)>) {
        let mut leaders = Vec::new();
        for (pid, threads) in &mut processes {
            let first = match self.parents.contains(pid) {
                true => before_leader(*pid, threads),
                false => BTreeSet::new(),
            };
            for tid in first {
                if let Some(parent) = threads.remove(&tid) {
                    self.let_go(*pid, tid, parent);
                }
            }
            let Some(leader) = threads.remove(&pid.leader()) else {
                continue;
            };
            let other = threads.keys().next().filter(|_| leader.goes_on());
            leaders.extend(other.map(|other| Leader::of(pid.leader(), *other)));
            self.let_go(*pid, pid.leader(), leader);
        }
        wait_for_all(&leaders);
        for (pid, threads) in processes {
            for (tid, thread) in threads {
                self.let_go(pid, tid, thread);
            }
        }
    }

    /// Detaches a thread. One that has not stopped yet gets a moment, unless it waits for its child; one that has
    /// ended is reaped, so that its parent hears of it.
    fn let_go(&mut self, pid: Pid, tid: Tid, thread: FrozenThread) {
        if thread.traced_by.is_some() || thread.free_since.is_some() {
            return;
        }
        let soon = match thread.in_vfork {
            Some(_) => Duration::ZERO,
            None => Duration::from_millis(50),
        };
        if thread.recorded {
            self.detach(pid, tid, thread);
        } else if !self.has_passed(pid, tid, thread, soon) {
            self.leaving.push((pid, tid, thread));
        }
    }

    /// Detaches one that was asked to stop and has not been seen to. False when it has not stopped within `soon`.
    fn has_passed(&mut self, pid: Pid, tid: Tid, mut thread: FrozenThread, soon: Duration) -> bool {
        let Some(stop) = stop::wait_until_stopped(tid, soon) else {
            return false;
        };
        if let Stop::Gone = stop {
            return true;
        }
        match stop::only_passing(pid, tid, stop, &mut thread) {
            Ok(Some(call)) => {
                self.repeating.insert(tid, call);
            }
            Ok(None) => {}
            Err(why) => log::debug!("thread {tid} is let go as it was met: {why}"),
        }
        self.detach(pid, tid, thread);
        true
    }

    fn detach(&mut self, pid: Pid, tid: Tid, thread: FrozenThread) {
        let call = self.repeating.remove(&tid);
        // The time it was stopped has passed, too. A failure leaves it as it was at the stop.
        let wait = call.and_then(|call| {
            let _ = call.repeat();
            Some((call.pid(), call.begin_socket_wait()?))
        });
        if ptrace::detach(tid, 0).is_err() {
            let _ = wait::wait_for_at_most(tid, Duration::from_millis(50));
            if ptrace::detach(tid, 0).is_err() {
                self.leaving.push((pid, tid, thread));
            }
        }
        if let Some((pid, wait)) = wait {
            let _ = wait.end(pid, tid);
        }
    }

    /// Detaches those that have stopped after they were let go.
    fn see_off(&mut self) {
        for (pid, tid, thread) in core::mem::take(&mut self.leaving) {
            if !self.has_passed(pid, tid, thread, Duration::ZERO) {
                self.leaving.push((pid, tid, thread));
            }
        }
    }

    /// Puts parents before their children, whatever their numbers.
    fn sort(&mut self) {
        let parents: BTreeMap<Pid, Pid> = self
            .pids()
            .filter_map(|pid| Some((pid, proc::Stat::read(pid, "stat").ok()?.pid(4))))
            .collect();
        self.parents = parents.values().copied().collect();
        let depth = |pid: Pid| {
            let chain = core::iter::successors(Some(pid), |pid| parents.get(pid).copied());
            chain.take(parents.len() + 1).count()
        };
        self.processes
            .sort_by_cached_key(|(pid, _)| (depth(*pid), *pid));
    }
}

/// Threads that go on before their leader does: those with children. When one of these ends, that is told to a thread,
/// and as long as that is traced whoever is not would be woken by it, even if all of them ignore it. None when something
/// waits for the process that a handler is to have: that is the leader's.
fn before_leader(pid: Pid, threads: &BTreeMap<Tid, FrozenThread>) -> BTreeSet<Tid> {
    let others = threads
        .iter()
        .filter(|(tid, thread)| **tid != pid.leader() && thread.goes_on());
    let others = others.map(|(tid, _)| *tid);
    if !threads.contains_key(&pid.leader()) {
        return BTreeSet::new();
    }
    let caught = |status: proc::Status| status.mask("ShdPnd") & status.mask("SigCgt");
    match proc::Status::read(pid, "status").map(caught) {
        Ok(0) => proc::parents_among(pid, others),
        _ => BTreeSet::new(),
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.let_go.hold_again();
        proc::forget_stopped(self.pids());
        let mut processes = core::mem::take(&mut self.processes);
        self.begin_to_wait(&mut processes);
        self.let_all_go(processes);
        let begun = Instant::now();
        self.see_off();
        while !self.leaving.is_empty() && begun.elapsed() < SOON {
            std::thread::sleep(Duration::from_micros(200));
            self.see_off();
        }
    }
}

/// Stops every thread of `root` and its descendants.
///
/// # Errors
/// When a thread cannot be traced or does not stop. Everything stopped so far goes on then.
pub fn freeze(root: Pid) -> Result<Frozen, FreezerError> {
    freeze_scope(&Scope::Tree(root), None)
}

/// Stops every thread of every process there is in this PID namespace, but for kernel threads,
/// this process and those of `skip`. `rings`: how this kernel lays out rings of io_uring, if the one that they are to go
/// on with does that otherwise.
///
/// # Errors
/// As [`freeze`].
pub fn freeze_all(skip: &[Pid], rings: Option<Layout>) -> Result<Frozen, FreezerError> {
    freeze_scope(&Scope::All { skip }, rings)
}

fn freeze_scope(scope: &Scope<'_>, rings: Option<Layout>) -> Result<Frozen, FreezerError> {
    // Before anything stands still: it takes a moment.
    crate::kernel::prepare();
    capture::mappings::prepare();
    let clocks = SchedulerClocks::measure();
    // Whoever is stopped waits for us, and one whose call is not repaired yet depends on our life.
    let _urgent = Urgent::begin();
    let mut frozen = Frozen {
        processes: Vec::new(),
        zombies: Vec::new(),
        parents: BTreeSet::new(),
        clocks,
        repeating: BTreeMap::new(),
        begun: Instant::now(),
        let_go: LetGo::default(),
        leaving: Vec::new(),
        done_with_vfork: BTreeSet::new(),
        rings,
    };
    // New threads and children appear as long as one of them runs; a round without news ends it.
    loop {
        let (mut started, mut news) = (Vec::new(), false);
        // Whoever was one when its parent still ran may be gone.
        frozen.zombies.clear();
        for pid in scope.pids()? {
            news |= stop::begin(&mut frozen, pid, scope.must_exist(pid), &mut started)?;
        }
        if !news {
            if stop::forget_done_with_vfork(&mut frozen) {
                continue;
            }
            started = stop::no_longer_in_vfork(&mut frozen);
            if started.is_empty() {
                if !traced::settle(&mut frozen)? {
                    continue;
                }
                frozen.let_go = held_groups::let_go(&frozen)?;
                frozen.sort();
                let first = |pid| Some((pid, frozen.first(pid).ok()?));
                proc::note_stopped(frozen.pids().filter_map(first));
                return Ok(frozen);
            }
        }
        stop::finish(&mut frozen, &started)?;
        frozen.processes.retain(|(_, threads)| !threads.is_empty());
    }
}
