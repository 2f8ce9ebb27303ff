//! `/dev/net/tun`: the first descriptor of an interface makes it, with all that was set up on it; the others
//! take part.

use super::Opening;
use crate::ResurrectError;
use nix::libc as c;
use nix::sys::stat::Mode;
use persist_mem::manifest::{DescriptionId, DescriptionKind, Manifest, Tunnel};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use sys::rtnetlink::{self, LINK_FIXED, Netlink, attribute, attributes, messages};
use sys::socket::{self, Outgoing};
use sys::{Errno, tun};

/// Link attributes (linux/if_link.h).
const ADDRESS: u16 = 1;
const IFNAME: u16 = 3;
const MTU: u16 = 4;
const TXQLEN: u16 = 13;
/// `IFF_UP`; `IFF_*` of if.h that users set, as captured.
const UP: u32 = 1;
const SET_BY_USERS: u32 = 0x1 | 0x4 | 0x80 | 0x100 | 0x200 | 0x1000 | 0x8000;
/// `IFF_NO_PI`: no header says what a packet is.
const NO_PI: u32 = 0x1000;
/// `struct tun_pi`: flags, and the protocol in network order.
const PI: usize = 4;
const ETH_P_IP: u16 = 0x800;
const ETH_P_IPV6: u16 = 0x86dd;
/// Of packet(7).
const SOL_PACKET: i32 = 263;
const PACKET_VNET_HDR: i32 = 15;
/// Largest packet.
const PACKET: usize = 1 << 17;

/// Opens one, and makes its interface where it is the first.
pub(super) fn open(
    opening: &Opening<'_, '_>,
    path: &[u8],
    interface: Option<&str>,
    detached: bool,
) -> Result<OwnedFd, ResurrectError> {
    let path = Path::new(OsStr::from_bytes(path));
    let opened = nix::fcntl::open(path, opening.flags(), Mode::empty());
    let file = opened.map_err(opening.failed("opening it"))?;
    let Some(name) = interface else {
        return Ok(file);
    };
    let manifest = opening.restore.manifest;
    let tunnel = manifest.tunnels.iter().find(|tunnel| tunnel.name == name);
    let tunnel = tunnel.ok_or_else(|| opening.failed("finding its interface")(Errno::ENODEV))?;
    let netlink = Netlink::open().map_err(opening.failed("opening rtnetlink"))?;
    let first = first(manifest, name) == Some(opening.description.id);
    let there = index_of(&netlink, name).map_err(opening.failed("asking for interfaces"))?;
    if first && there.is_some() && !tunnel.persistent {
        return Err(ResurrectError::changed(
            format!("the network interface {name}"),
            "there is another one of that name",
        ));
    }
    attach(file.as_fd(), tunnel, there.is_none())
        .map_err(opening.failed("making its interface"))?;
    if there.is_none() {
        let made = set_up(file.as_fd(), tunnel, &netlink);
        made.map_err(opening.failed("setting its interface up"))?;
    }
    let settings = tun::Settings {
        send_buffer: tunnel.send_buffer,
        header_size: tunnel.header_size,
        little_endian: tunnel.little_endian,
        big_endian: tunnel.big_endian,
    };
    tun::set_settings(file.as_fd(), settings).map_err(opening.failed("setting it up"))?;
    if detached {
        tun::detach(file.as_fd()).map_err(opening.failed("taking it out of use"))?;
    }
    Ok(file)
}

/// The description that makes an interface.
fn first(manifest: &Manifest, name: &str) -> Option<DescriptionId> {
    let mut all = manifest.descriptions.iter();
    all.find(|description| {
        matches!(&description.kind, DescriptionKind::Tunnel { interface: Some(other), .. } if other == name)
    })
    .map(|description| description.id)
}

fn index_of(netlink: &Netlink, name: &str) -> sys::Result<Option<u32>> {
    let dump = netlink.dump(rtnetlink::GETLINK, &[0; LINK_FIXED])?;
    let named = |message: &&Vec<u8>| {
        let mut all = attributes(message, LINK_FIXED).into_iter();
        all.any(|(kind, value)| kind == IFNAME && value.strip_suffix(&[0]) == Some(name.as_bytes()))
    };
    let found = dump.iter().map(|(_, message)| message).find(named);
    let index = found.and_then(|message| message.get(4..)?.first_chunk());
    Ok(index.map(|index| u32::from_ne_bytes(*index)))
}

