//! I/O contexts that are shared (`CLONE_IO`): who sets an I/O priority (ioprio_set(2)) sets it for all of them.
//!
//! kcmp(2) takes two threads without a context for sharers of one, so the kernel's memory is read.

use crate::{Frozen, Refusal, kernel, proc};
use persist_mem::manifest::{Process, State};
use std::collections::BTreeMap;
use sys::{Pid, Tid};

/// Contexts of threads, 0 for none.
#[derive(Debug, Default)]
pub(crate) struct Contexts(BTreeMap<Tid, u64>);

impl Contexts {
    /// Of everybody who is stopped. None are known where the kernel's memory cannot be read.
    pub(super) fn find(frozen: &Frozen) -> Contexts {
        Contexts::of(&frozen.tids())
    }

    pub(crate) fn of(tids: &[Tid]) -> Contexts {
        Contexts(kernel::words_of(tids, "io_context"))
    }

    pub(crate) fn same(&self, one: Tid, two: Tid) -> bool {
        let of = |tid| self.0.get(&tid).copied().filter(|at| *at != 0);
        of(one).is_some() && of(one) == of(two)
    }

    /// The first thread that has the context of each.
    pub(crate) fn firsts(&self, tids: &[Tid]) -> BTreeMap<Tid, Tid> {
        let mut first = BTreeMap::new();
        let of = |tid: &Tid| Some((*tid, *self.0.get(tid).filter(|at| **at != 0)?));
        let named = tids.iter().filter_map(of);
        named
            .map(|(tid, at)| (tid, *first.entry(at).or_insert(tid)))
            .collect()
    }

    /// Says of a process whether it shares its parent's, and of its threads whose they share.
    pub(super) fn tell(&self, process: &mut Process) {
        let (pid, parent): (Pid, Pid) = (process.pid, process.ppid);
        let State::Live(live) = &mut process.state else {
            return;
        };
        live.shares_io = self.same(pid.leader(), parent.leader());
        let tids: Vec<Tid> = live.threads.iter().map(|thread| thread.tid).collect();
        let firsts = self.firsts(&tids);
        for thread in &mut live.threads {
            let first = firsts.get(&thread.tid).copied();
            thread.io_of = first.filter(|tid| *tid != thread.tid);
        }
    }
}

/// A running process: itself, its parent and its threads, the leader first.
struct Member {
    pid: Pid,
    parent: Pid,
    threads: Vec<Tid>,
}

/// Contexts of running processes that are shared otherwise than a child has its parent's from their leaders, or a
/// thread that of another one.
pub(crate) fn refusals(pids: &[Pid]) -> Vec<Refusal> {
    let members: Vec<Member> = pids.iter().filter_map(|pid| member(*pid)).collect();
    let all = members.iter().flat_map(|member| &member.threads);
    let contexts = Contexts::of(&all.copied().collect::<Vec<_>>());
    let mut sharers: BTreeMap<u64, Vec<(&Member, Tid)>> = BTreeMap::new();
    for member in &members {
        for tid in &member.threads {
            if let Some(at) = contexts.0.get(tid).filter(|at| **at != 0) {
                sharers.entry(*at).or_default().push((member, *tid));
            }
        }
    }
    let odd = |all: &&Vec<(&Member, Tid)>| all.len() > 1 && !made_again(all) && !of_threads(all);
    let refused = sharers.values().filter(odd).map(|all| {
        let (member, tid) = all[0];
        let others: Vec<String> = all[1..].iter().map(|(_, tid)| tid.to_string()).collect();
        Refusal {
            pid: member.pid,
            comm: proc::comm(member.pid),
            resource: "I/O context".into(),
            reason: format!(
                "thread {tid} shares it with {} (CLONE_IO), and not as a child does with its parent, or a thread with \
                 another one: that is not carried",
                others.join(", ")
            ),
        }
    });
    refused.collect()
}

fn member(pid: Pid) -> Option<Member> {
    let mut threads = proc::threads(pid).ok()?;
    threads.retain(|tid| !proc::is_worker(pid, *tid));
    Some(Member {
        pid,
        parent: proc::Stat::read(pid, "stat").ok()?.pid(4),
        threads,
    })
}

/// Whether sharers get it from one of them by ways that a restore goes ([`Contexts::tell`]): from leaders, which must
/// live, since one that has ended has none.
fn made_again(sharers: &[(&Member, Tid)]) -> bool {
    let leader_has = |pid: Pid| {
        sharers
            .iter()
            .any(|(m, tid)| m.pid == pid && *tid == pid.leader())
    };
    let from_leader = sharers.iter().all(|(member, _)| leader_has(member.pid));
    let leaders = sharers
        .iter()
        .filter(|(member, tid)| *tid == member.pid.leader());
    let alone = leaders.filter(|(member, _)| !leader_has(member.parent));
    from_leader && alone.count() == 1
}

/// Whether they are threads of one process, and not its leader: the first makes the others.
fn of_threads(sharers: &[(&Member, Tid)]) -> bool {
    let pid = sharers[0].0.pid;
    sharers
        .iter()
        .all(|(member, tid)| member.pid == pid && *tid != pid.leader())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_shares_with_leader_and_parent_can_be_made_again() {
        let member = |pid: i32, parent: i32| Member {
            pid: Pid(pid),
            parent: Pid(parent),
            threads: [pid, pid + 1, pid + 2].map(Tid).to_vec(),
        };
        let (old, young, stranger) = (member(10, 1), member(20, 10), member(30, 1));
        let shared = |all: &[(&Member, i32)]| {
            let all: Vec<_> = all.iter().map(|(m, tid)| (*m, Tid(*tid))).collect();
            made_again(&all)
        };
        assert!(shared(&[(&old, 10), (&old, 12), (&young, 20)]));
        assert!(!shared(&[(&old, 11), (&old, 12)]), "their leader has not");
        assert!(of_threads(&[(&old, Tid(11)), (&old, Tid(12))]));
        assert!(!of_threads(&[(&old, Tid(11)), (&young, Tid(20))]));
        assert!(!shared(&[(&old, 11), (&young, 20)]), "from a thread");
        assert!(!shared(&[(&old, 10), (&stranger, 30)]), "a stranger");
        let mut ended = member(40, 10);
        ended.threads.remove(0);
        assert!(!shared(&[(&ended, 41), (&ended, 42)]), "its leader ended");
        assert!(!shared(&[(&old, 10), (&ended, 41)]), "its leader ended");
    }
}
