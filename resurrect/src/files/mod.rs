//! Open file descriptions: one module for each kind, each with the same name in `freezer::files`.
//!
//! Every description is opened by this process ([`open`]); a process under construction takes copies of
//! the descriptors that its table names ([`hand_over`]), so what was shared is shared again. What must be
//! done by the process itself comes when its table is whole ([`inside`]).

mod bpf_map;
mod brief;
mod creator;
mod deleted;
mod device;
mod dnotify;
pub(crate) mod epoll;
mod eventfd;
mod external;
mod fanotify;
mod fifo;
pub(crate) mod garbage;
mod gone;
mod handle;
mod inotify;
mod kmsg;
mod listener;
mod located;
mod lock;
mod memfd;
pub(crate) mod mqueue;
pub(crate) mod owner;
mod parcel;
pub(crate) mod path;
mod pidfd;
mod pipe;
pub(crate) mod pseudo;
mod ready;
mod removed;
mod restricted;
mod ruleset;
mod signalfd;
mod socket;
pub(crate) mod terminal;
mod timerfd;
mod tunnel;
pub(crate) mod uring;
pub(crate) mod userfault;
pub(crate) mod vanished;

use crate::ResurrectError;
use crate::calls::{Calls, nr};
use crate::error::Subject;
use crate::objects::TMPFILE;
use crate::restore::Restore;
use nix::fcntl::OFlag;
use persist_mem::manifest::{
    Description, DescriptionId, DescriptionKind, Descriptor, FileTable, PipeId, RemovedId,
};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use sys::Errno;
use sys::batch::{Arg, Batch};

const F_SETFD: i32 = 2;
/// `O_APPEND`, `O_NONBLOCK`, `O_DIRECT`, `O_NOATIME`: what fcntl(2) changes. `O_ASYNC` needs an owner first.
const SETTABLE: u32 = 0o2000 | 0o4000 | 0o40_000 | 0o1_000_000;
/// `O_CREAT`, `O_EXCL`, `O_TRUNC`.
const ONCE: u32 = 0o100 | 0o200 | 0o1000;
/// Set by open(2), and not by what makes descriptors otherwise; F_GETFL shows it.
const O_LARGEFILE: u32 = 0o100_000;
const O_ASYNC: u32 = 0o20_000;
const O_DIRECTORY: u32 = 0o200_000;
const O_PATH: u32 = 0o10_000_000;
const O_CLOEXEC: i32 = 0o2_000_000;

/// What this process has opened for the others.
#[derive(Debug, Default)]
pub(crate) struct Files {
    opened: BTreeMap<DescriptionId, OwnedFd>,
    /// Both ends of pipes, until every description is open.
    pipes: BTreeMap<PipeId, pipe::Ends>,
    /// POSIX message queues with a name, until every description is open.
    queues: mqueue::Queues,
    terminals: terminal::Terminals,
    removed: removed::Directories,
    /// A directory in place of those that this kernel has not.
    vanished: Option<OwnedFd>,
}

impl Files {
    /// This process's descriptor of a description.
    pub(crate) fn opened(&self, id: DescriptionId) -> Option<i32> {
        self.opened.get(&id).map(AsRawFd::as_raw_fd)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        sys::fds::close_all(core::mem::take(&mut self.opened).into_values());
    }
}

/// A description that is being opened.
pub(crate) struct Opening<'a, 'b> {
    pub(crate) restore: &'a Restore<'b>,
    pub(crate) description: &'a Description,
}

impl<'a> Opening<'a, '_> {
    /// Flags to open it with.
    pub(crate) fn flags(&self) -> OFlag {
        flags(self.description)
    }
    /// Names the description in errors.
    pub(crate) fn failed(
        &self,
        doing: &'static str,
    ) -> impl FnOnce(Errno) -> ResurrectError + use<'a> {
        failed(self.description, doing)
    }
}

