//! Who forks whom, and when: a list of steps from the ids alone.
//!
//! A child gets its session and group from who forks it. So a child that was forked before its parent
//! called setsid(2) is forked before it again; a session or group whose founder is gone is founded by a
//! helper with the founder's id; and a process whose parent is not the one that forked it (an orphan) is
//! forked by a member of its session as a sibling (`CLONE_PARENT`), or orphaned again.

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

    fn root(&mut self, pid: Pid) -> Result<(), (Pid, String)> {
        let sid = self.process(pid)?.sid;
        if sid == pid || sid == self.outside.sid || sid.0 == 0 {
            self.fork(pid, None, false);
        } else if self.by_pid.contains_key(&sid) {
            return Err((
                pid,
                format!("its session's leader {sid} is one of its descendants"),
            ));
        } else {
            self.helper(sid, None);
            self.found_session(sid);
            self.fork(pid, Some(sid), true);
        }
        self.grow(pid)
    }

    fn helper(&mut self, pid: Pid, parent: Option<Pid>) {
        self.fork(pid, parent, false);
        self.helpers.push((pid, parent));
    }

    /// What a process does once it is there: its children, and its session.
    fn grow(&mut self, pid: Pid) -> Result<(), (Pid, String)> {
        let process = self.process(pid)?;
        let (sid, subreaper) = (process.sid, process.is_subreaper());
        if subreaper {
            self.steps.push(Step::Subreaper(pid));
        }
        let born_in = self.at.get(&pid).map_or(self.outside.sid, |(sid, _)| *sid);
        let children = self.children.get(&pid).cloned().unwrap_or_default();
        if sid == pid {
            for &child in &children {
                if self.birth(child)? == Some(born_in) {
                    self.bear(child, pid);
                    self.grow(child)?;
                }
            }
            self.found_session(pid);
        }
        for child in children {
            if self.made.contains(&child) {
                continue;
            }
            let here = self.at.get(&pid).map_or(sid, |(sid, _)| *sid);
            if self.birth(child)?.is_none_or(|birth| birth == here) {
                self.bear(child, pid);
                self.grow(child)?;
            } else {
                self.foreign.push(child);
            }
        }
        Ok(())
    }

    /// The session that a process has to be forked in: its own unless it founds that; then the one that children are
    /// in which it had before. None when any will do.
    fn birth(&self, pid: Pid) -> Result<Option<Pid>, (Pid, String)> {
        let process = self.process(pid)?;
        if process.sid != pid {
            return Ok((process.sid.0 != 0).then_some(process.sid));
        }
        for &child in self.children.get(&pid).into_iter().flatten() {
            if let Some(sid) = self.birth(child)?
                && sid != pid
                && !self.is_of_orphans(sid, process)
            {
                return Ok(Some(sid));
            }
        }
        Ok(None)
    }

    /// Whether children of a process in session `sid` may be orphans that it was given: the session of a descendant.
    fn is_of_orphans(&self, sid: Pid, of: &Process) -> bool {
        let subreaper = of.is_subreaper();
        let Some(mut at) = self.by_pid.get(&sid) else {
            return subreaper || of.pid.0 == 1;
        };
        while let Some(parent) = self.by_pid.get(&at.ppid) {
            if parent.pid == of.pid {
                return true;
            }
            if parent.pid == at.pid {
                break;
            }
            at = parent;
        }
        false
    }

    /// A child that is to be forked in a session that its parent is not in.
    fn adopt(&mut self, pid: Pid) -> Result<(), (Pid, String)> {
        if let Some(brother) = self.brother(pid) {
            self.fork(pid, Some(brother), true);
            return self.grow(pid);
        }
        let parent = self.process(pid)?.ppid;
        let sid = self.birth(pid)?.unwrap_or(pid);
        let member_of = |at: &BTreeMap<Pid, (Pid, Pid)>, member: &Pid| {
            at.get(member).is_some_and(|(of, _)| *of == sid)
        };
        // A sibling in the session forks it beside itself.
        let sibling = self.made.iter().copied().find(|member| {
            let their = self.by_pid.get(member).map(|p| p.ppid);
            let helped = self
                .helpers
                .iter()
                .any(|(h, of)| h == member && *of == Some(parent));
            (their == Some(parent) || helped) && member_of(&self.at, member)
        });
        if let Some(sibling) = sibling {
            self.fork(pid, Some(sibling), true);
            return self.grow(pid);
        }
        let taken = self.by_pid.contains_key(&sid) || self.made.contains(&sid);
        if !taken {
            self.helper(sid, Some(parent));
            self.found_session(sid);
            self.fork(pid, Some(sid), true);
            return self.grow(pid);
        }
        // Orphaned: a member of the session forks a helper, that forks it, and the helper ends.
        if !self.made.iter().any(|m| member_of(&self.at, m)) {
            return Err((pid, format!("its session {sid} cannot be founded again")));
        }
        let mut members = self.made.iter().copied().filter(|m| member_of(&self.at, m));
        let Some(member) = members.find(|m| self.reaper_of(*m) == Some(parent)) else {
            let why = format!(
                "it is a child of {parent} in session {sid}, and no way leads there: {parent} is not the reaper of that session's orphans"
            );
            return Err((pid, why));
        };
        let helper = self.free_id(pid);
        self.fork(helper, Some(member), false);
        self.fork(pid, Some(helper), false);
        self.steps.push(Step::End {
            pid: helper,
            reaper: Some(member),
        });
        self.made.remove(&helper);
        self.at.remove(&helper);
        self.grow(pid)
    }

    /// Who gets the orphans of a process's children.
    fn reaper_of(&self, pid: Pid) -> Option<Pid> {
        let mut at = pid;
        loop {
            let process = self.by_pid.get(&at)?;
            if process.pid.0 == 1 || process.is_subreaper() {
                return Some(process.pid);
            }
            at = process.ppid;
        }
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

    fn set_group(&mut self, pid: Pid, pgid: Pid) {
        if let Some(place) = self.at.get_mut(&pid)
            && place.1 != pgid
        {
            place.1 = pgid;
            self.steps.push(Step::Group { pid, pgid });
        }
    }

    fn groups(&mut self) -> Result<(), (Pid, String)> {
        let mut wanted: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
        for process in self.by_pid.values() {
            wanted.entry(process.pgid).or_default().push(process.pid);
        }
        // Founders first: a group is there once its founder is in it.
        for (&pgid, members) in &wanted {
            let inherited = |at: &BTreeMap<Pid, (Pid, Pid)>| {
                members
                    .iter()
                    .all(|m| at.get(m).is_some_and(|(_, now)| *now == pgid))
            };
            if pgid.0 == 0 || inherited(&self.at) {
                continue;
            }
            if self.at.contains_key(&pgid) {
                self.set_group(pgid, pgid);
            } else if pgid != self.outside.pgid {
                let Some(&first) = members.first() else {
                    continue;
                };
                self.helper(pgid, Some(first));
                self.set_group(pgid, pgid);
            }
        }
        let mut founders = Vec::new();
        for (&pgid, members) in &wanted {
            for &member in members {
                let leads = self.by_pid.get(&member).is_some_and(|p| p.sid == member);
                if leads && pgid != member {
                    return Err((member, "it leads a session but not its own group".into()));
                }
                if pgid.0 != 0 && pgid != member && wanted.contains_key(&member) {
                    founders.push((member, pgid));
                } else if pgid.0 != 0 {
                    self.set_group(member, pgid);
                }
            }
        }
        self.leave_own(founders);
        Ok(())
    }

    /// Founders of groups that are in others now leave theirs when somebody else is there. Where nobody is before them,
    /// a helper stays in the group.
    fn leave_own(&mut self, mut founders: Vec<(Pid, Pid)>) {
        while !founders.is_empty() {
            let may_leave = |(founder, _): &(Pid, Pid)| {
                let mut others = self.at.iter().filter(|(pid, _)| *pid != founder);
                others.any(|(_, (_, group))| group == founder)
                    || !founders.iter().any(|(_, into)| into == founder)
            };
            match founders.iter().position(may_leave) {
                Some(next) => {
                    let (founder, pgid) = founders.remove(next);
                    self.set_group(founder, pgid);
                }
                None => {
                    let (founder, _) = founders[0];
                    let helper = self.free_id(founder);
                    self.helper(helper, Some(founder));
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn zombie(pid: i32, ppid: i32, pgid: i32, sid: i32) -> Process {
        Process {
            pid: Pid(pid),
            ppid: Pid(ppid),
            parent_thread: None,
            place: 0,
            pgid: Pid(pgid),
            sid: Pid(sid),
            exit_signal: 17,
            state: State::Zombie {
                status: 0,
                signals: [0; 2],
                remains: Box::default(),
                limits: Vec::new(),
            },
        }
    }

    #[test]
    fn children_are_born_in_their_order() {
        let mut all = [(9, 1), (20, 9), (21, 9), (22, 9)].map(|(pid, by)| zombie(pid, by, 9, 9));
        for (process, place) in all.iter_mut().zip([0, 2, 0, 1]) {
            process.place = place;
        }
        let steps = plan(&all, OUTSIDE).unwrap();
        let born = steps.iter().filter_map(|step| match step {
            Step::Fork { pid, .. } => Some(pid.0),
            _ => None,
        });
        assert_eq!(born.collect::<Vec<_>>(), [9, 21, 22, 20]);
    }

    const OUTSIDE: Outside = Outside {
        sid: Pid(7),
        pgid: Pid(8),
    };

    /// What the kernel would do: (parent, group, session) of every process at the end.
    fn simulate(steps: &[Step], reaper: Pid) -> BTreeMap<Pid, (Pid, Pid, Pid)> {
        let mut world: BTreeMap<Pid, (Pid, Pid, Pid)> = BTreeMap::new();
        let none = Pid(0);
        for step in steps {
            match *step {
                Step::Fork { pid, by: None, .. } => {
                    world.insert(pid, (none, OUTSIDE.pgid, OUTSIDE.sid));
                }
                Step::Fork {
                    pid,
                    by: Some(by),
                    sibling,
                } => {
                    let (parent, pgid, sid) = world[&by];
                    world.insert(pid, (if sibling { parent } else { by }, pgid, sid));
                }
                Step::Session(pid) => {
                    let parent = world[&pid].0;
                    assert!(
                        !world.values().any(|w| w.1 == pid),
                        "setsid of a group leader"
                    );
                    world.insert(pid, (parent, pid, pid));
                }
                Step::Group { pid, pgid } => {
                    let sid = world[&pid].2;
                    let exists = world.values().any(|w| w.1 == pgid && w.2 == sid);
                    let ours = (pgid, sid) == (OUTSIDE.pgid, OUTSIDE.sid);
                    assert!(pid == pgid || exists || ours, "group {pgid} is not there");
                    assert_ne!(sid, pid, "session leaders cannot move");
                    world.entry(pid).and_modify(|w| w.1 = pgid);
                }
                Step::Subreaper(_) => {}
                Step::End { pid, .. } => {
                    world.remove(&pid);
                    for place in world.values_mut().filter(|w| w.0 == pid) {
                        place.0 = reaper;
                    }
                }
            }
        }
        world
    }

    fn check(processes: &[Process]) {
        let steps = plan(processes, OUTSIDE);
        let told = || {
            processes
                .iter()
                .map(|p| (p.pid.0, p.ppid.0, p.pgid.0, p.sid.0))
        };
        let steps = steps.unwrap_or_else(|why| panic!("{why:?}: {:?}", told().collect::<Vec<_>>()));
        let world = simulate(&steps, processes[0].pid);
        assert_eq!(world.len(), processes.len(), "{steps:?}");
        for (n, p) in processes.iter().enumerate() {
            let parent = if n == 0 { Pid(0) } else { p.ppid };
            assert_eq!(
                world[&p.pid],
                (parent, p.pgid, p.sid),
                "{}: {steps:?}",
                p.pid
            );
        }
    }

    #[test]
    fn a_job_below_a_session_leader() {
        check(&[
            zombie(100, 1, 100, 100),
            zombie(101, 100, 101, 100),
            zombie(102, 100, 101, 100),
            zombie(103, 102, 101, 100),
        ]);
    }

    #[test]
    fn a_root_in_our_session_and_a_daemon() {
        check(&[
            zombie(100, 1, 8, 7),
            zombie(101, 100, 101, 101),
            zombie(102, 101, 101, 101),
        ]);
    }

    #[test]
    fn leaders_that_are_gone() {
        check(&[
            zombie(100, 1, 100, 55),
            zombie(101, 100, 90, 55),
            zombie(102, 100, 90, 55),
            zombie(103, 100, 60, 60),
            zombie(104, 103, 60, 60),
        ]);
    }

    #[test]
    fn forked_before_setsid() {
        check(&[
            zombie(100, 1, 100, 100),
            zombie(101, 100, 101, 101),
            zombie(102, 101, 100, 100),
        ]);
    }

    #[test]
    fn forked_before_several_have_called_setsid() {
        check(&[
            zombie(100, 1, 100, 100),
            zombie(101, 100, 101, 101),
            zombie(102, 101, 102, 102),
            zombie(103, 102, 103, 103),
            zombie(104, 103, 100, 100),
        ]);
    }

    /// The first is the reaper of orphans: 103 was forked by somebody in session 102 who has ended.
    #[test]
    fn an_orphan_that_forked_before_it_called_setsid() {
        check(&[
            zombie(1, 0, 8, 7),
            zombie(102, 1, 102, 102),
            zombie(103, 1, 103, 103),
            zombie(104, 103, 102, 102),
        ]);
    }

    #[test]
    fn orphans_of_a_live_session() {
        check(&[
            zombie(1, 0, 8, 7),
            zombie(20, 1, 20, 20),
            zombie(21, 1, 21, 20),
            zombie(30, 20, 30, 30),
            zombie(31, 1, 30, 30),
        ]);
    }

    /// Whatever processes have done before, there is a way to where they are.
    #[test]
    fn any_history_has_a_plan() {
        let mut seed: u32 = 1;
        let mut any = move |below: usize| {
            seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12345);
            (seed >> 16) as usize % below
        };
        for round in 0..3000 {
            let mut world: BTreeMap<Pid, (Pid, Pid, Pid)> = BTreeMap::new();
            world.insert(Pid(1), (Pid(0), OUTSIDE.pgid, OUTSIDE.sid));
            for pid in (100..).take(12 + round % 30) {
                let all: Vec<Pid> = world.keys().copied().collect();
                let who = all[any(all.len())];
                let (parent, pgid, sid) = world[&who];
                match any(8) {
                    0 if !world.values().any(|w| w.1 == who) => {
                        world.insert(who, (parent, who, who));
                    }
                    1 if sid != who && world.values().all(|w| w.1 != who || w.2 == sid) => {
                        world.insert(who, (parent, who, sid));
                    }
                    2 if sid != who => {
                        let groups = world.values().filter(|w| w.2 == sid).map(|w| w.1);
                        let groups: Vec<Pid> = groups.collect();
                        world.insert(who, (parent, groups[any(groups.len())], sid));
                    }
                    3 if who != Pid(1) => {
                        world.remove(&who);
                        let orphans = world.values_mut().filter(|w| w.0 == who);
                        orphans.for_each(|w| w.0 = Pid(1));
                    }
                    _ => {
                        world.insert(Pid(pid), (who, pgid, sid));
                    }
                }
            }
            let processes = world
                .iter()
                .map(|(pid, w)| zombie(pid.0, w.0.0, w.1.0, w.2.0));
            check(&processes.collect::<Vec<_>>());
        }
    }
}
