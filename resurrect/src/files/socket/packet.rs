//! Packet sockets (packet(7)).

use super::options::{self, When};
use super::{Making, Sockets, attach_filter, interface};
use crate::ResurrectError;
use nix::libc as c;
use persist_mem::manifest::{Fanout, PacketSocket, SocketState};
use std::os::fd::{AsFd, OwnedFd};
use sys::{Errno, socket};

const SOL_PACKET: i32 = 263;
const PACKET_ADD_MEMBERSHIP: i32 = 1;
const PACKET_FANOUT: i32 = 18;
/// Room for an address in `struct packet_mreq`.
const ADDRESS: usize = 8;

/// Made and bound.
pub(super) fn make(making: &Making<'_>, state: &PacketSocket) -> Result<OwnedFd, ResurrectError> {
    let fd =
        socket::socket(c::AF_PACKET, making.socket.kind, 0).map_err(making.failed("making it"))?;
    // Packets come as soon as it is bound, and shall pass the filter then.
    attach_filter(making, fd.as_fd())?;
    options::set(making, fd.as_fd(), When::Early)?;
    if state.protocol != 0 || state.interface.is_some() {
        let index = match &state.interface {
            None => 0,
            Some(name) => interface(making, name)?,
        };
        let mut address = vec![0u8; 20];
        address[..2].copy_from_slice(&(c::AF_PACKET as u16).to_ne_bytes());
        address[2..4].copy_from_slice(&state.protocol.to_be_bytes());
        address[4..8].copy_from_slice(&index.to_ne_bytes());
        socket::bind(fd.as_fd(), &address).map_err(making.failed("binding it"))?;
    }
    for (name, kind, address) in &state.memberships {
        let mut request = interface(making, name)?.to_ne_bytes().to_vec();
        if address.len() > ADDRESS {
            return Err(making.failed("joining a group")(Errno::EINVAL));
        }
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&(address.len() as u16).to_ne_bytes());
        request.extend_from_slice(address);
        request.resize(16, 0);
        socket::set_option(fd.as_fd(), SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request)
            .map_err(making.failed("joining a group"))?;
    }
    Ok(fd)
}

/// Has sockets share their packets, in the order of their places.
pub(super) fn share(all: &[Making<'_>], sockets: &Sockets) -> Result<(), ResurrectError> {
    let mut members: Vec<(Fanout, &Making<'_>)> = Vec::new();
    for making in all {
        if let SocketState::Packet(state) = &making.socket.state {
            members.extend(state.fanout.map(|fanout| (fanout, making)));
        }
    }
    members.sort_by_key(|(fanout, _)| fanout.place);
    for (fanout, making) in members {
        let value = fanout.value.to_ne_bytes();
        socket::set_option(sockets.get(making)?, SOL_PACKET, PACKET_FANOUT, &value)
            .map_err(making.failed("joining its fan-out group"))?;
    }
    Ok(())
}
