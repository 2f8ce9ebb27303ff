//! Groups of processes, once all are there.

use super::{Planner, Step};
use std::collections::BTreeMap;
use sys::Pid;

impl Planner<'_> {
    /// Puts everybody into their groups.
    pub(super) fn groups(&mut self) -> Result<(), (Pid, String)> {
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

    fn set_group(&mut self, pid: Pid, pgid: Pid) {
        if let Some(place) = self.at.get_mut(&pid)
            && place.1 != pgid
        {
            place.1 = pgid;
            self.steps.push(Step::Group { pid, pgid });
        }
    }
}
