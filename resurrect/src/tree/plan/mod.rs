//! Who forks whom, and when: a list of steps from the ids alone.
//!
//! A child gets its session and group from who forks it. So a child that was forked before its parent
//! called setsid(2) is forked before it again; a session or group whose founder is gone is founded by a
//! helper with the founder's id; and a process whose parent is not the one that forked it (an orphan) is
//! forked by a member of its session as a sibling (`CLONE_PARENT`), or orphaned again.
//!
//! | module | what it does |
//! |---|---|
//! | [`births`] | processes in the order of their births, in the sessions that they were born in |
//! | [`groups`] | their groups, once all are there |

mod births;
mod groups;
#[cfg(test)]
mod tests;

use persist_mem::manifest::{Live, Process, State};
use std::collections::{BTreeMap, BTreeSet};
use sys::Pid;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `by` forks `pid` (None: this process does).
    Fork {
        /// The new process.
        pid: Pid,
        /// Who makes the call.
        by: Option<Pid>,
        /// `CLONE_PARENT`: the new process is a sibling of `by`.
        sibling: bool,
    },
    /// `pid` becomes the nearest reaper of orphans.
    Subreaper(Pid),
    /// setsid(2).
    Session(Pid),
    /// setpgid(2) by the process itself.
    Group {
        /// The process.
        pid: Pid,
        /// Its new group.
        pgid: Pid,
    },
    /// The helper `pid` ends and `reaper` waits for it (None: this process does).
    End {
        /// The helper.
        pid: Pid,
        /// Its parent.
        reaper: Option<Pid>,
    },
}

/// Session and group of the process that restores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outside {
    pub(crate) sid: Pid,
    pub(crate) pgid: Pid,
}

struct Planner<'a> {
    by_pid: BTreeMap<Pid, &'a Process>,
    children: BTreeMap<Pid, Vec<Pid>>,
    outside: Outside,
    steps: Vec<Step>,
    made: BTreeSet<Pid>,
    /// Children that no ordinary fork puts into their session.
    foreign: Vec<Pid>,
    /// Helpers that are alive, with their parents.
    helpers: Vec<(Pid, Option<Pid>)>,
    /// Session and group that a made process is in at this point of the plan.
    at: BTreeMap<Pid, (Pid, Pid)>,
}

/// Plans the whole forest. `Err` names the process whose place cannot be rebuilt, and why.
pub(crate) fn plan(processes: &[Process], outside: Outside) -> Result<Vec<Step>, (Pid, String)> {
    let by_pid: BTreeMap<Pid, &Process> = processes.iter().map(|p| (p.pid, p)).collect();
    let mut children: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    let mut roots = Vec::new();
    for process in processes {
        if by_pid.contains_key(&process.ppid) && process.ppid != process.pid {
            children.entry(process.ppid).or_default().push(process.pid);
        } else {
            roots.push(process.pid);
        }
    }
    for pids in children.values_mut() {
        in_order(pids, &by_pid);
    }
    let mut planner = Planner {
        by_pid,
        children,
        outside,
        steps: Vec::new(),
        made: BTreeSet::new(),
        foreign: Vec::new(),
        helpers: Vec::new(),
        at: BTreeMap::new(),
    };
    for root in roots {
        planner.root(root)?;
    }
    while !planner.foreign.is_empty() {
        for pid in core::mem::take(&mut planner.foreign) {
            planner.adopt(pid)?;
        }
    }
    planner.groups()?;
    planner.end_helpers();
    Ok(planner.steps)
}

/// wait(2) tells of the oldest first, whether it has ended or stopped. Who has tables of a brother is made by that one.
fn in_order(pids: &mut [Pid], by_pid: &BTreeMap<Pid, &Process>) {
    let place = |pid: &Pid| by_pid.get(pid).map(|process| process.place);
    pids.sort_by_key(|pid| (place(pid), *pid));
    let live = |pid: &Pid| by_pid.get(pid).and_then(|process| process.live());
    let follows = |(at, pid): (usize, &Pid)| {
        let owners = live(pid).into_iter().flat_map(tables_of).flatten();
        let mut later = owners.filter_map(|owner| pids.iter().position(|pid| *pid == owner));
        !later.any(|owner| owner > at)
    };
    if !pids.iter().enumerate().all(follows) {
        pids.sort_unstable();
    }
}

/// Whose tables a process has.
fn tables_of(live: &Live) -> [Option<Pid>; 5] {
    [
        live.mm_of,
        live.files_of,
        live.fs_of,
        live.actions_of,
        live.undo_of,
    ]
}

impl Planner<'_> {
    fn process(&self, pid: Pid) -> Result<&Process, (Pid, String)> {
        let found = self.by_pid.get(&pid).copied();
        found.ok_or_else(|| (pid, "it is not part of the tree".into()))
    }

    fn fork(&mut self, pid: Pid, by: Option<Pid>, sibling: bool) {
        self.steps.push(Step::Fork { pid, by, sibling });
        let outside = (self.outside.sid, self.outside.pgid);
        let place = by.map_or(outside, |by| self.at.get(&by).copied().unwrap_or(outside));
        self.at.insert(pid, place);
        self.made.insert(pid);
    }

    /// A child is forked by its parent, or by a brother whose tables it has.
    fn bear(&mut self, child: Pid, parent: Pid) {
        match self.brother(child) {
            Some(brother) => self.fork(child, Some(brother), true),
            None => self.fork(child, Some(parent), false),
        }
    }

    /// The brother whose tables a child has, when that is there.
    fn brother(&self, child: Pid) -> Option<Pid> {
        let process = self.by_pid.get(&child)?;
        let live = process.live()?;
        let is = |owner: &Pid| {
            let owner = self.by_pid.get(owner);
            owner.is_some_and(|owner| owner.ppid == process.ppid && self.made.contains(&owner.pid))
        };
        tables_of(live).into_iter().flatten().find(is)
    }

    fn found_session(&mut self, pid: Pid) {
        self.steps.push(Step::Session(pid));
        self.at.insert(pid, (pid, pid));
    }

    fn helper(&mut self, pid: Pid, parent: Option<Pid>) {
        self.fork(pid, parent, false);
        self.helpers.push((pid, parent));
    }

    /// An id that nobody in the tree has or names.
    fn free_id(&self, near: Pid) -> Pid {
        let named = |id: Pid| {
            self.by_pid.values().any(|p| {
                let mut threads = p.live().into_iter().flat_map(Live::all_threads);
                p.pid == id || p.sid == id || p.pgid == id || threads.any(|t| t.tid.0 == id.0)
            }) || self.made.contains(&id)
        };
        let mut id = Pid(near.0 + 1);
        while named(id) {
            id = Pid(id.0 + 1);
        }
        id
    }

    fn end_helpers(&mut self) {
        for (pid, reaper) in core::mem::take(&mut self.helpers).into_iter().rev() {
            self.steps.push(Step::End { pid, reaper });
        }
    }
}

/// Whether the process has ended and is only remembered.
pub(crate) fn is_zombie(process: &Process) -> bool {
    matches!(process.state, State::Zombie { .. })
}
