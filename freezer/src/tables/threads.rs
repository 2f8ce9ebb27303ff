//! Tables that threads of a process share with each other.
//!
//! A thread that makes another one shares with it what it wants (clone(2)), and each may leave a table later
//! (unshare(2)). A restore makes each by one that has all that it shares ([`births`]).

use super::{has_no_undo_list, refusal};
use crate::capture::Contexts;
use crate::{FreezerError, Refusal, proc};
use core::cmp::Ordering;
use persist_mem::manifest::{Live, Sharer, ThreadUndo, births};
use std::collections::BTreeMap;
use sys::process::{KcmpKind, kcmp};
use sys::{Pid, Tid};

/// Threads that do not share a table with the one that stands for their process.
fn apart(representative: Tid, threads: &[Tid], kind: KcmpKind) -> impl Iterator<Item = Tid> {
    let others = threads.iter().copied();
    others.filter(move |tid| kcmp(representative, *tid, kind, 0, 0).is_ok_and(Ordering::is_ne))
}

/// Tables that threads of a process have, and the one that stands for it has not: those who share each.
pub(crate) fn groups(
    pid: Pid,
    representative: Tid,
    threads: &[Tid],
    kind: KcmpKind,
) -> Vec<Vec<Tid>> {
    let mut groups: Vec<Vec<Tid>> = Vec::new();
    for tid in apart(representative, threads, kind) {
        // Its table is gone then, and those that do the kernel's work share what they can with whom they do it for.
        let has_none = || kind == KcmpKind::Sysvsem && has_no_undo_list(tid);
        if proc::is_ending(pid, tid) || proc::is_worker(pid, tid) || has_none() {
            continue;
        }
        let same = |one: &Tid| kcmp(*one, tid, kind, 0, 0).is_ok_and(Ordering::is_eq);
        match groups.iter_mut().find(|group| same(&group[0])) {
            Some(group) => group.push(tid),
            None => groups.push(vec![tid]),
        }
    }
    groups
}

/// Notes whose list of what `SEM_UNDO` will do each thread of a process has.
pub(crate) fn note_undo(pid: Pid, live: &mut Live) {
    let tids: Vec<Tid> = live.threads.iter().map(|thread| thread.tid).collect();
    let [first, _, ..] = tids[..] else {
        return;
    };
    let none = has_no_undo_list(first);
    let groups = groups(pid, first, &tids, KcmpKind::Sysvsem);
    for thread in &mut live.threads {
        let tid = thread.tid;
        let same = || kcmp(first, tid, KcmpKind::Sysvsem, 0, 0).is_ok_and(Ordering::is_eq);
        let group = groups.iter().find(|group| group.contains(&tid));
        thread.undo = match group {
            Some(group) if group[0] != tid => ThreadUndo::Of(group[0]),
            None if !none && same() => ThreadUndo::Shared,
            _ => ThreadUndo::Own,
        };
    }
}

/// Why threads cannot be made with the tables that they share.
pub(super) fn odd(pid: Pid, representative: Tid, threads: &[Tid]) -> Option<Refusal> {
    let kinds = [KcmpKind::Files, KcmpKind::Fs, KcmpKind::Sysvsem];
    let apart = kinds.map(|kind| groups(pid, representative, threads, kind));
    if apart.iter().all(Vec::is_empty) {
        return None;
    }
    let named = apart.map(|groups| {
        let named = |group: Vec<Tid>| {
            let first = group[0];
            group.into_iter().map(move |tid| (tid, first))
        };
        groups
            .into_iter()
            .flat_map(named)
            .collect::<BTreeMap<_, _>>()
    });
    let undo = Some(representative).filter(|first| !has_no_undo_list(*first));
    let shares_undo = |tid: Tid| {
        undo.filter(|first| kcmp(*first, tid, KcmpKind::Sysvsem, 0, 0).is_ok_and(Ordering::is_eq))
    };
    let contexts = Contexts::of(threads).firsts(threads);
    let [files, directories, undone] = &named;
    let of = |named: &BTreeMap<Tid, Tid>, tid: Tid| named.get(&tid).copied();
    let sharer = |tid: &Tid| Sharer {
        tid: *tid,
        tables: [
            of(files, *tid).or(Some(representative)),
            of(directories, *tid).or(Some(representative)),
            of(undone, *tid).or_else(|| shares_undo(*tid)),
            of(&contexts, *tid),
        ],
    };
    let ended_leader = representative != pid.leader();
    let made = |tid: &&Tid| {
        (ended_leader || **tid != representative)
            && !proc::is_ending(pid, **tid)
            && !proc::is_worker(pid, **tid)
    };
    let sharers: Vec<Sharer> = threads.iter().filter(made).map(sharer).collect();
    let io = Some(representative).filter(|_| !ended_leader);
    let first = [Some(representative), Some(representative), undo, io];
    births(&first, &sharers).err().map(|tid| unlike(pid, tid))
}

fn unlike(pid: Pid, tid: Tid) -> Refusal {
    const WHY: &str = "its descriptors, directories, semaphore undo list and I/O context (CLONE_FILES, CLONE_FS, \
                       CLONE_SYSVSEM, CLONE_IO) are shared by other threads, and no thread that could make it has all \
                       of them: that is not carried";
    refusal(pid, &format!("thread {tid}"), WHY.into())
}

/// Refuses what [`odd`] finds in a running process.
pub(crate) fn verify(pid: Pid, live: &Live) -> Result<(), FreezerError> {
    let found = live.births().map(drop);
    found.map_err(|tid| FreezerError::Refused(vec![unlike(pid, tid)]))
}
