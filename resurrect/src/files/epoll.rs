//! epoll_create(2). What it watches is registered inside a process that has it: the kernel remembers the
//! descriptor's number, and a signalfd is bound to the signals of who registers it.

use super::{O_CLOEXEC, Opening, ready, timerfd};
use crate::ResurrectError;
use crate::calls::{Calls, nr, run};
use crate::error::Subject;
use crate::restore::Restore;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use persist_mem::manifest::{DescriptionId, DescriptionKind, EpollTarget, FileTable, Manifest};
use std::os::fd::{AsRawFd, OwnedFd};
use sys::batch::Batch;

const EPOLL_CTL_ADD: i32 = 1;
const EPOLL_CTL_MOD: i32 = 3;
const F_DUPFD_CLOEXEC: i32 = 1030;

pub(super) fn open(
    opening: &Opening<'_, '_>,
    busy_poll: Option<&[u8; 8]>,
) -> Result<OwnedFd, ResurrectError> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(opening.failed("making it"))?;
    if let Some(params) = busy_poll {
        sys::epoll::set_busy_poll(&epoll.0, params).map_err(opening.failed("its settings"))?;
    }
    Ok(epoll.0)
}

/// Event bits that are no events: `EPOLLET`, `EPOLLONESHOT`, `EPOLLWAKEUP`, `EPOLLEXCLUSIVE`.
const MODES: u32 = 0xf000_0000;
const EPOLLONESHOT: u32 = 1 << 30;
const EPOLLET: u32 = 1 << 31;
/// `EPOLLIN | EPOLLPRI | EPOLLOUT`.
const ANY: u32 = 1 | 2 | 4;

/// Who registers.
struct Registrar<'a> {
    epoll: i32,
    /// The descriptors that it has.
    table: FileTable<'a>,
    /// The way to this process's descriptors.
    pidfd: i32,
}

/// Registers what all epolls watch. Inner ones first: what happens to them later would be news to those
/// that watch them.
pub(super) fn watch_all(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    let mut all: Vec<(usize, DescriptionId, &[EpollTarget])> = Vec::new();
    for description in &manifest.descriptions {
        if let DescriptionKind::Epoll { targets, .. } = &description.kind {
            all.push((depth(manifest, targets, 0), description.id, targets));
        }
    }
    all.sort_by_key(|(depth, ..)| *depth);
    for (_, id, targets) in all {
        match manifest.holder(id) {
            Some((table, fd)) => watch(restore, table, fd, targets)?,
            None => watch_in_flight(restore, id, targets)?,
        }
    }
    Ok(())
}

/// Whether some epoll can only be filled by descriptors under numbers that nobody uses: one that is in flight, or that
/// watches what its holder has closed or replaced since.
pub(crate) fn needs_numbers(manifest: &Manifest) -> bool {
    manifest.descriptions.iter().any(|description| {
        let DescriptionKind::Epoll { targets, .. } = &description.kind else {
            return false;
        };
        let Some((table, _)) = manifest.holder(description.id) else {
            return true;
        };
        let has = |target: &EpollTarget| {
            let entry = table.files.iter().find(|entry| entry.fd == target.fd);
            entry.is_some_and(|entry| entry.description == target.description)
        };
        !targets.iter().all(has)
    })
}

/// How many epolls are below one another.
fn depth(manifest: &Manifest, targets: &[EpollTarget], above: usize) -> usize {
    /// More than the kernel allows (fs/eventpoll.c, `EP_MAX_NESTS`).
    const DEEPEST: usize = 8;
    let inner =
        targets.iter().filter_map(
            |target| match &manifest.description(target.description)?.kind {
                DescriptionKind::Epoll { targets, .. } if above < DEEPEST => {
                    Some(1 + depth(manifest, targets, above + 1))
                }
                _ => None,
            },
        );
    inner.max().unwrap_or(0)
}

