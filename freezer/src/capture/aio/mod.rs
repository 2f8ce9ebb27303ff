//! Contexts of asynchronous I/O (io_setup(2)): their rings are mappings, and their ids the addresses.
//!
//! Requests under way end by themselves, and are waited for: who waits for a disk waits for milliseconds.
//! Those that wait for a descriptor to become ready are carried ([`requests`]).

mod requests;

use crate::kernel::Unreadable;
use crate::proc::{self, Mapping};
use persist_mem::manifest::AioRing;
use requests::UnderWay;
use std::time::{Duration, Instant};
use sys::Pid;

/// `struct aio_ring` and `struct io_event` (fs/aio.c, include/uapi/linux/aio_abi.h), in bytes.
const HEADER: u64 = 32;
const EVENT: u64 = 32;
const MAGIC: u32 = 0xa10a_10a1;
/// How long requests may take.
const WITHIN: Duration = Duration::from_secs(10);
/// Tries while requests come and go.
const TRIES: usize = 5;

/// Whether a mapping is the ring of a context.
pub(super) fn is_ring(map: &Mapping) -> bool {
    map.name.starts_with(b"/[aio]") && map.shared()
}

/// Why a ring of a process that may run is not carried.
pub(super) fn refusal(pid: Pid, map: &Mapping) -> Option<String> {
    let under_way = (0..TRIES).find_map(|_| requests::under_way(pid, map.start).ok());
    if under_way.as_ref().is_some_and(|found| found.inherited) {
        return None;
    }
    let polls = under_way.map_or(Ok(()), |found| known(&found));
    polls.and_then(|()| events(pid, map)).err()
}

fn known(found: &UnderWay) -> Result<(), String> {
    if found.unknown {
        return Err(
            "a request under way is of a kind that is not carried, or for a file that is closed"
                .into(),
        );
    }
    Ok(())
}

/// A ring of a stopped process with the events in it, and what it waits for.
pub(super) fn ring(pid: Pid, map: &Mapping) -> Result<AioRing, String> {
    let begun = Instant::now();
    loop {
        let before = match requests::under_way(pid, map.start) {
            Ok(found) => found,
            Err(Unreadable::Inconsistent(_)) if begun.elapsed() < WITHIN => continue,
            // Whoever cannot look takes it that everything has ended.
            Err(why) => {
                log::debug!("requests of process {pid}: {why}");
                return events(pid, map);
            }
        };
        if before.inherited {
            return Ok(inherited(pid, map));
        }
        known(&before)?;
        let ring = events(pid, map)?;
        // What is completed meanwhile would be in both, or in neither.
        if before.others == 0 && requests::under_way(pid, map.start).as_ref() == Ok(&before) {
            let polls = before.polls;
            return Ok(AioRing { polls, ..ring });
        }
        if begun.elapsed() > WITHIN {
            return Err(format!("{} requests do not end", before.others));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A ring whose context is the parent's, or was.
fn inherited(pid: Pid, map: &Mapping) -> AioRing {
    let len = usize::try_from(map.end - map.start).unwrap_or(0);
    let bytes = proc::memory(pid).and_then(|mem| mem.read_vec(map.start, len));
    AioRing {
        start: map.start,
        end: map.end,
        size: 0,
        unread: Vec::new(),
        polls: Vec::new(),
        // The parent has destroyed it: there is nothing that could be read.
        inherited: Some(bytes.unwrap_or_default()),
    }
}

fn events(pid: Pid, map: &Mapping) -> Result<AioRing, String> {
    let unreadable = |errno| format!("its ring cannot be read: {errno}");
    let mem = proc::memory(pid).map_err(unreadable)?;
    let header = mem.read_vec(map.start, 32).map_err(unreadable)?;
    let word = |index: usize| {
        let bytes = header.get(index * 4..index * 4 + 4);
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    };
    let (size, head, tail, magic) = (word(1), word(2), word(3), word(4));
    if magic != MAGIC || size == 0 || u64::from(size) * EVENT + HEADER > map.end - map.start {
        return Err("its ring is not understood".into());
    }
    let mut unread = Vec::new();
    let mut at = head % size;
    while at != tail % size {
        let event = map.start + HEADER + u64::from(at) * EVENT;
        unread.extend(mem.read_vec(event, 32).map_err(unreadable)?);
        at = (at + 1) % size;
    }
    Ok(AioRing {
        start: map.start,
        end: map.end,
        size,
        unread,
        polls: Vec::new(),
        inherited: None,
    })
}
