//! A manifest without some processes, and without what cannot be made.

use super::who::Gone;
use persist_mem::manifest::{
    Description, DescriptionId, DescriptionKind, Live, LockHolder, Manifest, Process, Remains,
    SignalOwner, SocketState, State, Thread, Undo, UnixLink, after_undo,
};
use std::collections::BTreeSet;
use sys::{Pid, Tid};

const F_OWNER_TID: i32 = 0;

/// Makes it.
pub(super) fn make(manifest: &Manifest, gone: &Gone) -> Manifest {
    let mut less = manifest.clone();
    // What is gone with the others: their threads but for their leaders, which stay for a while.
    let mut ended = BTreeSet::new();
    for process in &mut less.processes {
        if gone.processes.contains(&process.pid)
            && let State::Live(live) = &process.state
        {
            let tids = live.all_threads().map(|thread| thread.tid);
            ended.extend(tids.filter(|tid| *tid != process.pid.leader()));
            process.state = lost(process.pid, live);
        }
    }
    for process in &mut less.processes {
        forget(process, gone, &ended);
    }
    less.terminals
        .retain(|terminal| !gone.terminals.contains(&terminal.id));
    less.pipes.retain(|pipe| !gone.pipes.contains(&pipe.id));
    less.posix_queues
        .retain(|queue| !gone.queues.contains(&queue.id));
    less.removed
        .retain(|directory| !gone.removed.contains(&directory.id));
    less.shared_objects
        .retain(|object| !gone.objects.contains(&object.id));
    for description in &mut less.descriptions {
        part(description, gone, &ended);
    }
    let kept = reachable(&less, gone);
    less.descriptions
        .retain(|description| kept.contains(&description.id));
    less.locks.retain(|lock| match lock.holder {
        LockHolder::Whole(id) | LockHolder::Ofd(id) | LockHolder::Lease(id) => kept.contains(&id),
        LockHolder::Process { pid, .. } | LockHolder::Mapping { pid, .. } => {
            !is_gone(pid, gone, &ended)
        }
    });
    less.notices
        .retain(|notice| !is_gone(notice.pid, gone, &ended));
    undo_semaphores(&mut less, gone);
    for queue in &mut less.posix_queues {
        let notified = queue.notification.as_ref();
        if notified.is_some_and(|to| gone.processes.contains(&to.owner)) {
            queue.notification = None;
        }
    }
    less
}

/// Does what the ends of the lost would do to semaphores (`SEM_UNDO`). On the kernel where the tree was saved their
/// ends have done so, and the manifest has no semaphores.
fn undo_semaphores(less: &mut Manifest, gone: &Gone) {
    let undo = core::mem::take(&mut less.undo);
    let (lost, mut kept): (Vec<Undo>, Vec<Undo>) = undo
        .into_iter()
        .partition(|undo| gone.processes.contains(&undo.pid));
    for (undo, by) in lost
        .iter()
        .flat_map(|undo| undo.members.iter().map(move |by| (undo, by)))
    {
        let mut sets = less.semaphores.iter_mut();
        let set = sets.find(|set| set.perm.id == undo.set);
        let Some(semaphore) = set.and_then(|set| set.members.get_mut(usize::from(by.number)))
        else {
            continue;
        };
        if let Some(after) = after_undo(semaphore.0, &[by.adjustment]) {
            *semaphore = (after, undo.pid);
        }
        let others = kept.iter_mut().filter(|other| other.set == undo.set);
        let others = others.flat_map(|other| &mut other.members);
        for other in others.filter(|other| other.number == by.number) {
            (other.value, other.last) = *semaphore;
        }
    }
    less.undo = kept;
}

/// Whether an id is that of a process that is lost, or of a thread of one.
fn is_gone(id: Pid, gone: &Gone, ended: &BTreeSet<Tid>) -> bool {
    gone.processes.contains(&id) || ended.contains(&Tid(id.0))
}