/// Registers what an epoll watches that is in flight: through a process that is given it for that time.
fn watch_in_flight(
    restore: &mut Restore<'_>,
    id: DescriptionId,
    targets: &[EpollTarget],
) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    let first = manifest.tables().find(|table| !table.shared);
    let (Some(table), Some(epoll)) = (first, restore.files.opened.get(&id)) else {
        return Ok(());
    };
    let pid = table.pid;
    let numbers = table.files.iter().map(|entry| entry.fd);
    let numbers = numbers.chain(targets.iter().map(|target| target.fd));
    // The copy may get the next number; it ends with the one behind that.
    let number = numbers.max().unwrap_or(0) + 2;
    let mut batch = Batch::new();
    let args = [
        restore.self_pidfd.as_raw_fd().into(),
        epoll.as_raw_fd().into(),
        0.into(),
    ];
    let got = batch.call("taking an epoll", nr::PIDFD_GETFD, args);
    let args = [got.into(), number.into(), O_CLOEXEC.into()];
    batch.call("numbering an epoll", nr::DUP3, args);
    batch.call("closing a copy", nr::CLOSE, [got.into()]);
    run(pid, DOING, restore.keeper(table)?, &batch)?;
    watch(restore, table, number, targets)?;
    let mut batch = Batch::new();
    batch.call("closing a copy", nr::CLOSE, [number.into()]);
    run(pid, DOING, restore.keeper(table)?, &batch).map(drop)
}

/// Registers what the epoll with number `fd` of a table watches.
fn watch(
    restore: &mut Restore<'_>,
    table: FileTable<'_>,
    fd: i32,
    targets: &[EpollTarget],
) -> Result<(), ResurrectError> {
    let registrar = Registrar {
        epoll: fd,
        table,
        pidfd: restore.self_pidfd.as_raw_fd(),
    };
    let opened = |restore: &Restore<'_>, target: &EpollTarget| {
        let opened = restore.files.opened.get(&target.description);
        opened.map_or(-1, AsRawFd::as_raw_fd)
    };
    // While nothing else is registered, what is ready is the one entry.
    for target in targets.iter().filter(|target| spent(target)) {
        let theirs = opened(restore, target);
        registrar.register_spent(restore, target, theirs)?;
    }
    let with_files = |restore: &Restore<'_>, told_already: bool| -> Vec<_> {
        let wanted =
            |target: &&EpollTarget| !spent(target) && told(restore, target) == told_already;
        let wanted = targets.iter().filter(wanted);
        wanted
            .map(|target| (target, opened(restore, target)))
            .collect()
    };
    let (quiet, mut others) = (with_files(restore, true), with_files(restore, false));
    // What is ready is told in the order in which it came to be, or was registered.
    others.sort_by_key(|(target, _)| target.pending.unwrap_or(u32::MAX));
    let mut calls = Calls::new(table.pid, DOING, restore.keeper(table)?);
    for (target, theirs) in &quiet {
        registrar.control(calls.batch(), EPOLL_CTL_ADD, target, *theirs);
        calls.breathe()?;
    }
    if !quiet.is_empty() {
        registrar.take_edges(calls.batch(), quiet.len());
    }
    for (target, theirs) in others {
        registrar.control(calls.batch(), EPOLL_CTL_ADD, target, theirs);
        calls.breathe()?;
    }
    calls.flush()
}

/// An edge that is there and was told before.
fn told(restore: &Restore<'_>, target: &EpollTarget) -> bool {
    let edge = target.events & (EPOLLET | EPOLLONESHOT) == EPOLLET;
    edge && target.pending.is_none() && !has_expired(restore, target)
}

/// Whether it is a timer that may have expired since it was looked at: that is to be told.
fn has_expired(restore: &Restore<'_>, target: &EpollTarget) -> bool {
    let found = restore.manifest.description(target.description);
    let Some(DescriptionKind::TimerFd {
        ticks,
        value,
        read_at,
        ..
    }) = found.map(|found| &found.kind)
    else {
        return false;
    };
    let clocks = &restore.manifest.host.clocks;
    let passed = timerfd::since(restore.elapsed(), clocks, *read_at);
    *ticks == 0 || (1..=u64::try_from(passed).unwrap_or(0)).contains(value)
}

const DOING: &str = "watching a descriptor";

/// A one-shot entry that has told its event and waits to be armed again.
fn spent(target: &EpollTarget) -> bool {
    target.events & EPOLLONESHOT != 0 && target.events & !MODES == 0
}

/// Makes what is watched ready, where it is an end of a pipe.
fn a_moment(
    restore: &Restore<'_>,
    target: &EpollTarget,
) -> Result<Option<ready::Moment>, ResurrectError> {
    let described = restore.manifest.description(target.description);
    let is_pipe = described.is_some_and(|found| matches!(found.kind, DescriptionKind::Pipe(_)));
    match restore.files.opened.get(&target.description) {
        Some(end) if is_pipe => ready::begin(end).map(Some).map_err(of(target)),
        _ => Ok(None),
    }
}

fn of(target: &EpollTarget) -> impl FnOnce(sys::Errno) -> ResurrectError + use<> {
    let subject = Some(Subject::Description(target.description));
    let what = format!("number {} (pipe)", target.description.0);
    move |errno| ResurrectError::Description {
        subject,
        what,
        doing: "making it ready for who watches it",
        errno,
    }
}

