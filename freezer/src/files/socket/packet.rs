//! Packet sockets (packet(7)).

use super::{Common, Facts, packet_rings};
use crate::FreezerError;
use crate::files::Open;
use crate::kernel::sockets::Buffer;
use crate::kernel::{self, Kernel, Unreadable};
use nix::libc as c;
use nix::net::if_::if_indextoname;
use persist_mem::manifest::{Fanout, PacketSocket, UnreadPacket};
use std::os::fd::AsFd;
use sys::socket;

const SOL_PACKET: i32 = 263;
const PACKET_FANOUT: i32 = 18;

pub(super) fn examine(
    open: &Open<'_>,
    common: &Common,
    facts: &mut Facts,
) -> Result<PacketSocket, FreezerError> {
    let info = facts.packet(open, common.inode)?;
    let rings = packet_rings::examine(open, common, info.ring)?;
    let fanout = if info.fanout {
        Some(fanout(open)?)
    } else {
        None
    };
    if common.has(c::POLLERR) {
        return Err(open.refuse("an error waits on it that was not read yet"));
    }
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
        fanout,
        queue: Vec::new(),
        rings,
    })
}

/// EtherTypes whose packets the kernel itself deals with (include/uapi/linux/if_ether.h): IP, ARP, RARP, VLANs, IPv6,
/// PPPoE, MPLS.
const OF_THE_KERNEL: &[u16] = &[
    0x0800, 0x0806, 0x8035, 0x8100, 0x86dd, 0x8847, 0x8848, 0x8863, 0x8864, 0x88a8,
];
/// Below are lengths.
const FIRST_TYPE: u16 = 0x0600;
const ETHERNET_HEADER: usize = 14;

/// The packets in its queue that can be sent again: whole ones of the loopback interface that nobody but packet
/// sockets hears. The others are left behind, as are those that pass while nobody runs: a packet socket shows what it
/// can keep up with.
pub(super) fn queue(open: &Open<'_>, common: &Common) -> Vec<UnreadPacket> {
    if !common.has(c::POLLIN) {
        return Vec::new();
    }
    let found = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        let mut found = Vec::new();
        for buffer in kernel.queue(sk)? {
            found.extend(packet(kernel, &buffer, common.kind == c::SOCK_RAW)?);
        }
        Ok(found)
    });
    found.unwrap_or_else(|why| {
        log::debug!("fd {}: packets that were not read: {why}", open.fd);
        Vec::new()
    })
}

/// A packet; None when it cannot be sent again.
fn packet(
    kernel: &mut Kernel,
    buffer: &Buffer,
    raw: bool,
) -> Result<Option<UnreadPacket>, Unreadable> {
    const WRONG: Unreadable = Unreadable::Inconsistent("a packet that was not read");
    let of = |field| kernel.of_family(buffer, "packet_skb_cb", field);
    let (device, kind) = (of("sa.ll.sll_hatype")?, of("sa.ll.sll_pkttype")?);
    let whole = of("sa.origlen")?;
    let mut frame = kernel.contents(buffer)?;
    let is_whole = frame.len() as u64 == whole || was_peeked(whole);
    if !is_whole || device != u64::from(c::ARPHRD_LOOPBACK) {
        return Ok(None);
    }
    if !raw {
        let start = kernel.of_buffer(buffer, "head")?;
        let start = start.wrapping_add(kernel.of_buffer(buffer, "mac_header")?);
        let header = kernel.read(&[(start, ETHERNET_HEADER)])?.pop().flatten();
        frame = [header.ok_or(WRONG)?, frame].concat();
    }
    let Some([high, low]) = frame.get(12..14) else {
        return Ok(None);
    };
    let protocol = u16::from_be_bytes([*high, *low]);
    let heard = protocol < FIRST_TYPE || OF_THE_KERNEL.contains(&protocol);
    Ok((!heard).then_some(UnreadPacket {
        kind: kind as u8,
        frame,
    }))
}

/// Whether a look at it (`MSG_PEEK`) has put family and protocol where its length was (net/packet/af_packet.c,
/// `packet_recvmsg`).
fn was_peeked(length: u64) -> bool {
    const FAMILY: u64 = c::AF_PACKET as u64;
    length & 0xffff == FAMILY && length >> 16 != 0
}

/// Its place in its fan-out group.
fn fanout(open: &Open<'_>) -> Result<Fanout, FreezerError> {
    /// It was only asked for a number that is free.
    const UNIQUE: u32 = 0x2000 << 16;
    /// `PACKET_FANOUT_CBPF`, `PACKET_FANOUT_EBPF`
    const PROGRAMS: [u32; 2] = [6, 7];
    let value = super::int(open, SOL_PACKET, PACKET_FANOUT)?.cast_unsigned();
    if PROGRAMS.contains(&(value >> 16 & 0xff)) {
        return Err(open.refuse("a fan-out group with a program that chooses is not carried"));
    }
    let place = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        place(kernel, sk)
    });
    if let Err(why) = &place {
        log::debug!("fd {}: its place in its fan-out group: {why}", open.fd);
    }
    Ok(Fanout {
        value: value & !UNIQUE,
        place: place.unwrap_or(0),
    })
}

fn place(kernel: &mut Kernel, sk: u64) -> Result<u32, Unreadable> {
    const WRONG: Unreadable = Unreadable::Inconsistent("a fan-out group");
    let fanout = kernel.fields(sk, "packet_sock", &["fanout"])?[0];
    let count = kernel.fields(fanout, "packet_fanout", &["num_members"])?[0];
    let first = kernel.btf().field("packet_fanout", "arr")?.offset;
    // No group is larger (`PACKET_FANOUT_MAX`).
    let places: Vec<u64> = (0..count.min(1 << 16))
        .map(|at| fanout.wrapping_add(first + at * 8))
        .collect();
    let found = kernel.words(&places)?;
    let place = found.iter().position(|one| *one == Some(sk)).ok_or(WRONG)?;
    Ok(place as u32)
}

fn interface(open: &Open<'_>, index: u32) -> Result<String, FreezerError> {
    let name = if_indextoname(index).map_err(open.call("asking for an interface's name"))?;
    Ok(name.to_string_lossy().into_owned())
}
