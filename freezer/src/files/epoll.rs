//! epoll_create(2): the interest list.
//!
//! An entry is known by the number it was registered with, which may be closed by now, or be another
//! description's, while a duplicate of what it watches lives. So what is watched is found by comparing
//! (kcmp(2), `KCMP_EPOLL_TFD`).

use super::{Open, Table, apart, edges};
use crate::{FreezerError, proc};
use core::cell::LazyCell;
use persist_mem::manifest::{DescriptionId, DescriptionKind, EpollTarget};
use std::os::fd::AsRawFd;
use sys::process::{EpollSlot, kcmp_epoll};
use sys::{Errno, Pid, Tid};

/// Stands for a target that is not known yet.
const UNKNOWN: DescriptionId = DescriptionId(u32::MAX);

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let mut targets = Vec::new();
    for line in open.info.values("tfd") {
        targets.push(parse(line).ok_or_else(|| open.format())?);
    }
    let busy_poll = match sys::epoll::busy_poll(open.copy) {
        // A reference (`sent.rs`): kernels where one has to do know no settings.
        Err(Errno::EBADF) => None,
        told => told.map_err(open.call("asking for its settings"))?,
    };
    Ok(DescriptionKind::Epoll { targets, busy_poll })
}

/// `TFD events: HEX data: HEX pos:N ino:HEX sdev:HEX`, behind `tfd:`.
fn parse(line: &str) -> Option<EpollTarget> {
    let spaced = line.replace(':', " ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let after = |key: &str| {
        words
            .iter()
            .position(|w| *w == key)
            .and_then(|i| words.get(i + 1))
    };
    Some(EpollTarget {
        fd: words.first()?.parse().ok()?,
        description: UNKNOWN,
        events: u32::from_str_radix(after("events")?, 16).ok()?,
        data: u64::from_str_radix(after("data")?, 16).ok()?,
        pending: None,
    })
}

/// Entries in the kernel's order, each with its place among those of the same number.
fn slots(epoll: i32, targets: &[EpollTarget]) -> Vec<EpollSlot> {
    let place = |index: usize| {
        let earlier = targets[..index].iter();
        earlier.filter(|t| t.fd == targets[index].fd).count()
    };
    (0..targets.len())
        .map(|index| EpollSlot {
            epoll: epoll.cast_unsigned(),
            target: targets[index].fd.cast_unsigned(),
            place: u32::try_from(place(index)).unwrap_or(0),
        })
        .collect()
}

fn gone(fd: i32) -> String {
    format!("it watches number {fd}, closed since, and nobody has what that was")
}

/// Finds what the entries watch, in a running process: among its own descriptors, else among those of
/// all processes.
pub(super) fn check(open: &Open<'_>, targets: &[EpollTarget]) -> Result<(), FreezerError> {
    // One that has ended meanwhile has no entries left to look for.
    let Some(holder) = proc::representative(open.pid) else {
        return Ok(());
    };
    let is = |tid: Tid, fd: i32, slot: EpollSlot| {
        kcmp_epoll(tid, fd, holder, slot).is_ok_and(|order| order.is_eq())
    };
    let any_of = |all: &[(Tid, Vec<i32>)], slot: EpollSlot| {
        all.iter()
            .any(|(tid, fds)| fds.iter().any(|fd| is(*tid, *fd, slot)))
    };
    // Listed when an entry is found by another number than its own, and once for all such entries.
    let own = LazyCell::new(|| numbers(open.pid));
    let all = LazyCell::new(|| everyone().flat_map(numbers).collect::<Vec<_>>());
    for (target, slot) in targets.iter().zip(slots(open.fd, targets)) {
        let known = is(holder, target.fd, slot) || any_of(&own, slot) || any_of(&all, slot);
        // An entry that is gone by now is nobody's any more.
        let there = proc::FdInfo::read(open.pid, open.fd).is_ok_and(|info| {
            let mut entries = info.values("tfd").filter_map(parse);
            entries.any(|entry| entry == *target)
        });
        if !known && there {
            return Err(open.refuse(gone(target.fd)));
        }
    }
    Ok(())
}

/// The numbers of a process's descriptors, of every table with a thread that has it.
fn numbers(pid: Pid) -> Vec<(Tid, Vec<i32>)> {
    let tables = apart::tables_of(pid).into_iter();
    let listed = tables.filter_map(|table| {
        let first = proc::representative(table)?;
        Some((first, proc::numbers(table, "fd").unwrap_or_default()))
    });
    listed.collect()
}

pub(super) fn everyone() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid))
}

/// Finds what the entries of all epolls watch, when all descriptions are known.
pub(super) fn resolve(table: &mut Table) -> Result<(), FreezerError> {
    let me = Tid(nix::unistd::getpid().as_raw());
    let mut holders: Vec<((Pid, i32), DescriptionId)> = Vec::new();
    holders.extend(table.numbers.iter().map(|(at, id)| (*at, *id)));
    for index in 0..table.descriptions.len() {
        let id = table.descriptions[index].id;
        let DescriptionKind::Epoll { targets, .. } = &table.descriptions[index].kind else {
            continue;
        };
        let Some(epoll) = table.copies.get(&id).map(AsRawFd::as_raw_fd) else {
            continue;
        };
        let first = holders
            .iter()
            .find(|(_, held)| *held == id)
            .map(|(at, _)| *at);
        let (pid, fd) = first.unwrap_or((Pid(me.0), epoll));
        let is = |candidate: DescriptionId, slot: EpollSlot| {
            let copy = table.copies.get(&candidate).map_or(-1, AsRawFd::as_raw_fd);
            kcmp_epoll(me, copy, me, slot).is_ok_and(|order| order.is_eq())
        };
        let mut found = Vec::new();
        for (target, slot) in targets.iter().zip(slots(epoll, targets)) {
            // Most likely the number still says it.
            let likely = table.numbers.get(&(pid, target.fd)).copied();
            let description = likely
                .filter(|candidate| is(*candidate, slot))
                .or_else(|| table.copies.keys().copied().find(|c| is(*c, slot)))
                .ok_or_else(|| FreezerError::refuse(pid, format!("fd {fd}"), gone(target.fd)))?;
            found.push(description);
        }
        let pending = edges::pending(table, id, targets, &found);
        let DescriptionKind::Epoll { targets, .. } = &mut table.descriptions[index].kind else {
            continue;
        };
        for ((target, description), pending) in targets.iter_mut().zip(found).zip(pending) {
            target.description = description;
            target.pending = pending;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_and_without_blanks() {
        let line = "        5 events: 80000019 data: ffffffffffffffff  pos:0 ino:61af sdev:7";
        let target = parse(line).unwrap();
        assert_eq!(
            (target.fd, target.events, target.data),
            (5, 0x8000_0019, u64::MAX)
        );
        assert!(parse("x events: 1").is_none());
    }
}