impl Registrar<'_> {
    /// What was registered is told now if it is ready: that was done before.
    fn take_edges(&self, batch: &mut Batch, most: usize) {
        let count = u32::try_from(most).unwrap_or(u32::MAX);
        let events = batch.space(12 * most);
        let args = [self.epoll.into(), events.into(), count.into(), 0.into()];
        batch.call("taking edges", nr::EPOLL_WAIT, args);
    }

    /// An entry becomes spent by telling an event. An end of a pipe that has none to tell is made to have one; other
    /// things stay armed for nothing, which differs only in telling of errors.
    fn register_spent(
        &self,
        restore: &mut Restore<'_>,
        target: &EpollTarget,
        theirs: i32,
    ) -> Result<(), ResurrectError> {
        let armed = EpollTarget {
            events: target.events | ANY,
            ..*target
        };
        let mut batch = Batch::new();
        self.control(&mut batch, EPOLL_CTL_ADD, &armed, theirs);
        if self.tells(restore, batch)? {
            return Ok(());
        }
        if let Some(moment) = a_moment(restore, target)? {
            let told = self.tells(restore, Batch::new());
            moment.end().map_err(of(target))?;
            if told? {
                return Ok(());
            }
        }
        log::debug!(
            "process {}: fd {} is not ready, and stays armed for errors",
            self.table.pid,
            target.fd
        );
        let mut batch = Batch::new();
        self.control(&mut batch, EPOLL_CTL_MOD, target, theirs);
        let first = restore.keeper(self.table)?;
        run(self.table.pid, DOING, first, &batch).map(drop)
    }

    /// Whether it tells an event when a batch is done.
    fn tells(&self, restore: &mut Restore<'_>, mut batch: Batch) -> Result<bool, ResurrectError> {
        let event = batch.space(12);
        let args = [self.epoll.into(), event.into(), 1.into(), 0.into()];
        let told = batch.call("taking an event", nr::EPOLL_WAIT, args);
        let first = restore.keeper(self.table)?;
        let output = run(self.table.pid, DOING, first, &batch)?;
        Ok(output.result(told) != Ok(0))
    }

    /// Adds or changes an entry, with the description behind its number for the time of the call.
    fn control(&self, batch: &mut Batch, operation: i32, target: &EpollTarget, theirs: i32) {
        let number = target.fd;
        let entry = self.table.files.iter().find(|entry| entry.fd == number);
        let right = entry.is_some_and(|entry| entry.description == target.description);
        // Above all numbers that matter here.
        let least = self
            .table
            .files
            .last()
            .map_or(0, |entry| entry.fd)
            .max(number)
            + 1;
        let duplicate = |batch: &mut Batch, of: sys::batch::Arg| {
            let args = [of, F_DUPFD_CLOEXEC.into(), least.into()];
            batch.call("duplicating a descriptor", nr::FCNTL, args)
        };
        let mut kept = None;
        if !right {
            kept = entry.map(|_| duplicate(batch, number.into()));
            let args = [self.pidfd.into(), theirs.into(), 0.into()];
            let got = batch.call("taking a descriptor", nr::PIDFD_GETFD, args);
            let high = duplicate(batch, got.into());
            batch.call("closing a copy", nr::CLOSE, [got.into()]);
            let args = [high.into(), number.into(), O_CLOEXEC.into()];
            batch.call("numbering a descriptor", nr::DUP3, args);
            batch.call("closing a copy", nr::CLOSE, [high.into()]);
        }
        // struct epoll_event is packed on x86_64.
        let mut event = [0; 12];
        event[..4].copy_from_slice(&target.events.to_le_bytes());
        event[4..].copy_from_slice(&target.data.to_le_bytes());
        let event = batch.data(&event);
        // Its own number may be the one that what it watches had.
        let epoll = match kept {
            Some(kept) if number == self.epoll => kept.into(),
            _ => self.epoll.into(),
        };
        let args = [epoll, operation.into(), number.into(), event.into()];
        batch.call(DOING, nr::EPOLL_CTL, args);
        if let (Some(kept), Some(entry)) = (kept, entry) {
            let flags = if entry.cloexec { O_CLOEXEC } else { 0 };
            let args = [kept.into(), number.into(), flags.into()];
            batch.call("numbering a descriptor", nr::DUP3, args);
            batch.call("closing a copy", nr::CLOSE, [kept.into()]);
        } else if !right {
            batch.call("closing a copy", nr::CLOSE, [number.into()]);
        }
    }
}
