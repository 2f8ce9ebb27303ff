//! epoll_create(2): the interest list.
//!
//! An entry is known by the number it was registered with, which may be closed by now, or be another
//! description's, while a duplicate of what it watches lives. So what is watched is found by its address in the
//! kernel's memory, else by comparing (kcmp(2), `KCMP_EPOLL_TFD`).

use super::{Open, Table, apart, edges, known};
use crate::kernel::{self, EpollEntry};
use crate::{FreezerError, proc};
use core::cell::LazyCell;
use persist_mem::manifest::{DescriptionId, DescriptionKind, EpollTarget};
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
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

/// An entry as kcmp(2) wants it named: by its number, and its place among those of the same number.
fn slot(epoll: i32, targets: &[EpollTarget], index: usize) -> EpollSlot {
    let earlier = targets[..index].iter();
    let place = earlier.filter(|t| t.fd == targets[index].fd).count();
    EpollSlot {
        epoll: epoll.cast_unsigned(),
        target: targets[index].fd.cast_unsigned(),
        place: u32::try_from(place).unwrap_or(0),
    }
}

/// The entries with what they watch, as the kernel's memory shows them.
fn entries(epoll: &OwnedFd, targets: &[EpollTarget]) -> Option<Vec<EpollEntry>> {
    let found = kernel::look(|kernel| {
        let file = kernel.own_file(epoll.as_fd())?;
        kernel.epoll(file)
    });
    let found = found.inspect_err(|why| log::debug!("what an epoll watches: {why}"));
    let numbers = |entries: &[EpollEntry]| {
        let numbers = entries.iter().map(|entry| entry.number);
        numbers.eq(targets.iter().map(|target| target.fd))
    };
    found.ok().filter(|entries| numbers(entries))
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
    let entries = entries(open.copy, targets);
    // What has an address is not compared one by one: with thousands of connections that takes minutes.
    let own_files = LazyCell::new(|| addresses(open.pid));
    let all_files = LazyCell::new(|| everyone().flat_map(addresses).collect::<HashSet<_>>());
    let has =
        |entry: &EpollEntry| own_files.contains(&entry.file) || all_files.contains(&entry.file);
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
    for (index, target) in targets.iter().enumerate() {
        if entries.as_ref().is_some_and(|entries| has(&entries[index])) {
            continue;
        }
        let slot = slot(open.fd, targets, index);
        let known = is(holder, target.fd, slot) || any_of(&own, slot) || any_of(&all, slot);
        // An entry that is gone by now is nobody's any more.
        if !known && still_there(open, target) {
            return Err(open.refuse(gone(target.fd)));
        }
    }
    Ok(())
}

fn still_there(open: &Open<'_>, target: &EpollTarget) -> bool {
    proc::FdInfo::read(open.pid, open.fd).is_ok_and(|info| {
        let mut entries = info.values("tfd").filter_map(parse);
        entries.any(|entry| entry == *target)
    })
}

/// Where the kernel has what a process has open, in every table with a thread that has it.
fn addresses(pid: Pid) -> HashSet<u64> {
    let tables = apart::tables_of(pid).into_iter();
    let files = tables.flat_map(|table| known::open_files(table).into_values());
    files.map(|file| file.address).collect()
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
    for index in 0..table.descriptions.len() {
        let id = table.descriptions[index].id;
        let DescriptionKind::Epoll { targets, .. } = &table.descriptions[index].kind else {
            continue;
        };
        let Some(epoll) = table.copies.get(&id) else {
            continue;
        };
        let entries = entries(epoll, targets);
        let found = watched(table, id, epoll.as_raw_fd(), targets, entries.as_deref())?;
        let pending = edges::pending(table, id, targets, &found, entries.as_deref());
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

/// What each entry watches: by its address, else by comparing.
fn watched(
    table: &Table,
    id: DescriptionId,
    epoll: i32,
    targets: &[EpollTarget],
    entries: Option<&[EpollEntry]>,
) -> Result<Vec<DescriptionId>, FreezerError> {
    let me = Tid(nix::unistd::getpid().as_raw());
    let holder = LazyCell::new(|| {
        let first = table.numbers.iter().find(|(_, held)| **held == id);
        first.map_or((Pid(me.0), epoll), |(at, _)| *at)
    });
    let compared = |index: usize| {
        let slot = slot(epoll, targets, index);
        let is = |candidate: &DescriptionId| {
            let copy = table.copies.get(candidate).map_or(-1, AsRawFd::as_raw_fd);
            kcmp_epoll(me, copy, me, slot).is_ok_and(|order| order.is_eq())
        };
        let (pid, fd) = *holder;
        // Most likely the number still says it.
        let likely = table.numbers.get(&(pid, targets[index].fd)).copied();
        likely
            .filter(is)
            .or_else(|| table.copies.keys().copied().find(is))
            .ok_or_else(|| FreezerError::refuse(pid, format!("fd {fd}"), gone(targets[index].fd)))
    };
    let by_address = |index: usize| table.known.at(entries?.get(index)?.file);
    (0..targets.len())
        .map(|index| by_address(index).map_or_else(|| compared(index), Ok))
        .collect()
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
