//! Packet sockets (packet(7)).

use super::options::{self, When};
use super::{Making, Sockets, attach_filter, interface, packet_rings};
use crate::ResurrectError;
use nix::libc as c;
use persist_mem::manifest::{Fanout, PacketSocket, SocketState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::socket::Outgoing;
use sys::{Errno, socket};

const SOL_PACKET: i32 = 263;
const PACKET_ADD_MEMBERSHIP: i32 = 1;
const PACKET_FANOUT: i32 = 18;
/// Room for an address in `struct packet_mreq`.
const ADDRESS: usize = 8;

/// Makes those with rings, before any is bound that would hear what goes over the loopback interface for that.
pub(super) fn make_rings(all: &[Making<'_>], sockets: &mut Sockets) -> Result<(), ResurrectError> {
    for making in all {
        if let SocketState::Packet(state) = &making.socket.state
            && let Some(rings) = &state.rings
        {
            let fd = new(making)?;
            packet_rings::make(making, &fd, rings)?;
            // It hears what is sent for the others.
            let quiet = socket::attach_filter(fd.as_fd(), &NOTHING);
            quiet.map_err(making.failed("filtering what comes while others are made"))?;
            sockets.unbound.insert(making.id(), fd);
        }
    }
    Ok(())
}

fn new(making: &Making<'_>) -> Result<OwnedFd, ResurrectError> {
    let fd =
        socket::socket(c::AF_PACKET, making.socket.kind, 0).map_err(making.failed("making it"))?;
    options::set(making, fd.as_fd(), When::Early)?;
    Ok(fd)
}

/// Made and bound.
pub(super) fn make(
    making: &Making<'_>,
    state: &PacketSocket,
    sockets: &mut Sockets,
) -> Result<OwnedFd, ResurrectError> {
    let fd = match sockets.unbound.remove(&making.id()) {
        Some(fd) => {
            socket::set_int_option(fd.as_fd(), c::SOL_SOCKET, SO_DETACH_FILTER, 0)
                .map_err(making.failed("taking its filter away"))?;
            // It counts from now on.
            heard(fd.as_fd()).map_err(making.failed("asking for its statistics"))?;
            fd
        }
        None => new(making)?,
    };
    // Packets come as soon as it is bound, and shall pass the filter then.
    attach_filter(making, fd.as_fd())?;
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

/// A classic BPF program that takes nothing: `ret #0`.
const NOTHING: [u64; 1] = [0x06];
const SO_DETACH_FILTER: i32 = 27;
/// How long a packet may take over the loopback interface.
const HEARD_WITHIN: Duration = Duration::from_millis(500);

/// Fills the queues. A packet that cannot be had again is left behind, as one is that comes too fast.
pub(super) fn fill(all: &[Making<'_>], sockets: &Sockets) {
    let all: Vec<(&PacketSocket, BorrowedFd<'_>)> = all
        .iter()
        .filter_map(|making| match &making.socket.state {
            SocketState::Packet(state) => Some((state, sockets.get(making).ok()?)),
            _ => None,
        })
        .collect();
    if all.iter().all(|(state, _)| state.queue.is_empty()) {
        return;
    }
    if let Err(errno) = fill_all(&all) {
        log::warn!("packets that nobody has read are left behind: {errno}");
    }
    for (_, fd) in &all {
        // Its own comes with the last of its options.
        let _ = socket::set_int_option(*fd, c::SOL_SOCKET, SO_DETACH_FILTER, 0);
    }
}

/// Everybody hears what passes the interface, so that all have a filter meanwhile, but for the one that a packet is
/// for.
fn fill_all(all: &[(&PacketSocket, BorrowedFd<'_>)]) -> sys::Result<()> {
    for (_, fd) in all {
        socket::attach_filter(*fd, &NOTHING)?;
    }
    let sender = socket::socket(c::AF_PACKET, c::SOCK_RAW, 0)?;
    let index = nix::net::if_::if_nametoindex("lo")?;
    for (state, fd) in all {
        for packet in &state.queue {
            let protocol = packet.frame.get(12..14).ok_or(Errno::EINVAL)?;
            let mut to = (c::AF_PACKET as u16).to_ne_bytes().to_vec();
            to.extend_from_slice(protocol);
            to.extend_from_slice(&index.to_ne_bytes());
            to.resize(20, 0);
            let message = Outgoing {
                data: &packet.frame,
                to: &to,
                ..Outgoing::default()
            };
            heard(*fd)?;
            socket::attach_filter(*fd, &only(packet.kind))?;
            socket::send(sender.as_fd(), &message, c::MSG_DONTWAIT)?;
            let begun = Instant::now();
            while !heard(*fd)? {
                if begun.elapsed() > HEARD_WITHIN {
                    return Err(Errno::ETIMEDOUT);
                }
                std::thread::sleep(Duration::from_micros(100));
            }
            socket::attach_filter(*fd, &NOTHING)?;
        }
    }
    Ok(())
}

/// Whether packets came since it was asked before.
fn heard(fd: BorrowedFd<'_>) -> sys::Result<bool> {
    const PACKET_STATISTICS: i32 = 6;
    // struct tpacket_stats: packets, drops.
    let found = socket::option(fd, SOL_PACKET, PACKET_STATISTICS, 8)?;
    Ok(found.iter().take(4).any(|byte| *byte != 0))
}

/// A classic BPF program that takes packets of one kind (`SKF_AD_PKTTYPE`, linux/filter.h).
fn only(kind: u8) -> [u64; 4] {
    let instruction = |code: u64, jumps: u64, number: u64| code | jumps << 16 | number << 32;
    [
        instruction(0x20, 0, 0xffff_f004),
        // jeq #kind, next, over it
        instruction(0x15, 1 << 8, kind.into()),
        instruction(0x06, 0, u64::from(u32::MAX)),
        instruction(0x06, 0, 0),
    ]
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
