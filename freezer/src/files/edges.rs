//! Which readiness an epoll has not told yet (`EPOLLET`, epoll(7)).
//!
//! An edge that was told must not be told again, one that was not must not be lost. The kernel keeps a
//! list of those to tell, and shows it to nobody: it is read from its memory (`kernel/epolls.rs`). Where that cannot be, poll(2)
//! tells whether there are any, and an edge in doubt is told again.

use super::Table;
use crate::kernel::EpollEntry;
use persist_mem::manifest::{DescriptionId, DescriptionKind, EpollTarget};
use std::os::fd::AsRawFd;

const EPOLLONESHOT: u32 = 1 << 30;
const EPOLLET: u32 = 1 << 31;
/// Event bits that are no events: these two, `EPOLLWAKEUP` and `EPOLLEXCLUSIVE`.
const MODES: u32 = 0xf000_0000;

/// For each entry of an epoll, which watches the description at the same place, whether it is to be told, and after how
/// many others. `entries` are those that the kernel's memory shows.
pub(super) fn pending(
    table: &Table,
    epoll: DescriptionId,
    targets: &[EpollTarget],
    descriptions: &[DescriptionId],
    entries: Option<&[EpollEntry]>,
) -> Vec<Option<u32>> {
    let Some(copy) = table.copies.get(&epoll) else {
        return in_order(vec![true; targets.len()]);
    };
    // What cannot be asked may be ready.
    if !descriptions.iter().any(|id| answers_differ(table, *id)) && !ready(copy.as_raw_fd(), 1) {
        return vec![None; targets.len()];
    }
    match entries {
        Some(entries) => entries.iter().map(|entry| entry.told).collect(),
        None => in_order(polled(table, targets, descriptions)),
    }
}

/// Places of those that are to be told, where their order is not known.
fn in_order(told: Vec<bool>) -> Vec<Option<u32>> {
    let numbered = (0..).zip(told);
    numbered.map(|(n, told)| told.then_some(n)).collect()
}

/// Whether poll(2) of it, or of an epoll that watches it, must be left to its holder. A signalfd tells
/// everybody of their own signals, a file of mounts tells once: an epoll that is asked by somebody else
/// takes them from the list of what is ready, and its holder waits for ever (fs/eventpoll.c,
/// `__ep_eventpoll_poll`). What another epoll watches may be either.
fn answers_differ(table: &Table, id: DescriptionId) -> bool {
    let placed = table.descriptions.get(id.0 as usize);
    let found = placed
        .filter(|d| d.id == id)
        .or_else(|| table.descriptions.iter().find(|d| d.id == id));
    found.is_some_and(|d| {
        matches!(
            d.kind,
            DescriptionKind::SignalFd { .. }
                | DescriptionKind::Epoll { .. }
                | DescriptionKind::Pseudo { .. }
        )
    })
}

fn ready(fd: i32, events: u32) -> bool {
    !sys::epoll::polled(fd, events as i16).is_ok_and(|found| found == 0)
}

/// As far as poll(2) tells without taking them: when something else is ready as well, all edges are in
/// doubt.
fn polled(table: &Table, targets: &[EpollTarget], descriptions: &[DescriptionId]) -> Vec<bool> {
    let ready_now = |(target, id): (&EpollTarget, &DescriptionId)| {
        let copy = table.copies.get(id).filter(|_| !answers_differ(table, *id));
        target.events & !MODES != 0
            && copy.is_none_or(|copy| ready(copy.as_raw_fd(), target.events))
    };
    let now: Vec<bool> = targets.iter().zip(descriptions).map(ready_now).collect();
    let edge = |target: &EpollTarget| target.events & (EPOLLET | EPOLLONESHOT) == EPOLLET;
    let count = now.iter().filter(|now| **now).count();
    let others = targets
        .iter()
        .zip(&now)
        .any(|(target, now)| *now && !edge(target));
    if !others && count == 1 {
        return now;
    }
    targets.iter().map(edge).collect()
}