/// A new interface gets its old number, unless somebody else has that by now.
fn attach(file: BorrowedFd<'_>, tunnel: &Tunnel, new: bool) -> sys::Result<()> {
    if !new {
        return tun::attach(file, &tunnel.name, tunnel.flags);
    }
    tun::choose_index(file, tunnel.index)?;
    match tun::attach(file, &tunnel.name, tunnel.flags) {
        Err(Errno::EBUSY) => {
            log::warn!(
                "the number {} of the network interface {} is taken: it gets another one",
                tunnel.index,
                tunnel.name
            );
            tun::choose_index(file, 0)?;
            tun::attach(file, &tunnel.name, tunnel.flags)
        }
        done => done,
    }
}

/// All that was set up on an interface. It is up before it has addresses, which routes need.
fn set_up(file: BorrowedFd<'_>, tunnel: &Tunnel, netlink: &Netlink) -> sys::Result<()> {
    if tunnel.persistent {
        tun::make_persistent(file)?;
    }
    tun::give_to(file, tunnel.owner, tunnel.group)?;
    if tunnel.offloads != 0 {
        tun::set_offloads(file, tunnel.offloads)?;
    }
    tun::set_link_type(file, tunnel.link_type)?;
    let index = index_of(netlink, &tunnel.name)?.ok_or(Errno::ENODEV)?;
    let mut link = messages::link_message(index, tunnel.state & !UP, SET_BY_USERS);
    if !tunnel.hardware.is_empty() {
        link.extend(attribute(ADDRESS, &tunnel.hardware));
    }
    link.extend(attribute(MTU, &tunnel.mtu.to_ne_bytes()));
    link.extend(attribute(TXQLEN, &tunnel.queue_len.to_ne_bytes()));
    netlink.change(rtnetlink::NEWLINK, &link)?;
    for (path, value) in &tunnel.settings {
        set_setting(path, value);
    }
    if tunnel.state & UP != 0 {
        netlink.change(rtnetlink::NEWLINK, &messages::link_message(index, UP, UP))?;
    }
    let numbers = [(tunnel.index, index)];
    for address in &tunnel.addresses {
        let message = messages::with_link(address, &numbers).ok_or(Errno::EINVAL)?;
        netlink.change(rtnetlink::NEWADDR, &message)?;
    }
    // Routes through gateways come after the routes to these; two rounds order them.
    let mut rest = Vec::new();
    for route in &tunnel.routes {
        let message = messages::renumbered(route, &numbers);
        if netlink.change(rtnetlink::NEWROUTE, &message).is_err() {
            rest.push(message);
        }
    }
    let mut rest = rest.iter();
    rest.try_for_each(|message| netlink.change(rtnetlink::NEWROUTE, message))
}

/// Writes a setting that differs. What this kernel does not know, or does not let be set, is left alone.
fn set_setting(path: &str, value: &str) {
    let file = format!("/proc/sys/net/{path}");
    let now = std::fs::read_to_string(&file);
    if now.is_ok_and(|now| now.trim_end() == value) {
        return;
    }
    if let Err(error) = std::fs::write(&file, value) {
        log::debug!("{file}: {error}");
    }
}

/// Sends the packets through the interfaces again that nobody had read, when all descriptors are there. What
/// setting them up has brought is taken out before.
pub(super) fn queue_packets(restore: &crate::restore::Restore<'_>) -> Result<(), ResurrectError> {
    for description in &restore.manifest.descriptions {
        let DescriptionKind::Tunnel {
            interface: Some(name),
            unread,
            ..
        } = &description.kind
        else {
            continue;
        };
        let Some(file) = restore.files.opened.get(&description.id) else {
            continue;
        };
        let opening = Opening {
            restore,
            description,
        };
        let failed = opening.failed("queueing its packets");
        let tunnel = restore.manifest.tunnels.iter().find(|t| t.name == *name);
        let queue = || {
            drain(file.as_fd());
            tunnel.map_or(Ok(()), |tunnel| send_again(tunnel, unread))
        };
        queue().map_err(failed)?;
    }
    Ok(())
}

