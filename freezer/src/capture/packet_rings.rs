//! Mappings of rings of packet sockets (packet(7)).

use crate::files;
use crate::proc::Mapping;
use persist_mem::manifest::RingMapping;
use sys::Pid;

/// Whether a mapping may be one.
pub(super) fn is_one(map: &Mapping) -> bool {
    map.name.starts_with(b"socket:[")
}

/// A mapping of a packet socket's rings.
///
/// # Errors
/// Why it is not carried.
pub(super) fn mapping(pid: Pid, map: &Mapping) -> Result<RingMapping, String> {
    let size = files::packet_rings(pid, map.inode)?;
    if map.offset != 0 || map.end - map.start != size {
        return Err("a mapping of a part of a packet socket's ring is not carried".into());
    }
    Ok(RingMapping {
        inode: map.inode,
        start: map.start,
        end: map.end,
        prot: map.prot(),
        offset: 0,
        dont_fork: map.has(b"dc"),
        dont_dump: map.has(b"dd"),
    })
}
