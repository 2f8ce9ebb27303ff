//! Which threads of their parents have made children: wait4(2) with `__WNOTHREAD` finds those of the calling thread
//! only, and the signal at the parent's death (`PR_SET_PDEATHSIG`) comes when that thread ends.

use super::Children;
use crate::kernel::{self, Kernel, Unreadable};
use crate::{Frozen, proc};
use persist_mem::manifest::Process;
use std::collections::BTreeMap;
use sys::{Pid, Tid};

/// The threads that are parents of children and not the leaders of their processes.
pub(super) fn threads(frozen: &Frozen, children: &Children) -> BTreeMap<Pid, Tid> {
    let mut parents = BTreeMap::new();
    let mut pairs = Vec::new();
    for (&parent, its) in children {
        let threads = frozen.threads(parent).into_iter().map(|(tid, _)| tid);
        let others: Vec<Tid> = threads.filter(|tid| *tid != parent.leader()).collect();
        if !others.is_empty() {
            parents.insert(parent, others);
            pairs.extend_from_slice(its);
        }
    }
    let children = pairs;
    if children.is_empty() {
        return BTreeMap::new();
    }
    let found = kernel::look(|kernel| of_tasks(kernel, &parents, &children));
    found.unwrap_or_else(|_| of_lists(&parents))
}

/// Notes in which order parents have their children: as they were born, or given to them as orphans.
pub(super) fn note_places(processes: &mut [Process]) {
    let mut families: BTreeMap<(Pid, Tid), Vec<&mut Process>> = BTreeMap::new();
    for process in processes {
        let thread = process.parent_thread.unwrap_or(process.ppid.leader());
        let family = families.entry((process.ppid, thread)).or_default();
        family.push(process);
    }
    for ((pid, tid), children) in families.into_iter().filter(|(_, all)| all.len() > 1) {
        let order: BTreeMap<Pid, u32> = proc::children_of(pid, tid).into_iter().zip(0..).collect();
        for child in children {
            child.place = order.get(&child.pid).copied().unwrap_or(u32::MAX);
        }
    }
}

/// By `task_struct.real_parent`.
fn of_tasks(
    kernel: &mut Kernel,
    parents: &BTreeMap<Pid, Vec<Tid>>,
    children: &[Pid],
) -> Result<BTreeMap<Pid, Tid>, Unreadable> {
    let field = kernel.btf().field("task_struct", "real_parent")?.offset;
    let ids: Vec<Tid> = children.iter().map(|child| child.leader()).collect();
    let tasks = kernel.tasks(&ids)?;
    let made_by = kernel.words_within(&tasks, field)?;
    let threads: Vec<Tid> = parents.values().flatten().copied().collect();
    let at = kernel.tasks(&threads)?;
    let known: BTreeMap<u64, Tid> = at
        .into_iter()
        .zip(&threads)
        .filter_map(|(task, tid)| Some((task?, *tid)))
        .collect();
    let found = children.iter().zip(made_by);
    Ok(found
        .filter_map(|(child, by)| Some((*child, *known.get(&by?)?)))
        .collect())
}

/// By `/proc/PID/task/TID/children`.
fn of_lists(parents: &BTreeMap<Pid, Vec<Tid>>) -> BTreeMap<Pid, Tid> {
    let mut found = BTreeMap::new();
    for (pid, threads) in parents {
        for tid in threads {
            let children = proc::children_of(*pid, *tid).into_iter();
            found.extend(children.map(|child| (child, *tid)));
        }
    }
    found
}
