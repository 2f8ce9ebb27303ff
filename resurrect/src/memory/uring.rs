//! Mappings of rings of io_uring(7).
//!
//! From Linux 6.5 on the kernel alone chooses where they go, and they cannot be moved. So whatever is as large as a
//! ring is filled with mappings for a moment, but for the place where it shall be.

use crate::ResurrectError;
use crate::calls::{Calls, nr, run};
use crate::restore::Restore;
use persist_mem::manifest::{DescriptionKind, RingMapping};
use std::os::fd::AsRawFd;
use sys::batch::Batch;
use sys::tracee::Tracee;
use sys::uring::is_of_buffers;
use sys::{Errno, Pid};

const PROT_NONE: i32 = 0;
const MAP_SHARED: i32 = 0x1;
const MAP_POPULATE: i32 = 0x8000;
/// `MAP_PRIVATE`, `MAP_ANONYMOUS`, `MAP_NORESERVE`, `MAP_FIXED_NOREPLACE`.
const FILLING: i32 = 0x2 | 0x20 | 0x4000 | 0x10_0000;
const MADV_DONTFORK: i32 = 10;
const MADV_DONTDUMP: i32 = 16;
/// Where mappings can be: from the least address that everybody may map to the end of what is a program's.
const FIRST: u64 = 0x1_0000;
const END: u64 = 0x7fff_ffff_f000;

/// Maps all of them but for rings of buffers.
pub(crate) fn map(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    map_those(restore, false)
}

/// Maps rings of buffers, when there are any.
pub(crate) fn map_buffers(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    map_those(restore, true)
}

fn map_those(restore: &mut Restore<'_>, of_buffers: bool) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives().filter(|(_, live)| live.mm_of.is_none()) {
        let rings = live.mm.rings.iter();
        for mapping in rings.filter(|it| is_of_buffers(it.offset) == of_buffers) {
            map_one(restore, pid, mapping)?;
        }
    }
    Ok(())
}

fn map_one(
    restore: &mut Restore<'_>,
    pid: Pid,
    mapping: &RingMapping,
) -> Result<(), ResurrectError> {
    let doing = "mapping a ring of io_uring";
    let manifest = restore.manifest;
    let description = manifest.descriptions.iter().find(|description| {
        matches!(&description.kind, DescriptionKind::Ring(ring) if ring.inode == mapping.inode)
    });
    let opened = description.and_then(|found| restore.files.opened(found.id));
    let ours = opened.ok_or_else(|| ResurrectError::call(pid, doing)(Errno::ENOENT))?;
    let pidfd = restore.self_pidfd.as_raw_fd();
    let first = &mut restore.task(pid)?.first;
    let len = mapping.end - mapping.start;
    let maps = sys::procdir::read(first.pid(), "maps");
    let used = super::ranges(&maps.map_err(ResurrectError::call(pid, doing))?);
    let filled = gaps(&used, (mapping.start, mapping.end));
    let mut calls = Calls::new(pid, doing, first);
    for (start, end) in &filled {
        let args = [
            (*start).into(),
            (end - start).into(),
            PROT_NONE.into(),
            FILLING.into(),
            (-1_i32).into(),
        ];
        calls.batch().call("filling a gap", nr::MMAP, args);
        calls.breathe()?;
    }
    calls.flush()?;
    let elsewhere = place(pid, first, (pidfd, ours), mapping)?;
    let elsewhere = elsewhere.iter().map(|start| (*start, start + len));
    let mut calls = Calls::new(pid, doing, first);
    for (start, end) in filled.iter().copied().chain(elsewhere) {
        let args = [start.into(), (end - start).into()];
        calls.batch().call("emptying a gap", nr::MUNMAP, args);
        calls.breathe()?;
    }
    advise(calls.batch(), mapping);
    calls.flush()
}

/// What madvise(2) was told of a ring's mapping.
pub(super) fn advise(batch: &mut Batch, mapping: &RingMapping) {
    let len = mapping.end - mapping.start;
    for (wanted, advice) in [
        (mapping.dont_fork, MADV_DONTFORK),
        (mapping.dont_dump, MADV_DONTDUMP),
    ] {
        if wanted {
            let args = [mapping.start.into(), len.into(), advice.into()];
            batch.call("advising on a ring", nr::MADVISE, args);
        }
    }
}

/// Maps a ring where it shall be. Linux 6.1 may choose places below those that everybody may map; they are kept until
/// it has chosen that one, and returned.
fn place(
    pid: Pid,
    tracee: &mut Tracee,
    (pidfd, ours): (i32, i32),
    mapping: &RingMapping,
) -> Result<Vec<u64>, ResurrectError> {
    const MOST: usize = 16;
    let doing = "mapping a ring of io_uring";
    let mut batch = Batch::new();
    let args = [pidfd.into(), ours.into(), 0.into()];
    let fd = batch.call("taking the ring", nr::PIDFD_GETFD, args);
    let args = [
        0.into(),
        (mapping.end - mapping.start).into(),
        mapping.prot.into(),
        (MAP_SHARED | MAP_POPULATE).into(),
        fd.into(),
        mapping.offset.into(),
    ];
    let mapped = batch.call(doing, nr::MMAP, args);
    batch.call("closing a copy of its ring", nr::CLOSE, [fd.into()]);
    let mut elsewhere = Vec::new();
    loop {
        let output = run(pid, doing, tracee, &batch)?;
        match output.result(mapped) {
            Ok(start) if start == mapping.start => return Ok(elsewhere),
            Ok(other) if other < FIRST && elsewhere.len() < MOST => elsewhere.push(other),
            other => {
                let start = mapping.start;
                let why = match other {
                    Ok(other) => format!("the kernel has chosen {other:#x}"),
                    Err(errno) => errno.to_string(),
                };
                let why = format!("its ring of io_uring cannot be mapped at {start:#x}: {why}");
                return Err(ResurrectError::Impossible { pid, why });
            }
        }
    }
}

/// What is free of a process's memory beside `place` and could hold as much, alone or together with a part of it.
fn gaps(used: &[(u64, u64)], place: (u64, u64)) -> Vec<(u64, u64)> {
    let mut used: Vec<_> = used.iter().copied().chain([place]).collect();
    used.sort_unstable();
    let (mut found, mut free) = (Vec::new(), FIRST);
    for (start, end) in used.into_iter().chain([(END, END)]) {
        let start = start.min(END);
        let len = start.saturating_sub(free);
        let beside = start == place.0 || free == place.1;
        if len >= place.1 - place.0 || beside && len > 0 {
            found.push((free, start));
        }
        free = free.max(end);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_one_place_is_filled() {
        let used = [
            (0x40_0000, 0x50_0000),
            (0x50_1000, 0x60_0000),
            (0x70_0000, 0x80_0000),
        ];
        assert_eq!(
            gaps(&used, (0x62_0000, 0x62_2000)),
            [
                (FIRST, 0x40_0000),
                (0x60_0000, 0x62_0000),
                (0x62_2000, 0x70_0000),
                (0x80_0000, END)
            ],
            "what is smaller stays free"
        );
        assert_eq!(
            gaps(
                &[(FIRST, 0x62_0000), (0x62_3000, END)],
                (0x62_0000, 0x62_2000)
            ),
            [(0x62_2000, 0x62_3000)],
            "but for what is beside it"
        );
    }
}