/// Flags to open it with: without those that are for the first open only, and without `O_ASYNC`,
/// which must be set by a call of its own to take effect.
fn flags(description: &Description) -> OFlag {
    let once = match description.flags & TMPFILE {
        0 => ONCE,
        // It made a file that has been given a name since.
        _ => ONCE | TMPFILE | O_DIRECTORY,
    };
    let flags = description.flags & !(once | O_ASYNC);
    OFlag::from_bits_retain(flags.cast_signed()) | OFlag::O_NOCTTY | OFlag::O_CLOEXEC
}

/// Names the description in errors.
fn failed<'a>(
    description: &'a Description,
    doing: &'static str,
) -> impl FnOnce(Errno) -> ResurrectError + use<'a> {
    move |errno| ResurrectError::Description {
        subject: Some(Subject::Description(description.id)),
        what: describe(description),
        doing,
        errno,
    }
}

/// What a description is, for people.
fn describe(description: &Description) -> String {
    let id = description.id.0;
    match &description.kind {
        DescriptionKind::Path(file) => file.to_string(),
        DescriptionKind::Device { path, .. } => String::from_utf8_lossy(path).into_owned(),
        kind => {
            let text = format!("{kind:?}");
            let name = text.split([' ', '(', '{']).next().unwrap_or("?");
            format!("number {id} ({name})")
        }
    }
}

/// Opens every description of the manifest.
pub(crate) fn open(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    restore.files.pipes = pipe::make(manifest)?;
    deleted::open_makers(restore)?;
    mqueue::make(restore)?;
    fifo::open_all(restore)?;
    removed::make(restore)?;
    pidfd::open_gone(restore)?;
    userfault::open_all(restore)?;
    listener::open_all(restore)?;
    let (late, all): (Vec<_>, Vec<_>) = manifest
        .descriptions
        .iter()
        .partition(|description| path::of_socket(description));
    path::open_many(restore, &all)?;
    open_each(restore, all)?;
    // An end that nobody has must not stay open here.
    restore.files.pipes.clear();
    mqueue::finish(restore);
    terminal::close(restore)?;
    tunnel::queue_packets(restore)?;
    socket::open_all(restore)?;
    open_each(restore, late)?;
    restricted::open_all(restore)?;
    set_flags(restore)
}

/// What watches others (inotify(7), fanotify(7)) begins to, now that names were made and taken away, and what
/// this process alone had open is closed.
pub(crate) fn watch(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    restore.files.removed = removed::Directories::default();
    for description in &restore.manifest.descriptions {
        let opening = Opening {
            restore,
            description,
        };
        let Some(fd) = restore.files.opened.get(&description.id) else {
            continue;
        };
        let done = match &description.kind {
            DescriptionKind::Inotify { watches, next, .. } => {
                inotify::watch(&opening, fd, watches, *next)
            }
            DescriptionKind::Fanotify { marks, .. } => fanotify::watch(&opening, fd, marks),
            _ => Ok(()),
        };
        done.map_err(|error| error.about(Subject::Description(description.id)))?;
    }
    dnotify::watch(restore)
}

/// Opens those that are not open yet.
fn open_each(
    restore: &mut Restore<'_>,
    descriptions: Vec<&Description>,
) -> Result<(), ResurrectError> {
    for description in descriptions {
        // Sockets are made together.
        if restore.files.opened.contains_key(&description.id)
            || matches!(description.kind, DescriptionKind::Socket(_))
        {
            continue;
        }
        let opening = Opening {
            restore,
            description,
        };
        let about = Subject::Description(description.id);
        let fd = open_one(&opening).or_else(|why| vanished::instead(&opening, why));
        let fd = fd.map_err(|error| error.about(about))?;
        restore.files.opened.insert(description.id, fd);
    }
    Ok(())
}

