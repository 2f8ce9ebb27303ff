//! Everybody goes on.
//!
//! Who waits in a call is let go first, and waits again before anybody goes on that runs: a program must not find that
//! somebody does not wait who did. Those that may wait for the same thing begin to in the order in which they once did.

mod turns;

use crate::ResurrectError;
use crate::process::cgroups::Held;
use crate::processor::OneProcessor;
use crate::restore::Restore;
use crate::task::Task;
use crate::thread::signals::number;
use crate::thread::waits::{self, Wait};
use persist_mem::manifest::Live;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use sys::asleep::{self, Asleep};
use sys::first_taker::{self, Leader, wait_for_all};
use sys::{Errno, Pid, Tid, process, ptrace};
use turns::Turn;

const SIGKILL: i32 = 9;
/// Who waits on a socket for less than this goes on last: until its time is over nobody else would.
const NEARLY_OVER: Duration = Duration::from_millis(60);

/// Rebuilt processes, stopped. When the value is dropped without a thaw they end with this process.
#[derive(Debug)]
pub struct World {
    tasks: BTreeMap<Pid, Task>,
    /// What stands for processes that are lost.
    lost: Vec<Task>,
    waits: Vec<Wait>,
    /// Threads that wait in their calls.
    turns: Vec<Turn>,
    /// Threads that go on before their leaders.
    parents: BTreeSet<Tid>,
    held: Held,
}

impl World {
    /// All of a restore that is done.
    pub(crate) fn of(restore: &mut Restore<'_>) -> Result<World, ResurrectError> {
        let waits = waits::find(restore)?;
        let turns = turns::find(restore)?;
        let lost = restore.take_lost();
        Ok(World {
            waits,
            turns,
            parents: parents(restore),
            tasks: core::mem::take(&mut restore.tasks),
            lost,
            held: core::mem::take(&mut restore.held),
        })
    }

    /// The id of a process as this process sees it.
    #[must_use]
    pub fn host_pid(&self, pid: Pid) -> Option<Pid> {
        self.tasks.get(&pid).map(Task::host_pid)
    }

    /// Lets every process go on.
    ///
    /// # Errors
    /// The first process that could not be let go; the others go on.
    pub fn thaw(self) -> Result<(), ResurrectError> {
        drop(self.held);
        let mut thaw = Thaw {
            left: BTreeMap::new(),
            waits: BTreeMap::new(),
            failed: None,
        };
        let (mut leaders, mut in_vfork) = (Vec::new(), Vec::new());
        let mut order = Vec::new();
        for (pid, task) in self.tasks {
            let mut task = task;
            in_vfork.extend(task.in_vfork.values().map(|thread| (pid, thread.tid())));
            let threads: Vec<Tid> = task.all().map(|thread| thread.tid()).collect();
            thaw.left.extend(threads.iter().map(|tid| (*tid, pid)));
            if let [leader, other, ..] = threads[..]
                && leader == task.first.tid()
            {
                leaders.push((leader, other));
            }
            order.push(threads);
        }
        thaw.waits = self
            .waits
            .into_iter()
            .map(|wait| (wait.tid(), wait))
            .collect();
        // The end of a child that one waits for is not told to others then.
        for (pid, tid) in in_vfork {
            thaw.detach(pid, tid);
        }
        for tid in self.parents {
            thaw.let_go(tid);
        }
        thaw.begin_to_wait(self.turns);
        thaw.go_on(&order, &leaders);
        for task in &self.lost {
            if let Err(errno) = process::kill(task.host_pid(), SIGKILL) {
                log::error!("ending what stands for a lost process: {errno}");
            }
        }
        thaw.failed.map_or(Ok(()), Err)
    }
}

/// A thaw that is under way.
struct Thaw {
    /// Threads that are to go on, and their processes.
    left: BTreeMap<Tid, Pid>,
    /// Those of them that wait on a socket with a time-out.
    waits: BTreeMap<Tid, Wait>,
    failed: Option<ResurrectError>,
}

impl Thaw {
    /// Lets a thread go that has not gone on yet, if it has no socket to wait for.
    fn let_go(&mut self, tid: Tid) {
        if self.waits.contains_key(&tid) {
            return;
        }
        if let Some(pid) = self.left.remove(&tid) {
            self.detach(pid, tid);
        }
    }

