//! epoll_create(2). What it watches is registered inside a process that has it: the kernel remembers the
//! descriptor's number, and a signalfd is bound to the signals of who registers it.

use super::{O_CLOEXEC, Opening};
use crate::ResurrectError;
use crate::calls::{Calls, nr, run};
use crate::restore::Restore;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use persist_mem::manifest::{EpollTarget, Live};
use std::os::fd::{AsRawFd, OwnedFd};
use sys::Pid;
use sys::batch::Batch;

const EPOLL_CTL_ADD: i32 = 1;
const EPOLL_CTL_MOD: i32 = 3;
const F_DUPFD_CLOEXEC: i32 = 1030;

pub(super) fn open(opening: &Opening<'_, '_>) -> Result<OwnedFd, ResurrectError> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(opening.failed("making it"))?;
    Ok(epoll.0)
}

/// Event bits that are no events: `EPOLLET`, `EPOLLONESHOT`, `EPOLLWAKEUP`, `EPOLLEXCLUSIVE`.
const MODES: u32 = 0xf000_0000;
const EPOLLONESHOT: u32 = 1 << 30;
/// `EPOLLIN | EPOLLPRI | EPOLLOUT`.
const ANY: u32 = 1 | 2 | 4;

/// A process that registers.
struct Registrar<'a> {
    pid: Pid,
    epoll: i32,
    /// What its descriptor table holds.
    live: &'a Live,
    /// The way to this process's descriptors.
    pidfd: i32,
}

/// Registers what the epoll with number `fd` of a process watches.
pub(super) fn watch(
    restore: &mut Restore<'_>,
    pid: Pid,
    fd: i32,
    targets: &[EpollTarget],
) -> Result<(), ResurrectError> {
    let Some((_, live)) = restore.lives().find(|(found, _)| *found == pid) else {
        return Ok(());
    };
    let registrar = Registrar {
        pid,
        epoll: fd,
        live,
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
    let others = targets.iter().filter(|target| !spent(target));
    let others: Vec<_> = others
        .map(|target| (target, opened(restore, target)))
        .collect();
    let mut calls = Calls::new(pid, DOING, &mut restore.task(pid)?.first);
    for (target, theirs) in others {
        registrar.control(calls.batch(), EPOLL_CTL_ADD, target, theirs);
        calls.breathe()?;
    }
    calls.flush()
}

const DOING: &str = "watching a descriptor";

/// A one-shot entry that has told its event and waits to be armed again.
fn spent(target: &EpollTarget) -> bool {
    target.events & EPOLLONESHOT != 0 && target.events & !MODES == 0
}

impl Registrar<'_> {
    /// An entry becomes spent by telling an event. Where there is none to tell, it stays armed for
    /// nothing, which differs only in telling of errors.
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
        let first = &mut restore.task(self.pid)?.first;
        let mut batch = Batch::new();
        self.control(&mut batch, EPOLL_CTL_ADD, &armed, theirs);
        let event = batch.space(12);
        let args = [self.epoll.into(), event.into(), 1.into(), 0.into()];
        let told = batch.call("taking an event", nr::EPOLL_WAIT, args);
        let output = run(self.pid, DOING, first, &batch)?;
        if output.result(told) != Ok(0) {
            return Ok(());
        }
        log::debug!(
            "process {}: fd {} is not ready, and stays armed for errors",
            self.pid,
            target.fd
        );
        let mut batch = Batch::new();
        self.control(&mut batch, EPOLL_CTL_MOD, target, theirs);
        run(self.pid, DOING, first, &batch).map(drop)
    }

    /// Adds or changes an entry, with the description behind its number for the time of the call.
    fn control(&self, batch: &mut Batch, operation: i32, target: &EpollTarget, theirs: i32) {
        let number = target.fd;
        let entry = self.live.files.iter().find(|entry| entry.fd == number);
        let right = entry.is_some_and(|entry| entry.description == target.description);
        // Above all numbers that matter here.
        let least = self
            .live
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
        let args = [
            self.epoll.into(),
            operation.into(),
            number.into(),
            event.into(),
        ];
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
