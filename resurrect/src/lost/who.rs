//! Whom an error is about.

use crate::error::Subject;
use persist_mem::manifest::{
    Backing, Description, DescriptionId, DescriptionKind, Live, Manifest, Process, SocketState,
    TerminalId, UnixLink,
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
}

/// What cannot be made, and all who have it.
pub(super) fn of(manifest: &Manifest, subject: Subject) -> Gone {
    let mut gone = Gone::default();
    match subject {
        Subject::Process(id) => gone.processes.extend(process_of(manifest, id)),
        Subject::Description(id) => {
            gone.descriptions.insert(id);
        }
        Subject::Object(id) => {
            gone.objects.insert(id);
        }
        Subject::Terminal(id) => {
            gone.terminals.insert(id);
        }
    }
    let of_gone = |kind: &DescriptionKind| match kind {
        DescriptionKind::Memfd { object } | DescriptionKind::Deleted { object } => {
            gone.objects.contains(object)
        }
        DescriptionKind::Terminal { terminal, .. }
        | DescriptionKind::PtyMaster { terminal, .. } => gone.terminals.contains(terminal),
        _ => false,
    };
    let descriptions = manifest.descriptions.iter();
    let on_gone = descriptions.filter(|description| of_gone(&description.kind));
    let on_gone: Vec<DescriptionId> = on_gone.map(|description| description.id).collect();
    gone.descriptions.extend(on_gone);
    needing(manifest, &mut gone.descriptions);
    let has = |live: &Live| {
        let objects = live.mm.vmas.iter().filter_map(|vma| match vma.backing {
            Backing::Object { object, .. } => Some(object),
            _ => None,
        });
        let mut objects = objects.chain(live.mm.exe_object);
        objects.any(|object| gone.objects.contains(&object))
    };
    let lives = manifest.processes.iter();
    let lives = lives.filter_map(|process| Some((process.pid, process.live()?)));
    let mapping = lives.filter(|(_, live)| has(live)).map(|(pid, _)| pid);
    let holds = |files: &[persist_mem::manifest::Descriptor]| {
        let mut files = files.iter();
        files.any(|entry| gone.descriptions.contains(&entry.description))
    };
    let tables = manifest.tables().filter(|table| holds(table.files));
    gone.processes
        .extend(mapping.chain(tables.map(|table| table.pid)));
    gone
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