/// What takes a process's place: it is called as it was, and belongs to whom it did.
fn lost(pid: Pid, live: &Live) -> State {
    let leader = live.all_threads().find(|thread| thread.tid == pid.leader());
    let ended = live.ended_leader.as_ref();
    let remains = match (leader, ended) {
        (Some(leader), _) => looks(leader),
        (None, Some(ended)) => ended.remains.clone(),
        (None, None) => Remains::default(),
    };
    State::Lost {
        child_subreaper: live.child_subreaper,
        remains: Box::new(remains),
    }
}

fn looks(leader: &Thread) -> Remains {
    Remains {
        comm: leader.comm.clone(),
        sigmask: 0,
        credentials: leader.credentials.clone(),
        scheduling: persist_mem::manifest::Scheduling::default(),
        no_new_privs: false,
        personality: 0,
    }
}

/// What others have of those that are lost.
fn forget(process: &mut Process, gone: &Gone, ended: &BTreeSet<Tid>) {
    if process
        .parent_thread
        .is_some_and(|tid| ended.contains(&tid))
    {
        process.parent_thread = None;
    }
    if let State::Live(live) = &mut process.state {
        live.reports
            .retain(|(child, _)| !gone.processes.contains(child));
    }
}

/// Takes out of a description what is not there any more and what it can be without.
fn part(description: &mut Description, gone: &Gone, ended: &BTreeSet<Tid>) {
    let to_thread = |owner: &SignalOwner| owner.kind == F_OWNER_TID;
    let owner = description.owner.filter(to_thread);
    if owner.is_some_and(|owner| ended.contains(&Tid(owner.id))) {
        description.owner = None;
    }
    match &mut description.kind {
        DescriptionKind::Epoll { targets, .. } => {
            targets.retain(|target| !gone.descriptions.contains(&target.description));
        }
        DescriptionKind::PidFd { target, .. } => {
            *target = target.filter(|target| !ended.contains(&Tid(target.0)));
        }
        DescriptionKind::Socket(socket) => {
            if let SocketState::Unix(unix) = &mut socket.state
                && let UnixLink::Connected(peer) = &unix.link
                && gone.descriptions.contains(peer)
            {
                unix.link = UnixLink::Gone {
                    name: Vec::new(),
                    reset: false,
                };
            }
        }
        _ => {}
    }
}

/// Descriptions that somebody still has, or that one of those names: the other end of a socket is made and closed.
fn reachable(manifest: &Manifest, gone: &Gone) -> BTreeSet<DescriptionId> {
    let tables = manifest.tables();
    let held = tables.flat_map(|table| table.files.iter().map(|entry| entry.description));
    let mapped = manifest
        .descriptions
        .iter()
        .filter(|one| is_mapped(manifest, one));
    let mut todo: Vec<DescriptionId> = held.chain(mapped.map(|one| one.id)).collect();
    let mut kept = BTreeSet::new();
    while let Some(id) = todo.pop() {
        if gone.descriptions.contains(&id) || !kept.insert(id) {
            continue;
        }
        if let Some(description) = manifest.description(id) {
            todo.extend(description.kind.named());
        }
    }
    kept
}

/// Whether somebody has mapped a ring, whose descriptor may be closed.
fn is_mapped(manifest: &Manifest, description: &Description) -> bool {
    let inode = match &description.kind {
        DescriptionKind::Ring(ring) => Some(ring.inode),
        DescriptionKind::Socket(socket) => match &socket.state {
            SocketState::Packet(packet) => packet.rings.as_ref().map(|rings| rings.inode),
            _ => None,
        },
        _ => None,
    };
    let lives = manifest.processes.iter().filter_map(Process::live);
    let mut rings = lives.flat_map(|live| live.mm.rings.iter().chain(&live.mm.packet_rings));
    inode.is_some() && rings.any(|mapping| Some(mapping.inode) == inode)
}