    fn detach(&mut self, pid: Pid, tid: Tid) {
        match ptrace::detach(tid, 0) {
            // One that goes on already has killed it: nothing else ends a stopped thread.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => {
                let error = ResurrectError::call(pid, "letting it go")(errno);
                self.failed.get_or_insert(error);
            }
        }
    }

    /// Lets a thread go that waits on a socket, for what remains of its time.
    fn wait_on(&mut self, wait: &Wait) {
        if let Some(pid) = self.left.remove(&wait.tid()) {
            wait.go_on(|| self.detach(pid, wait.tid()));
        }
    }

    /// Those that wait, each line in its order, until they do so again.
    fn begin_to_wait(&mut self, mut turns: Vec<Turn>) {
        turns.retain(|turn| {
            let idle = || first_taker::to_handle(turn.tid()) == Ok(0);
            self.left.contains_key(&turn.tid()) && idle()
        });
        let in_line = turns::sort(&mut turns);
        let end = Instant::now() + asleep::within(in_line.len());
        let mut others = Vec::new();
        // To be woken on another processor takes longer than to wait again.
        let here = (!in_line.is_empty()).then(OneProcessor::hold).flatten();
        for turn in &turns {
            let tid = turn.tid();
            let waits_in_line = in_line.contains(&tid);
            if let Some(wait) = self.waits.get(&tid) {
                if wait.left() >= NEARLY_OVER {
                    let wait = self.waits.remove(&tid);
                    wait.iter().for_each(|wait| self.wait_on(wait));
                }
                continue;
            }
            let seen = Asleep::of(turn.host(), tid);
            if !waits_in_line {
                self.let_go(tid);
                others.push(seen);
                continue;
            }
            let here = here.as_ref().filter(|_| turn.may_move());
            here.inspect(|here| here.share(tid));
            self.let_go(tid);
            if !seen.wait_until(end) {
                log::debug!("thread {tid} does not wait again");
            }
            here.inspect(|_| turn.give_processors());
        }
        drop(here);
        if !self.left.is_empty() {
            for seen in &others {
                seen.wait_until(end);
            }
        }
    }

    /// All others.
    fn go_on(&mut self, order: &[Vec<Tid>], leaders: &[(Tid, Tid)]) {
        // What has come for a process is its leader's, so that goes on first.
        let to_go = |(leader, other): &&(Tid, Tid)| {
            self.left.contains_key(leader) && self.left.contains_key(other)
        };
        let leaders = leaders.iter().filter(to_go);
        let leaders: Vec<Leader> = leaders
            .map(|(leader, other)| Leader::of(*leader, *other))
            .collect();
        // One after the other: threads may wait on the same socket. Those whose time is nearly over are last.
        let mut waits: Vec<Wait> = core::mem::take(&mut self.waits).into_values().collect();
        waits.sort_by_key(|wait| core::cmp::Reverse(wait.left()));
        let firsts: BTreeSet<Tid> = order
            .iter()
            .filter_map(|threads| threads.first().copied())
            .collect();
        let (first, later): (Vec<Wait>, Vec<Wait>) = waits
            .into_iter()
            .partition(|wait| firsts.contains(&wait.tid()));
        let with_sockets: BTreeSet<Tid> = first.iter().chain(&later).map(Wait::tid).collect();
        for tid in order.iter().filter_map(|threads| threads.first()) {
            if !with_sockets.contains(tid) {
                self.let_go(*tid);
            }
        }
        for wait in &first {
            self.wait_on(wait);
        }
        wait_for_all(&leaders);
        for tid in order.iter().flat_map(|threads| threads.iter().skip(1)) {
            if !with_sockets.contains(tid) {
                self.let_go(*tid);
            }
        }
        for wait in &later {
            self.wait_on(wait);
        }
    }
}

/// Threads beside the leaders that have children. The end of one of these is told to them, and as long as they are
/// traced whoever of their process is not would be woken by it, even if all ignore it. Not where something waits for
/// the process that a handler is to have: that is the leader's.
fn parents(restore: &Restore<'_>) -> BTreeSet<Tid> {
    let caught = |live: &Live| {
        live.pending.iter().any(|queued| {
            let index = usize::try_from(number(queued) - 1).ok();
            let action = index.and_then(|index| live.actions.get(index));
            action.is_some_and(|action| action.handler > 1)
        })
    };
    let lives: BTreeMap<Pid, &Live> = restore.lives().collect();
    let children = restore.manifest.processes.iter();
    let children = children.filter(|child| child.live().is_some());
    let parents = children.filter_map(|child| {
        let thread = child.parent_thread?;
        lives.get(&child.ppid).filter(|live| !caught(live))?;
        Some(restore.tasks.get(&child.ppid)?.threads.get(&thread)?.tid())
    });
    parents.collect()
}
