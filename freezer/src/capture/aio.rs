//! Contexts of asynchronous I/O (io_setup(2)): their rings are mappings, and their ids the addresses.
//!
//! Requests under way end by themselves; who waits for a disk waits for milliseconds.

use crate::proc::{self, Mapping};
use persist_mem::manifest::AioRing;
use sys::Pid;

/// `struct aio_ring` and `struct io_event` (fs/aio.c, include/uapi/linux/aio_abi.h), in bytes.
const HEADER: u64 = 32;
const EVENT: u64 = 32;
const MAGIC: u32 = 0xa10a_10a1;

/// Whether a mapping is the ring of a context.
pub(super) fn is_ring(map: &Mapping) -> bool {
    map.name.starts_with(b"/[aio]") && map.shared()
}

/// A ring with the events in it.
pub(super) fn ring(pid: Pid, map: &Mapping) -> Result<AioRing, String> {
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
    })
}
