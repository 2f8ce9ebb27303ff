//! Listeners of seccomp: who has one is asked about calls that a filter leaves open (seccomp_unotify(2)).
//!
//! A filter is installed together with its listener. So one that several processes have, each from its parent, cannot
//! be made again for all of them. A call that is being asked about is made again when its thread goes on, and asked
//! about once more, as after any signal; one that was told and not answered would be told by another number.

use super::{Open, userfault};
use crate::kernel::{self, FilterAt, Unreadable};
use crate::proc::{self, Status};
use crate::{FreezerError, Refusal, landlock};
use persist_mem::manifest::{Description, DescriptionKind, Live, Process, Seccomp, State};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::Duration;
use sys::{Pid, Tid};

pub(super) const LINK: &[u8] = b"anon_inode:seccomp notify";
const FILTERS: &str = "2";
const ENDED: &str = "a listener of seccomp whose processes have ended, or are not saved";
const SEVERAL: &str =
    "a listener of seccomp for several processes, or some threads of one, is not carried";
const ELSEWHERE: &str = "a listener of seccomp is asked about its calls who is not saved";
const UNDECIDED: &str =
    "a listener of seccomp was told of a call that it has not decided about yet";
const CONFINED: &str = "a listener of seccomp for a process in a domain of Landlock is not carried";
/// How long a decision may take.
const LOOKS: u32 = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let filter = filter(open).map_err(|why| {
        open.refuse(format!(
            "a listener of seccomp: nothing tells of which filter: {why}"
        ))
    })?;
    Ok(DescriptionKind::SeccompListener { filter })
}

fn filter(open: &Open<'_>) -> Result<u64, Unreadable> {
    kernel::look(|kernel| {
        let file = kernel.own_file(open.copy.as_fd())?;
        kernel.filter_listened(file)
    })
}

/// The filters of a thread.
pub(crate) fn filters(tid: Tid) -> Result<Vec<FilterAt>, Unreadable> {
    kernel::look(|kernel| match kernel.tasks(&[tid])?[..] {
        [Some(task)] => kernel.filters(task),
        _ => Ok(Vec::new()),
    })
}

/// The filters of every thread of a process, none where it has none.
fn stacks(pid: Pid) -> Vec<Vec<FilterAt>> {
    let confined = |tid: &Tid| {
        let status = Status::read(pid, &format!("task/{tid}/status"));
        status.is_ok_and(|status| status.value("Seccomp") == Some(FILTERS))
    };
    let threads = proc::threads(pid).unwrap_or_default();
    if !threads.iter().any(confined) {
        return Vec::new();
    }
    let all = threads.into_iter().map(filters);
    all.map(Result::unwrap_or_default).collect()
}

/// Whether one thread alone has a filter, or all have it, and those before it.
fn is_one<T: PartialEq + Copy>(filter: T, stacks: &[Vec<T>]) -> bool {
    let upto = |stack: &Vec<T>| {
        let at = stack.iter().position(|one| *one == filter)?;
        Some(stack[..=at].to_vec())
    };
    let all: Vec<Option<Vec<T>>> = stacks.iter().map(upto).collect();
    let having = all.iter().flatten().count();
    having == 1 || having == all.len() && all.windows(2).all(|pair| pair[0] == pair[1])
}

/// Whether it can be made again, while processes run.
pub(super) fn check(open: &Open<'_>, inside: Option<&[Pid]>) -> Result<(), FreezerError> {
    let filter = filter(open).map_err(|why| open.refuse(why.to_string()))?;
    let mut owners = Vec::new();
    for pid in super::epoll::everyone() {
        let addresses = |stack: &Vec<FilterAt>| stack.iter().map(|one| one.address).collect();
        let stacks: Vec<Vec<u64>> = stacks(pid).iter().map(addresses).collect();
        if stacks.iter().flatten().any(|one| *one == filter) {
            owners.push((pid, is_one(filter, &stacks)));
        }
    }
    match owners[..] {
        [] => return Err(open.refuse(ENDED)),
        [(pid, true)] if inside.is_none_or(|inside| inside.contains(&pid)) => {
            if landlock::concerns(&[pid]) {
                return Err(open.refuse(CONFINED));
            }
        }
        [(_, true)] => return Err(open.refuse(ENDED)),
        _ => return Err(open.refuse(SEVERAL)),
    }
    for _ in 0..LOOKS {
        let undecided = kernel::look(|kernel| kernel.is_undecided(filter));
        if !undecided.map_err(|why| open.refuse(why.to_string()))? {
            return Ok(());
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    Err(open.refuse(UNDECIDED))
}

/// Processes of a tree about whose calls somebody else is asked.
pub(crate) fn asked_outside(inside: &[Pid]) -> Vec<Refusal> {
    let mut held = None;
    let mut found = Vec::new();
    for pid in inside {
        let stacks = stacks(*pid);
        let listened: Vec<&FilterAt> = stacks.iter().flatten().filter(|one| one.listened).collect();
        if listened.is_empty() {
            continue;
        }
        let held: &BTreeSet<u64> = held.get_or_insert_with(|| {
            let files = userfault::files_at(inside, LINK);
            let filters = files.into_iter();
            filters
                .filter_map(|file| kernel::look(|kernel| kernel.filter_listened(file)).ok())
                .collect()
        });
        if listened.iter().any(|one| !held.contains(&one.address)) {
            found.push(Refusal {
                pid: *pid,
                comm: proc::comm(*pid),
                resource: "seccomp".into(),
                reason: ELSEWHERE.into(),
            });
        }
    }
    found
}

/// Refuses what a restore could not bring together again: every listener has one process, and every filter that asks
/// has its listener.
pub(crate) fn verify(processes: &[Process], all: &[Description]) -> Result<(), FreezerError> {
    let listeners: BTreeSet<u64> = all.iter().filter_map(|one| listens_to(&one.kind)).collect();
    let mut found = BTreeSet::new();
    for process in processes {
        let State::Live(live) = &process.state else {
            continue;
        };
        for (index, filter) in (0..).zip(&live.filters) {
            let Some(asks) = filter.listener else {
                continue;
            };
            let why = if !listeners.contains(&asks.filter) {
                ELSEWHERE
            } else if !found.insert(asks.filter) || !is_one(index, &numbers(live)) {
                SEVERAL
            } else if !live.layers.is_empty() {
                CONFINED
            } else {
                continue;
            };
            return Err(FreezerError::refuse(process.pid, "seccomp", why));
        }
    }
    match listeners.difference(&found).next() {
        Some(_) => Err(FreezerError::refuse(Pid(0), "seccomp", ENDED)),
        None => Ok(()),
    }
}

fn numbers(live: &Live) -> Vec<Vec<u32>> {
    let stack = |seccomp: &Seccomp| match seccomp {
        Seccomp::Filters(own) => own.clone(),
        _ => Vec::new(),
    };
    live.all_threads()
        .map(|thread| stack(&thread.seccomp))
        .collect()
}

fn listens_to(kind: &DescriptionKind) -> Option<u64> {
    match kind {
        DescriptionKind::SeccompListener { filter } => Some(*filter),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_of_one_thread_or_of_all() {
        assert!(is_one(5, &[vec![1, 5], vec![1]]));
        assert!(is_one(5, &[vec![1, 5, 7], vec![1, 5]]));
        assert!(!is_one(5, &[vec![1, 5], vec![1, 5], vec![1]]));
        assert!(!is_one(5, &[vec![1, 5], vec![2, 5]]));
    }
}
