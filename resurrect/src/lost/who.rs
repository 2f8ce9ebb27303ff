//! Whom an error is about.

use crate::error::Subject;
use persist_mem::manifest::{
    Backing, Description, DescriptionId, DescriptionKind, Descriptor, Live, Manifest, PipeId,
    Process, RemovedId, SocketState, TerminalId, UnixLink,
};
use std::collections::BTreeSet;
use sys::Pid;

/// Who and what is not to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) processes: BTreeSet<Pid>,
    pub(super) descriptions: BTreeSet<DescriptionId>,
    pub(super) objects: BTreeSet<u32>,
    pub(super) terminals: BTreeSet<TerminalId>,
    pub(super) pipes: BTreeSet<PipeId>,
    pub(super) queues: BTreeSet<u32>,
    pub(super) removed: BTreeSet<RemovedId>,
}

/// What cannot be made, and all who have it.
pub(super) fn of(manifest: &Manifest, subject: Subject) -> Gone {
    let mut gone = Gone::default();
    match subject {
        Subject::Process(id) => gone.processes.extend(process_of(manifest, id)),
        Subject::Description(id) => gone.descriptions.extend([id]),
        Subject::Object(id) => gone.objects.extend([id]),
        Subject::Terminal(id) => gone.terminals.extend([id]),
        Subject::Pipe(id) => gone.pipes.extend([id]),
        Subject::Queue(id) => gone.queues.extend([id]),
        Subject::Removed(id) => gone.removed.extend(removed_with(manifest, id)),
    }
    let descriptions = manifest.descriptions.iter();
    let on_gone = descriptions.filter(|description| gone.is_under(&description.kind));
    let on_gone: Vec<DescriptionId> = on_gone.map(|description| description.id).collect();
    gone.descriptions.extend(on_gone);
    needing(manifest, &mut gone.descriptions);
    let lives = manifest.processes.iter();
    let lives = lives.filter_map(|process| Some((process.pid, process.live()?)));
    let users = lives.filter(|(_, live)| gone.is_used_by(live));
    let holders = manifest.tables().filter(|table| gone.is_in(table.files));
    let all: Vec<Pid> = users
        .map(|(pid, _)| pid)
        .chain(holders.map(|table| table.pid))
        .collect();
    gone.processes.extend(all);
    gone
}

impl Gone {
    /// Whether a description is open on something of it.
    fn is_under(&self, kind: &DescriptionKind) -> bool {
        match kind {
            DescriptionKind::Memfd { object } | DescriptionKind::Deleted { object } => {
                self.objects.contains(object)
            }
            DescriptionKind::Terminal { terminal, .. }
            | DescriptionKind::PtyMaster { terminal, .. } => self.terminals.contains(terminal),
            DescriptionKind::Pipe(pipe) | DescriptionKind::Fifo { pipe, .. } => {
                self.pipes.contains(pipe)
            }
            DescriptionKind::MessageQueue { queue } => self.queues.contains(queue),
            DescriptionKind::Removed(directory) => self.removed.contains(directory),
            _ => false,
        }
    }

    /// Whether a process has something of it other than by a descriptor.
    fn is_used_by(&self, live: &Live) -> bool {
        let objects = live.mm.vmas.iter().filter_map(|vma| match vma.backing {
            Backing::Object { object, .. } => Some(object),
            _ => None,
        });
        let mut objects = objects.chain(live.mm.exe_object);
        let own = live
            .threads
            .iter()
            .filter_map(|thread| thread.directories.as_ref()?.own());
        let mut within = core::iter::once(&live.directories).chain(own);
        objects.any(|object| self.objects.contains(&object))
            || within.any(|all| all.cwd_removed.is_some_and(|id| self.removed.contains(&id)))
    }

    fn is_in(&self, files: &[Descriptor]) -> bool {
        let mut files = files.iter();
        files.any(|entry| self.descriptions.contains(&entry.description))
    }
}

/// A removed directory with all that were below it; they come behind it.
fn removed_with(manifest: &Manifest, id: RemovedId) -> BTreeSet<RemovedId> {
    let mut all = BTreeSet::from([id]);
    for directory in &manifest.removed {
        if directory.within.is_some_and(|above| all.contains(&above)) {
            all.insert(directory.id);
        }
    }
    all
}

/// The process with an id, or with a thread of that id.
fn process_of(manifest: &Manifest, id: Pid) -> Option<Pid> {
    let is = |process: &&Process| {
        let mut threads = process.live().into_iter().flat_map(Live::all_threads);
        process.pid == id || threads.any(|thread| thread.tid.0 == id.0)
    };
    manifest
        .processes
        .iter()
        .find(is)
        .map(|process| process.pid)
}

/// Adds those that cannot be made without one that cannot.
fn needing(manifest: &Manifest, gone: &mut BTreeSet<DescriptionId>) {
    let tables = manifest.tables();
    let held = tables.flat_map(|table| table.files.iter().map(|entry| entry.description));
    let held: BTreeSet<DescriptionId> = held.collect();
    loop {
        let before = gone.len();
        for description in &manifest.descriptions {
            if needed_by(description, &held).any(|id| gone.contains(&id)) {
                gone.insert(description.id);
            }
        }
        if gone.len() == before {
            return;
        }
    }
}

/// What a description holds or is connected to, but for what it can be without: targets of an epoll that somebody is
/// lost with, the other end of a unix socket, which is closed then.
fn needed_by(
    description: &Description,
    held: &BTreeSet<DescriptionId>,
) -> impl Iterator<Item = DescriptionId> {
    let can_go = |id: &DescriptionId| match &description.kind {
        DescriptionKind::Epoll { .. } => held.contains(id),
        DescriptionKind::Socket(socket) => matches!(
            &socket.state,
            SocketState::Unix(unix) if unix.link == UnixLink::Connected(*id)
        ),
        _ => false,
    };
    let named = description.kind.named();
    let needed: Vec<DescriptionId> = named.into_iter().filter(|id| !can_go(id)).collect();
    needed.into_iter()
}