/// Takes out what is there.
fn drain(file: BorrowedFd<'_>) {
    let mut buffer = vec![0; PACKET];
    while socket::events(file).is_ok_and(|events| events & c::POLLIN != 0)
        && nix::unistd::read(file, &mut buffer).is_ok()
    {}
}

fn send_again(tunnel: &Tunnel, packets: &[Vec<u8>]) -> sys::Result<()> {
    if packets.is_empty() || tunnel.state & UP == 0 {
        return Ok(());
    }
    let index = index_of(&Netlink::open()?, &tunnel.name)?.ok_or(Errno::ENODEV)?;
    let sender = socket::socket(c::AF_PACKET, c::SOCK_RAW, 0)?;
    for packet in packets {
        let Some((protocol, data)) = unwrapped(tunnel, packet) else {
            continue;
        };
        // struct sockaddr_ll: family, protocol (network order), interface.
        let mut to = [0; 20];
        to[..2].copy_from_slice(&(c::AF_PACKET as u16).to_ne_bytes());
        to[2..4].copy_from_slice(&protocol.to_be_bytes());
        to[4..8].copy_from_slice(&index.to_ne_bytes());
        let header = unfinished(tunnel, packet);
        let with_header = [header.unwrap_or_default(), data].concat();
        let takes_header = header.is_some().into();
        socket::set_int_option(sender.as_fd(), SOL_PACKET, PACKET_VNET_HDR, takes_header)?;
        let message = Outgoing {
            data: &with_header,
            to: &to,
            ..Outgoing::default()
        };
        socket::send(sender.as_fd(), &message, 0)?;
    }
    Ok(())
}

/// What says how a packet is to be finished (`struct virtio_net_hdr`), None for one that is.
fn unfinished<'a>(tunnel: &Tunnel, packet: &'a [u8]) -> Option<&'a [u8]> {
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
    const NEEDS_CHECKSUM: u8 = 1;
    if tunnel.flags & tun::VNET_HDR == 0 || tunnel.big_endian {
        return None;
    }
    let before = if tunnel.flags & NO_PI == 0 { PI } else { 0 };
    let header = packet.get(before..before + 10)?;
    (header[0] & NEEDS_CHECKSUM != 0 || header[1] != 0).then_some(header)
}

/// The protocol of a packet, and the packet without what stands before it.
fn unwrapped<'a>(tunnel: &Tunnel, packet: &'a [u8]) -> Option<(u16, &'a [u8])> {
    let mut data = packet;
    let mut protocol = None;
    if tunnel.flags & NO_PI == 0 {
        protocol = Some(u16::from_be_bytes([*data.get(2)?, *data.get(3)?]));
        data = data.get(PI..)?;
    }
    if tunnel.flags & tun::VNET_HDR != 0 {
        data = data.get(usize::try_from(tunnel.header_size).ok()?..)?;
    }
    if tunnel.flags & tun::TAP != 0 {
        // Behind the addresses of the frame.
        protocol = Some(u16::from_be_bytes([*data.get(12)?, *data.get(13)?]));
    }
    let by_version = || match data.first()? >> 4 {
        4 => Some(ETH_P_IP),
        6 => Some(ETH_P_IPV6),
        _ => None,
    };
    Some((protocol.or_else(by_version)?, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_before_a_packet_is_taken_off() {
        let tunnel = |flags| Tunnel {
            flags,
            header_size: 10,
            ..Tunnel::default()
        };
        let ip = [0x45, 1, 2, 3];
        assert_eq!(
            unwrapped(&tunnel(1 | NO_PI), &ip),
            Some((ETH_P_IP, &ip[..]))
        );
        let with_pi = [&[0, 0, 0x86, 0xdd][..], &[0x60, 9]].concat();
        assert_eq!(
            unwrapped(&tunnel(1), &with_pi),
            Some((ETH_P_IPV6, &[0x60, 9][..]))
        );
        let with_header = [&[0; 10][..], &ip].concat();
        let flags = 1 | NO_PI | tun::VNET_HDR;
        assert_eq!(
            unwrapped(&tunnel(flags), &with_header),
            Some((ETH_P_IP, &ip[..]))
        );
        let frame = [&[0; 12][..], &[8, 6, 7]].concat();
        assert_eq!(
            unwrapped(&tunnel(2 | NO_PI), &frame),
            Some((0x806, &frame[..]))
        );
    }
}
