//! Who is lost with somebody: those who share what is made once for all who have it, and what cannot be taken apart.

use super::who::Gone;
use persist_mem::manifest::{DescriptionKind, Live, Manifest, Ring};
use std::collections::{BTreeMap, BTreeSet};
use sys::{Pid, Tid};

/// Adds them.
pub(super) fn extend(manifest: &Manifest, gone: &mut Gone) {
    let bonds = all(manifest);
    let mut todo: Vec<Pid> = gone.processes.iter().copied().collect();
    while let Some(pid) = todo.pop() {
        for other in bonds.get(&pid).into_iter().flatten() {
            if gone.processes.insert(*other) {
                todo.push(*other);
            }
        }
    }
}

/// Each process with those it is bound to.
fn all(manifest: &Manifest) -> BTreeMap<Pid, BTreeSet<Pid>> {
    let lives = || {
        let processes = manifest.processes.iter();
        processes.filter_map(|process| Some((process.pid, process.live()?)))
    };
    let mut of_threads: BTreeMap<Tid, Pid> = BTreeMap::new();
    for (pid, live) in lives() {
        of_threads.extend(live.all_threads().map(|thread| (thread.tid, pid)));
    }
    let mut bonds: BTreeMap<Pid, BTreeSet<Pid>> = BTreeMap::new();
    let mut bind = |one: Pid, other: Pid| {
        bonds.entry(one).or_default().insert(other);
        bonds.entry(other).or_default().insert(one);
    };
    for (pid, live) in lives() {
        for other in shares_with(live) {
            bind(pid, other);
        }
        let tracer = live.traced.as_ref().map(|traced| traced.tracer);
        if let Some(other) = tracer.and_then(|tracer| of_threads.get(&tracer)) {
            bind(pid, *other);
        }
    }
    for description in &manifest.descriptions {
        let DescriptionKind::Ring(ring) = &description.kind else {
            continue;
        };
        let (tids, pids) = users(ring);
        let holds = |files: &[persist_mem::manifest::Descriptor]| {
            files
                .iter()
                .any(|entry| entry.description == description.id)
        };
        let holders = manifest.tables().filter(|table| holds(table.files));
        let mut together: BTreeSet<Pid> = holders.map(|table| table.pid).collect();
        together.extend(tids.iter().filter_map(|tid| of_threads.get(tid)));
        together.extend(pids);
        let mut together = together.into_iter();
        if let Some(first) = together.next() {
            together.for_each(|other| bind(first, other));
        }
    }
    bonds
}

/// Whose tables it has, and who waits in vfork(2) for whom.
fn shares_with(live: &Live) -> impl Iterator<Item = Pid> {
    let tables = [
        live.mm_of,
        live.actions_of,
        live.files_of,
        live.fs_of,
        live.undo_of,
    ];
    let children = live.vforks.iter().map(|waiting| waiting.child);
    let waits = live.threads.iter().filter_map(|thread| thread.child_wait);
    let children = children.chain(waits.map(|wait| wait.child));
    tables.into_iter().flatten().chain(children)
}

/// Threads and processes that a ring of io_uring names.
fn users(ring: &Ring) -> (Vec<Tid>, Vec<Pid>) {
    let mut tids: Vec<Tid> = ring.requests.iter().map(|request| request.tid).collect();
    tids.extend(ring.submitter);
    tids.extend(ring.names.iter().map(|(tid, _)| *tid));
    let mut pids: Vec<Pid> = ring.groups.iter().map(|group| group.pid).collect();
    pids.extend(ring.buffers_of);
    pids.extend(ring.poller.map(|poller| poller.pid));
    (tids, pids)
}