/// Status flags come when everything is open and filled: a call that would wait is an error till then.
fn set_flags(restore: &Restore<'_>) -> Result<(), ResurrectError> {
    for description in &restore.manifest.descriptions {
        let made_with_flags = description.flags & O_PATH != 0
            || matches!(
                description.kind,
                DescriptionKind::Path(_)
                    | DescriptionKind::External { .. }
                    | DescriptionKind::Deleted { .. }
                    | DescriptionKind::Device { .. }
                    | DescriptionKind::Handle { .. }
                    | DescriptionKind::Pseudo { .. }
                    | DescriptionKind::Terminal { hung_up: true, .. }
            );
        let Some(fd) = restore.files.opened.get(&description.id) else {
            continue;
        };
        let opening = Opening {
            restore,
            description,
        };
        if description.hint != 0 {
            let told = sys::files::set_write_hint(fd, description.hint);
            told.map_err(opening.failed("setting how long its data is expected to live"))?;
        }
        if !made_with_flags {
            sys::fds::set_status_flags(fd, description.flags & SETTABLE)
                .map_err(opening.failed("setting its flags"))?;
        }
    }
    Ok(())
}

fn open_one(opening: &Opening<'_, '_>) -> Result<OwnedFd, ResurrectError> {
    match &opening.description.kind {
        DescriptionKind::External { number } => external::open(opening, *number),
        DescriptionKind::Path(file) => path::open(opening.description, file),
        DescriptionKind::Device {
            path,
            rdev,
            removed,
        } => device::open(opening, path, *rdev, *removed),
        DescriptionKind::Gone { path, node, owner } => gone::open(opening, path, node, *owner),
        DescriptionKind::Handle {
            file,
            link,
            handle,
            mount,
            unlinked,
        } => {
            let elsewhere = handle::Elsewhere {
                file,
                unlinked: *unlinked,
                link: link.as_deref(),
                handle: handle.as_ref(),
                mount,
            };
            handle::open(opening, &elsewhere)
        }
        DescriptionKind::Pseudo { path, trigger, .. } => pseudo::open(opening, path, *trigger),
        DescriptionKind::Removed(id) => removed::open(opening, *id),
        DescriptionKind::Terminal { terminal, path, .. } => {
            terminal::open(opening, *terminal, path)
        }
        DescriptionKind::Kmsg { path, next, boot } => kmsg::open(opening, path, *next, boot),
        DescriptionKind::Fanotify {
            flags,
            event_flags,
            creator,
            ..
        } => fanotify::open(opening, (*flags, *event_flags), *creator),
        DescriptionKind::Inotify {
            unread, creator, ..
        } => inotify::open(opening, unread, *creator),
        DescriptionKind::PidFd {
            target: Some(target),
            ..
        } => pidfd::open(opening, *target),
        DescriptionKind::Pipe(id) => pipe::open(opening, *id),
        DescriptionKind::MessageQueue { queue } => mqueue::open(opening, *queue),
        DescriptionKind::Memfd { object } => memfd::open(opening, *object),
        DescriptionKind::Deleted { object } => deleted::open(opening, *object),
        DescriptionKind::Tunnel {
            path,
            interface,
            detached,
            ..
        } => tunnel::open(opening, path, interface.as_deref(), *detached),
        DescriptionKind::Socket(_) => Err(opening.failed("opening it")(Errno::ENOSYS)),
        // Opened before, with what they belong to.
        DescriptionKind::Fifo { .. }
        | DescriptionKind::PtyMaster { .. }
        | DescriptionKind::Userfault(_)
        | DescriptionKind::SeccompListener { .. }
        | DescriptionKind::PidFd { target: None, .. } => {
            Err(opening.failed("opening it")(Errno::ENOENT))
        }
        DescriptionKind::EventFd { count, semaphore } => eventfd::open(opening, *count, *semaphore),
        DescriptionKind::BpfMap(map) => bpf_map::open(opening, map),
        DescriptionKind::Ruleset(layer) => ruleset::open(opening, layer),
        DescriptionKind::SignalFd { mask } => signalfd::open(opening, *mask),
        DescriptionKind::TimerFd { .. } => timerfd::open(opening),
        DescriptionKind::Ring(ring) => uring::open(opening, ring),
        DescriptionKind::Epoll { busy_poll, .. } => epoll::open(opening, busy_poll.as_ref()),
    }
}

