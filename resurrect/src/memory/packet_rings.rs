//! Mappings of rings of packet sockets, which have their contents by now.

use super::uring;
use crate::ResurrectError;
use crate::calls::{Calls, nr};
use crate::restore::Restore;
use persist_mem::manifest::{DescriptionKind, RingMapping, SocketState};
use std::os::fd::AsRawFd;
use sys::{Errno, Pid};

/// `MAP_SHARED`, `MAP_FIXED_NOREPLACE`.
const FLAGS: i32 = 0x1 | 0x10_0000;

/// Maps them into every process that has some.
pub(crate) fn map(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives().filter(|(_, live)| live.mm_of.is_none()) {
        for mapping in &live.mm.packet_rings {
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
    const DOING: &str = "mapping the ring of a packet socket";
    let its = |kind: &DescriptionKind| match kind {
        DescriptionKind::Socket(socket) => match &socket.state {
            SocketState::Packet(state) => {
                let rings = state.rings.as_ref();
                rings.is_some_and(|rings| rings.inode == mapping.inode)
            }
            _ => false,
        },
        _ => false,
    };
    let descriptions = &restore.manifest.descriptions;
    let description = descriptions.iter().find(|one| its(&one.kind));
    let opened = description.and_then(|found| restore.files.opened(found.id));
    let ours = opened.ok_or_else(|| ResurrectError::call(pid, DOING)(Errno::ENOENT))?;
    let pidfd = restore.self_pidfd.as_raw_fd();
    let len = mapping.end - mapping.start;
    let mut calls = Calls::new(pid, DOING, &mut restore.task(pid)?.first);
    let batch = calls.batch();
    let args = [pidfd.into(), ours.into(), 0.into()];
    let fd = batch.call("taking the socket", nr::PIDFD_GETFD, args);
    let args = [
        mapping.start.into(),
        len.into(),
        mapping.prot.into(),
        FLAGS.into(),
        fd.into(),
        0.into(),
    ];
    batch.call(DOING, nr::MMAP, args);
    batch.call("closing a copy of its socket", nr::CLOSE, [fd.into()]);
    uring::advise(batch, mapping);
    calls.flush()
}
