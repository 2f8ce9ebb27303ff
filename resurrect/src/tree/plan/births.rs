//! Processes in the order of their births, in the sessions that they were born in.

use super::{Planner, Step};
use persist_mem::manifest::Process;
use std::collections::BTreeMap;
use sys::Pid;

impl Planner<'_> {
    /// A process whose parent is not one of them, and everybody below.
    pub(super) fn root(&mut self, pid: Pid) -> Result<(), (Pid, String)> {
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
    pub(super) fn adopt(&mut self, pid: Pid) -> Result<(), (Pid, String)> {
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
}
