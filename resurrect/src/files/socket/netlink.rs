//! Netlink sockets (netlink(7)).

use super::options::{self, When};
use super::{Making, attach_filter};
use crate::ResurrectError;
use nix::libc as c;
use persist_mem::manifest::NetlinkSocket;
use std::os::fd::{AsFd, OwnedFd};
use sys::socket;

const SOL_NETLINK: i32 = 270;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;

/// Made, bound, a member of its groups.
pub(super) fn make(making: &Making<'_>, state: &NetlinkSocket) -> Result<OwnedFd, ResurrectError> {
    let fd = making.new_socket()?;
    // Messages come as soon as it is a member, and shall pass the filter then.
    attach_filter(making, fd.as_fd())?;
    options::set(making, fd.as_fd(), When::Early)?;
    if let Some(port) = state.port {
        socket::bind(fd.as_fd(), &address(port, 0)).map_err(making.failed("binding its port"))?;
    }
    for group in &state.groups {
        let group = group.cast_signed();
        socket::set_int_option(fd.as_fd(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            .map_err(making.failed("joining a group"))?;
    }
    if let Some((port, groups)) = state.peer {
        socket::connect(fd.as_fd(), &address(port, groups))
            .map_err(making.failed("connecting it"))?;
    }
    Ok(fd)
}

/// `struct sockaddr_nl`.
fn address(port: u32, groups: u32) -> Vec<u8> {
    let mut bytes = (c::AF_NETLINK as u32).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&port.to_ne_bytes());
    bytes.extend_from_slice(&groups.to_ne_bytes());
    bytes
}
