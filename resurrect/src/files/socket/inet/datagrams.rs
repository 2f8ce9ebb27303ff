//! Datagrams that were received and not read: sent once more.

use super::{bind, set_int, wildcard};
use crate::ResurrectError;
use crate::files::socket::{Making, Sockets, packets, queue};
use nix::libc as c;
use persist_mem::manifest::{InetSocket, SocketMessage, SocketState};
use std::os::fd::{AsFd, BorrowedFd};
use sys::socket::Control;
use sys::{Errno, socket};

const IPV6_TRANSPARENT: i32 = 75;
const BY_INDEX: (i32, i32) = (c::SOL_SOCKET, c::SO_BINDTOIFINDEX);
const SO_DETACH_REUSEPORT_BPF: (i32, i32) = (c::SOL_SOCKET, c::SO_DETACH_REUSEPORT_BPF);

/// Sends what was in the queues of UDP sockets, over the loopback interface and from the addresses it
/// came from.
pub(in crate::files::socket) fn fill(
    all: &[Making<'_>],
    sockets: &Sockets,
) -> Result<(), ResurrectError> {
    for making in all {
        if let SocketState::Inet(state) = &making.socket.state {
            if state.connection.is_some() || packets::gets_packets(making) {
                continue;
            }
            if state.queue.is_empty() {
                continue;
            }
            unbind_device(making, sockets.get(making)?)?;
            let shared = choose(all, making, state, sockets.get(making)?)?;
            for message in &state.queue {
                send(all, sockets, making, state, message)?;
            }
            if shared {
                set_int(sockets.get(making)?, SO_DETACH_REUSEPORT_BPF, 0)
                    .map_err(making.failed("letting the kernel choose again"))?;
            }
        }
    }
    Ok(())
}

/// Has a socket get what comes for all that share its port (`SO_REUSEPORT`); false when it shares it with nobody.
fn choose(
    all: &[Making<'_>],
    making: &Making<'_>,
    state: &InetSocket,
    fd: BorrowedFd<'_>,
) -> Result<bool, ResurrectError> {
    let Some(own) = &state.group else {
        return Ok(false);
    };
    // They were bound in the order of their places.
    let before = all.iter().filter(|other| {
        let SocketState::Inet(other_state) = &other.socket.state else {
            return false;
        };
        let alike = (
            other.socket.domain,
            other.socket.protocol,
            &other_state.local,
        ) == (making.socket.domain, making.socket.protocol, &state.local);
        alike
            && other_state
                .group
                .as_ref()
                .is_some_and(|group| group.place < own.place)
    });
    let place = before.count() as u64;
    // ret #place
    match socket::attach_port_program(fd, &[0x06 | place << 32]) {
        Ok(()) => Ok(true),
        // It has let go of its device, and of its group with it.
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(making.failed("having it get what is sent to its port")(
            errno,
        )),
    }
}

/// What is sent on this host comes from the loopback interface; the device comes back with the options.
fn unbind_device(making: &Making<'_>, fd: BorrowedFd<'_>) -> Result<(), ResurrectError> {
    // To let go of none would take it out of the group of its port (net/ipv4/udp.c, udp_lib_rehash()).
    let bound = making.socket.options.iter().any(|option| {
        let line = (option.level, option.name) == (c::SOL_SOCKET, c::SO_BINDTODEVICE);
        line && option.value.iter().any(|byte| *byte != 0)
    });
    if !bound {
        return Ok(());
    }
    socket::set_option(fd, c::SOL_SOCKET, c::SO_BINDTODEVICE, &[0])
        .map_err(making.failed("letting go of its device"))
}

fn send(
    all: &[Making<'_>],
    sockets: &Sockets,
    making: &Making<'_>,
    state: &InetSocket,
    message: &SocketMessage,
) -> Result<(), ResurrectError> {
    let source = plain(&message.source);
    let to = destination(
        &plain(&state.local),
        &source,
        &message.destination,
        &message.header,
    );
    let mut control = as_sent(&message.header);
    // One that does not ask for it would get the parts.
    if message.segment != 0 && takes_segments(making) {
        let size = message.segment.to_ne_bytes().to_vec();
        control.push((c::SOL_UDP, c::UDP_SEGMENT, size));
    }
    let domain = i32::from(source.first().copied().unwrap_or(0));
    let local = socket::is_local(&source);
    let mut senders = all.iter().filter(|sender| {
        sender.socket.kind == c::SOCK_DGRAM
            && sender.socket.protocol == making.socket.protocol
            && sends_from(sender, &source, local)
    });
    // Also itself, where nobody else has the address.
    let myself = senders.clone().find(|sender| sender.id() == making.id());
    let known = senders.find(|sender| sender.id() != making.id()).or(myself);
    let hidden = hide(all, sockets, making, state, known)?;
    if let Some(sender) = known {
        queue::send_inet(making, sockets.get(sender)?, message, &to, &control)?;
        return show(making, &hidden);
    }
    let doing = "making a sender for what is in its queue";
    let stranger = socket::socket(domain, c::SOCK_DGRAM, making.socket.protocol)
        .map_err(making.failed(doing))?;
    let fd = stranger.as_fd();
    let transparent = if domain == c::AF_INET {
        (c::SOL_IP, c::IP_TRANSPARENT)
    } else {
        (c::SOL_IPV6, IPV6_TRANSPARENT)
    };
    for (level, name) in [
        transparent,
        (c::SOL_SOCKET, c::SO_REUSEADDR),
        (c::SOL_SOCKET, c::SO_REUSEPORT),
        (c::SOL_SOCKET, c::SO_BROADCAST),
    ] {
        socket::set_int_option(fd, level, name, 1).map_err(making.failed(doing))?;
    }
    socket::bind(fd, &source).map_err(making.failed(doing))?;
    queue::send_inet(making, fd, message, &to, &control)?;
    show(making, &hidden)
}

/// What is sent on this host passes by who is bound to this interface.
const NO_INTERFACE: i32 = i32::MAX;

/// Has the others of its port, but for `sender`, get nothing: some would get what is sent to it by now, since they have
/// bound an address of their own, or the same one later (net/ipv4/udp.c, `__udp4_lib_lookup`). Those of a group of
/// `SO_REUSEPORT` would leave that.
fn hide<'a>(
    all: &[Making<'_>],
    sockets: &'a Sockets,
    making: &Making<'_>,
    state: &InetSocket,
    sender: Option<&Making<'_>>,
) -> Result<Vec<BorrowedFd<'a>>, ResurrectError> {
    let mut hidden = Vec::new();
    for other in all {
        let SocketState::Inet(of_other) = &other.socket.state else {
            continue;
        };
        let same = other.socket.kind == c::SOCK_DGRAM
            && other.socket.protocol == making.socket.protocol
            && port(of_other) == port(state);
        let sends = sender.is_some_and(|sender| sender.id() == other.id());
        if same && other.id() != making.id() && !sends && of_other.group.is_none() {
            let fd = sockets.get(other)?;
            set_int(fd, BY_INDEX, NO_INTERFACE).map_err(making.failed(HIDING))?;
            hidden.push(fd);
        }
    }
    Ok(hidden)
}

fn port(state: &InetSocket) -> Option<&[u8]> {
    state.local.get(2..4)
}

/// The device that one had comes back with the options.
fn show(making: &Making<'_>, hidden: &[BorrowedFd<'_>]) -> Result<(), ResurrectError> {
    for fd in hidden {
        set_int(*fd, BY_INDEX, 0).map_err(making.failed(HIDING))?;
    }
    Ok(())
}

const HIDING: &str = "having others of its port get nothing";

/// Whether a socket gets datagrams together that came together (`UDP_GRO`).
fn takes_segments(making: &Making<'_>) -> bool {
    making.socket.options.iter().any(|option| {
        let line = (option.level, option.name) == (c::SOL_UDP, c::UDP_GRO);
        line && option.value.iter().any(|byte| *byte != 0)
    })
}

/// Whether what a socket sends comes from an address, which is one of this host's or not. One of IPv6 sends to addresses
/// of IPv4 as well, from such addresses.
fn sends_from(sender: &Making<'_>, source: &[u8], local: bool) -> bool {
    let SocketState::Inet(state) = &sender.socket.state else {
        return false;
    };
    if port(state) != source.get(2..4) {
        return false;
    }
    // One that will be connected has no host of its own yet.
    let own = match bind::by_routing(state) {
        true => wildcard(&state.local),
        false => plain(&state.local),
    };
    let both = sender.socket.domain == c::AF_INET6
        && i32::from(source.first().copied().unwrap_or(0)) == c::AF_INET
        && !is_v6_only(sender);
    let any = |own: &[u8]| both && own.first() == Some(&(c::AF_INET6 as u8)) && is_any(own);
    own == source || local && own == wildcard(source) || local && any(&own)
}

/// Whether an address of IPv6 names no host.
fn is_any(address: &[u8]) -> bool {
    address
        .get(8..24)
        .is_some_and(|host| host.iter().all(|byte| *byte == 0))
}

fn is_v6_only(making: &Making<'_>) -> bool {
    making.socket.options.iter().any(|option| {
        let line = (option.level, option.name) == (c::SOL_IPV6, c::IPV6_V6ONLY);
        line && option.value.iter().any(|byte| *byte != 0)
    })
}

/// Hops, type of service and options of a header of IP, as control messages of the sender, who may have others by now.
fn as_sent(header: &[u8]) -> Vec<Control> {
    let number = |level, name, value: u8| (level, name, i32::from(value).to_ne_bytes().to_vec());
    match *header {
        [first, service, _, _, _, _, _, _, hops, ..] if first >> 4 == 4 => vec![
            number(c::SOL_IP, c::IP_TTL, hops),
            number(c::SOL_IP, c::IP_TOS, service),
            (c::SOL_IP, c::IP_RETOPTS, options_of(first, header)),
        ],
        [first, second, _, _, _, _, _, hops, ..] if first >> 4 == 6 => vec![
            number(c::SOL_IPV6, c::IPV6_HOPLIMIT, hops),
            number(c::SOL_IPV6, c::IPV6_TCLASS, first << 4 | second >> 4),
        ],
        _ => Vec::new(),
    }
}

/// The options of a header of IPv4 that begins with `first`.
fn options_of(first: u8, header: &[u8]) -> Vec<u8> {
    const LEAST: usize = 20;
    let len = usize::from(first & 0xf) * 4;
    header.get(LEAST..len).unwrap_or_default().to_vec()
}

/// An IPv4 address inside an IPv6 one as an IPv4 address.
fn plain(address: &[u8]) -> Vec<u8> {
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    match (address.first(), address.get(8..20)) {
        (Some(10), Some(prefix)) if prefix == MAPPED => {
            [&[2, 0], &address[2..4], &address[20..24], &[0; 8]].concat()
        }
        _ => address.to_vec(),
    }
}

/// The address that a header of IP was sent to, when it is one of this host's.
fn to_this_host(port: &[u8], header: &[u8]) -> Option<Vec<u8>> {
    let v6 = header.first()? >> 4 == 6;
    let to = if v6 {
        [&[10, 0], port, &[0; 4], header.get(24..40)?, &[0; 4]].concat()
    } else {
        [&[2, 0], port, header.get(16..20)?, &[0; 8]].concat()
    };
    socket::is_local(&to).then_some(to)
}

/// Where to send a datagram so that the socket bound to `local` gets it: the address it was sent to
/// where that is known, else the one it is bound to, else the sender's own when it is this host's (then
/// routing chooses the same as source), else the loopback address.
fn destination(local: &[u8], source: &[u8], info: &[u8], header: &[u8]) -> Vec<u8> {
    let port = local.get(2..4).unwrap_or(&[0, 0]);
    if let Some(to) = to_this_host(port, header) {
        return to;
    }
    if source.first() == Some(&2) {
        // struct in_pktinfo: index, specific destination, destination.
        let told = info.get(8..12).filter(|_| info.len() == 12);
        let own = local.get(4..8).filter(|_| local.first() == Some(&2));
        let host = [told, own]
            .into_iter()
            .flatten()
            .find(|host| **host != [0; 4]);
        let own = source.get(4..8).filter(|_| socket::is_local(source));
        let host = host.or(own).unwrap_or(&[127, 0, 0, 1]);
        return [&[2, 0], port, host, &[0; 8]].concat();
    }
    // struct in6_pktinfo: destination, index.
    let mut loopback = [0u8; 16];
    loopback[15] = 1;
    let told = info.get(..16).filter(|_| info.len() == 20);
    let own = local.get(8..24);
    let host = [told, own]
        .into_iter()
        .flatten()
        .find(|host| **host != [0; 16]);
    let scope = local.get(24..28).unwrap_or(&[0; 4]);
    let same = source.get(8..24).filter(|_| socket::is_local(source));
    let host = host.or(same).unwrap_or(&loopback);
    [&[10, 0], port, &[0; 4], host, scope].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: [u8; 16] = [2, 0, 0, 7, 10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn a_datagram_goes_to_where_its_receiver_is() {
        let any = wildcard(&V4);
        assert_eq!(any[..8], [2, 0, 0, 7, 0, 0, 0, 0]);
        assert_eq!(destination(&V4, &V4, &[], &[]), V4);
        assert_eq!(destination(&any, &V4, &[], &[])[4..8], [127, 0, 0, 1]);
        let info = [1, 0, 0, 0, 127, 0, 0, 1, 127, 0, 0, 9];
        assert_eq!(destination(&any, &V4, &info, &[])[4..8], [127, 0, 0, 9]);
        let mut header = [0x45; 20];
        header[16..].copy_from_slice(&[127, 0, 0, 8]);
        assert_eq!(destination(&any, &V4, &info, &header)[4..8], [127, 0, 0, 8]);
        let mapped = [0; 20];
        assert_eq!(destination(&any, &V4, &mapped, &[])[4..8], [127, 0, 0, 1]);
    }

    #[test]
    fn mapped_addresses() {
        let mut mapped = vec![10, 0, 0, 7, 0, 0, 0, 0];
        mapped.extend_from_slice(&[0; 10]);
        mapped.extend_from_slice(&[0xff, 0xff, 10, 0, 0, 9, 0, 0, 0, 0]);
        assert_eq!(plain(&mapped), V4);
        assert_eq!(plain(&V4), V4);
    }
}
