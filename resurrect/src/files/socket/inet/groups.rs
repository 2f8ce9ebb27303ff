//! Multicast groups that sockets of IP joined.

use crate::ResurrectError;
use crate::files::socket::{Making, Sockets, interface};
use nix::libc as c;
use persist_mem::manifest::{MulticastGroup, SocketState};
use std::os::fd::BorrowedFd;
use sys::{Errno, socket};

/// include/uapi/linux/in.h
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
const MCAST_EXCLUDE: u32 = 0;

/// Has sockets join their multicast groups, in the order in which they were joined.
pub(in crate::files::socket) fn join_all(
    all: &[Making<'_>],
    sockets: &Sockets,
) -> Result<(), ResurrectError> {
    let mut groups: Vec<(&MulticastGroup, &Making<'_>)> = Vec::new();
    for making in all {
        if let SocketState::Inet(state) = &making.socket.state {
            groups.extend(state.groups.iter().map(|group| (group, making)));
        }
    }
    groups.sort_by_key(|(group, _)| std::cmp::Reverse(group.place));
    groups
        .into_iter()
        .try_for_each(|(group, making)| join(making, sockets.get(making)?, group))
}

/// Joins a multicast group (`struct group_req`, `struct group_filter`).
pub(super) fn join(
    making: &Making<'_>,
    fd: BorrowedFd<'_>,
    group: &MulticastGroup,
) -> Result<(), ResurrectError> {
    let level = if group.group.first() == Some(&2) {
        c::SOL_IP
    } else {
        c::SOL_IPV6
    };
    let index = interface(making, &group.interface)?;
    let mut request = vec![0u8; 136];
    request[..4].copy_from_slice(&index.to_ne_bytes());
    request[8..8 + group.group.len()].copy_from_slice(&group.group);
    match socket::set_option(fd, level, MCAST_JOIN_GROUP, &request) {
        // Every IPv6 socket is in the all-nodes group of itself.
        Ok(()) | Err(Errno::EADDRINUSE) => {}
        Err(errno) => return Err(making.failed("joining a multicast group")(errno)),
    }
    if group.mode == MCAST_EXCLUDE && group.sources.is_empty() {
        return Ok(());
    }
    request.extend_from_slice(&group.mode.to_ne_bytes());
    request.extend_from_slice(&(group.sources.len() as u32).to_ne_bytes());
    for source in &group.sources {
        let mut storage = source.clone();
        storage.resize(128, 0);
        request.extend_from_slice(&storage);
    }
    socket::set_option(fd, level, MCAST_MSFILTER, &request)
        .map_err(making.failed("setting the sources of a multicast group"))
}