/// This process's descriptor of a removed directory.
pub(crate) fn removed_directory(
    restore: &Restore<'_>,
    id: RemovedId,
) -> Result<i32, ResurrectError> {
    let fd = restore.files.removed.get(id).map(AsRawFd::as_raw_fd);
    fd.ok_or(Errno::ENOENT)
        .map_err(ResurrectError::own("finding a removed directory"))
}

/// Fills every table of descriptors.
pub(crate) fn hand_over(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    let mut parcel = None;
    let mut rest = BTreeMap::new();
    for table in manifest.tables().filter(|table| !table.shared) {
        let opened = |f: &&Descriptor| restore.files.opened.contains_key(&f.description);
        let wanted: Vec<&Descriptor> = table.files.iter().filter(opened).collect();
        let mut done = 0;
        if wanted.len() >= parcel::MANY {
            let parcel = parcel.get_or_insert_with(|| parcel::Parcel::new(manifest));
            if let Some(parcel) = parcel {
                done = parcel.hand_over(restore, table, &wanted)?;
            }
        }
        let batch = take(restore, table, &wanted, done)?;
        rest.insert((table.pid, table.thread), batch);
    }
    restore.together("taking descriptors", rest).map(drop)
}

/// Has a process take the descriptors of its table, and number them. The first `there` it has already, all of them
/// closed on exec.
fn take(
    restore: &mut Restore<'_>,
    table: FileTable<'_>,
    wanted: &[&Descriptor],
    there: usize,
) -> Result<Batch, ResurrectError> {
    let pidfd = restore.self_pidfd.as_raw_fd();
    let theirs = wanted.iter().map(|f| restore.files.opened(f.description));
    let theirs: Vec<Option<i32>> = theirs.collect();
    let mut calls = Calls::new(table.pid, "taking its descriptors", restore.keeper(table)?);
    let keep = |calls: &mut Calls<'_>, fd: Arg| {
        let args = [fd, F_SETFD.into(), 0.into()];
        calls.batch().call("keeping it over exec", nr::FCNTL, args);
    };
    for file in wanted[..there].iter().filter(|file| !file.cloexec) {
        keep(&mut calls, file.fd.into());
        calls.breathe()?;
    }
    let mut lowest = i32::try_from(there).unwrap_or(i32::MAX);
    for (file, theirs) in wanted.iter().zip(theirs).skip(there) {
        let Some(theirs) = theirs else { continue };
        // Where it is not behind all others.
        if lowest == pidfd {
            lowest += 1;
        }
        let args = [pidfd.into(), theirs.into(), 0.into()];
        let got = calls
            .batch()
            .call("taking a descriptor", nr::PIDFD_GETFD, args);
        // Numbers come in ascending order, so the kernel's choice, the lowest free one, is known.
        if file.fd == lowest {
            lowest += 1;
            if !file.cloexec {
                keep(&mut calls, got.into());
            }
        } else {
            let flags = if file.cloexec { O_CLOEXEC } else { 0 };
            let args = [got.into(), file.fd.into(), flags.into()];
            calls.batch().call("numbering a descriptor", nr::DUP3, args);
            calls
                .batch()
                .call("closing a copy", nr::CLOSE, [got.into()]);
        }
        calls.breathe()?;
    }
    Ok(calls.rest())
}

/// What each process does itself with its table.
pub(crate) fn inside(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    lock::take_whole(restore)?;
    epoll::watch_all(restore)?;
    lock::take_ranges(restore)
}

/// Leases that nobody could have as long as this process had the file.
pub(crate) fn leases(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    lock::take_last(restore)
}

/// Closes every process's way back to this one.
pub(crate) fn close_way_back(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let pidfd = restore.self_pidfd.as_raw_fd();
    let manifest = restore.manifest;
    let mut batches = BTreeMap::new();
    for table in manifest.tables().filter(|table| !table.shared) {
        let mut batch = Batch::new();
        batch.call("closing a pidfd", nr::CLOSE, [pidfd.into()]);
        batches.insert((table.pid, table.thread), batch);
    }
    restore.together("closing ways back", batches)?;
    crate::thread::landlock::end_bridges(restore)
}
