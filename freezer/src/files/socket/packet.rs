//! Packet sockets (packet(7)).

use super::{Common, Facts};
use crate::FreezerError;
use crate::files::Open;
use nix::libc as c;
use nix::net::if_::if_indextoname;
use persist_mem::manifest::PacketSocket;
use std::os::fd::AsFd;
use sys::socket;

pub(super) fn examine(
    open: &Open<'_>,
    common: &Common,
    facts: &mut Facts,
) -> Result<PacketSocket, FreezerError> {
    let info = facts.packet(open, common.inode)?;
    if info.ring {
        return Err(open.refuse("packet sockets with a ring (PACKET_RX_RING) are not carried"));
    }
    if info.fanout {
        return Err(open.refuse("packet sockets in a fan-out group are not carried"));
    }
    if common.has(c::POLLERR) {
        return Err(open.refuse("an error waits on it that was not read yet"));
    }
    // Packets in its queue are left behind, as are those that pass while nobody runs: a packet socket
    // shows what it can keep up with.
    // struct sockaddr_ll: family u16, protocol u16 (network order), index i32.
    let address = socket::name(open.copy.as_fd()).map_err(open.call("asking for its address"))?;
    let half = |at: usize| [0, 1].map(|n| address.get(at + n).copied().unwrap_or(0));
    let index = [4, 5, 6, 7].map(|at| address.get(at).copied().unwrap_or(0));
    let index = u32::from_ne_bytes(index);
    let mut memberships = Vec::new();
    for (index, kind, address) in info.memberships {
        memberships.push((interface(open, index)?, kind, address));
    }
    Ok(PacketSocket {
        protocol: u16::from_be_bytes(half(2)),
        interface: match index {
            0 => None,
            index => Some(interface(open, index)?),
        },
        memberships,
    })
}

fn interface(open: &Open<'_>, index: u32) -> Result<String, FreezerError> {
    let name = if_indextoname(index).map_err(open.call("asking for an interface's name"))?;
    Ok(name.to_string_lossy().into_owned())
}
