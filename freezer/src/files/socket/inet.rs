//! Sockets of IP: TCP, UDP, ICMP, raw (ip(7), ipv6(7), tcp(7), udp(7), raw(7), icmp(7)).

use super::queue::Message;
use super::{Common, Facts, datagrams, errors, packets, pending, raw, reuseport, tcp, way};
use crate::FreezerError;
use crate::files::Open;
use crate::kernel;
use nix::libc as c;
use persist_mem::manifest::{InetSocket, MulticastGroup};
use std::os::fd::AsFd;
use sys::{Errno, socket};

/// include/uapi/linux/in.h; its value holds `struct group_filter`.
const MCAST_MSFILTER: i32 = 48;
/// Sources that are asked for with a group.
const SOURCES_MAX: u32 = 64;
/// `struct group_filter` before its sources; a `struct sockaddr_storage` is 128 bytes.
const GROUP_FILTER: usize = 144;

pub(super) fn examine(
    open: &Open<'_>,
    common: &Common,
    facts: &mut Facts,
) -> Result<InetSocket, FreezerError> {
    let fd = open.copy.as_fd();
    let protocol = common.protocol;
    let carried = match common.kind {
        c::SOCK_STREAM => [c::IPPROTO_TCP, c::IPPROTO_MPTCP].contains(&protocol),
        c::SOCK_DGRAM => [
            c::IPPROTO_UDP,
            c::IPPROTO_UDPLITE,
            c::IPPROTO_ICMP,
            c::IPPROTO_ICMPV6,
        ]
        .contains(&protocol),
        c::SOCK_RAW => true,
        _ => false,
    };
    if !carried {
        let text = format!(
            "sockets of type {} and protocol {protocol} are not carried",
            common.kind
        );
        return Err(open.refuse(text));
    }
    let (error, refused) = errors::examine(open, common)?;
    let local = socket::name(fd).map_err(open.call("asking for its address"))?;
    let remote = match socket::peer_name(fd) {
        Ok(address) => address,
        Err(Errno::ENOTCONN) if common.kind == c::SOCK_STREAM => Vec::new(),
        Err(Errno::ENOTCONN) if is_udp(common) && !raw::has_way(fd) => Vec::new(),
        Err(Errno::ENOTCONN) => raw::peer(common),
        Err(errno) => return Err(open.call("asking for its peer's address")(errno)),
    };
    let mut found = InetSocket {
        local: if bound(&local, common.kind) {
            local
        } else {
            Vec::new()
        },
        remote,
        groups: groups(open, common)?,
        group: reuseport::examine(open)?,
        error,
        refused,
        shutdown: shutdown(open, common, facts)?,
        ..InetSocket::default()
    };
    if common.kind == c::SOCK_STREAM {
        let when = match facts.running {
            true => tcp::When::Running,
            false => tcp::When::Stopped,
        };
        tcp::examine(open, common, when, &mut found)?;
        if found.backlog.is_some() || found.connection.is_some() || !found.asks.is_empty() {
            found.shutdown = 0;
        }
        return Ok(found);
    }
    if is_udp(common) && turned_to_ipv4(&found) {
        let why = "it was connected to a host of IPv6 before one of IPv4, and has an address for the former still";
        return Err(open.refuse(why));
    }
    way::examine(open, common, facts.whole_host, &found.remote)?;
    if is_udp(common) && !found.local.is_empty() {
        (found.bound_host, found.chosen_port) = asked_for(open);
    }
    found.pending = pending::examine(open, common)?;
    if !is_udp(common) {
        packets::queue(open, common)?;
    }
    Ok(found)
}

/// Whether a socket has a peer of IPv4 and an address of IPv6. Who binds that has no such peers (net/ipv6/af_inet6.c,
/// `__inet6_bind`).
fn turned_to_ipv4(found: &InetSocket) -> bool {
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let host = |address: &[u8]| match address.first() {
        Some(family) if i32::from(*family) == c::AF_INET6 => address.get(8..24).map(<[u8]>::to_vec),
        _ => None,
    };
    let [Some(own), Some(peer)] = [host(&found.local), host(&found.remote)] else {
        return false;
    };
    let of_ipv4 = |host: &[u8]| host.starts_with(&MAPPED);
    of_ipv4(&peer) && !of_ipv4(&own) && own.iter().any(|byte| *byte != 0)
}

/// Whether it is of UDP or UDP-Lite.
pub(super) fn is_udp(common: &Common) -> bool {
    common.kind == c::SOCK_DGRAM && [c::IPPROTO_UDP, c::IPPROTO_UDPLITE].contains(&common.protocol)
}

/// Whether somebody has asked for the host that it has, and whether nobody has for the port: that goes when the socket is
/// disconnected (connect(2), `AF_UNSPEC`).
fn asked_for(open: &Open<'_>) -> (bool, bool) {
    /// `SOCK_BINDADDR_LOCK` and `SOCK_BINDPORT_LOCK`, include/net/sock.h
    const HOST: u8 = 4;
    const PORT: u8 = 8;
    let locks = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        // A byte in newer kernels, four bits before.
        let (first, width) = match kernel.btf().field("sock", "sk_userlocks") {
            Ok(field) => (field.offset * 8, 8),
            Err(_) => kernel.btf().bits("sock", "sk_userlocks")?,
        };
        let byte = kernel.read(&[(sk.wrapping_add(first / 8), 1)])?;
        let byte = byte.into_iter().flatten().next().unwrap_or_default();
        let byte = byte.first().copied().unwrap_or(u8::MAX);
        Ok(byte >> (first % 8) & ((1_u16 << width) - 1) as u8)
    });
    locks.map_or((false, false), |locks| {
        (locks & HOST != 0, locks & PORT == 0)
    })
}

/// The halves that are shut down of a socket without a connection.
fn shutdown(open: &Open<'_>, common: &Common, facts: &mut Facts) -> Result<u8, FreezerError> {
    if is_udp(common)
        && common.protocol == c::IPPROTO_UDP
        && let Some(found) = facts.udp_shutdown(open, common.inode)?
    {
        return Ok(found);
    }
    // Of those that are neither bound nor connected, and of other protocols, nobody else tells.
    let found = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        kernel.fields(sk, "sock", &["sk_shutdown"])
    });
    Ok(found.map_or(0, |found| found.first().map_or(0, |how| *how as u8)))
}

/// Whether an address is not the one of a new socket. Of a raw socket the port is the protocol.
fn bound(address: &[u8], kind: i32) -> bool {
    let (port, rest) = (address.get(2..4), address.get(4..));
    let ip = match address.first().map(|family| i32::from(*family)) {
        Some(c::AF_INET) => rest.and_then(|rest| rest.get(..4)),
        _ => rest.and_then(|rest| rest.get(4..20)),
    };
    let set = |bytes: Option<&[u8]>| bytes.is_some_and(|bytes| bytes.iter().any(|b| *b != 0));
    set(ip) || (kind != c::SOCK_RAW && set(port))
}

/// What a socket received and nobody has read.
pub(super) fn queue(open: &Open<'_>, common: &Common) -> Result<Vec<Message>, FreezerError> {
    if common.kind == c::SOCK_STREAM {
        // Asked for when nothing is under way any more (`settle.rs`).
        Ok(Vec::new())
    } else if !is_udp(common) {
        packets::queue(open, common)
    } else if common.has(c::POLLIN) {
        datagrams::queue(open)
    } else {
        Ok(Vec::new())
    }
}

/// The multicast groups a socket is in: the kernel tells of one when asked for it, so it is asked for
/// every group that any socket joined.
fn groups(open: &Open<'_>, common: &Common) -> Result<Vec<MulticastGroup>, FreezerError> {
    if common.kind == c::SOCK_STREAM {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (place, (index, interface, group)) in (0..).zip(joined_v4()) {
        let address = [&[2, 0, 0, 0], &group[..]].concat();
        let joined = group_filter(open, c::SOL_IP, index, &interface, &address)?;
        found.extend(joined.map(|group| MulticastGroup { place, ..group }));
    }
    if common.domain == c::AF_INET6 {
        for (place, (index, interface, group)) in (0..).zip(joined_v6()) {
            let address = [&[10, 0, 0, 0, 0, 0, 0, 0], &group[..], &[0; 4]].concat();
            let joined = group_filter(open, c::SOL_IPV6, index, &interface, &address)?;
            found.extend(joined.map(|group| MulticastGroup { place, ..group }));
        }
    }
    Ok(found)
}

fn group_filter(
    open: &Open<'_>,
    level: i32,
    index: u32,
    interface: &str,
    group: &[u8],
) -> Result<Option<MulticastGroup>, FreezerError> {
    let mut value = vec![0u8; GROUP_FILTER + 128 * SOURCES_MAX as usize];
    value[..4].copy_from_slice(&index.to_ne_bytes());
    value[8..8 + group.len()].copy_from_slice(group);
    value[140..144].copy_from_slice(&SOURCES_MAX.to_ne_bytes());
    let value = match socket::query_option(open.copy.as_fd(), level, MCAST_MSFILTER, value) {
        Ok(value) => value,
        Err(Errno::EADDRNOTAVAIL | Errno::EINVAL | Errno::ENODEV | Errno::ENOPROTOOPT) => {
            return Ok(None);
        }
        Err(errno) => return Err(open.call("asking for a multicast group")(errno)),
    };
    let word = |at: usize| {
        let found = value.get(at..at + 4).and_then(|w| w.try_into().ok());
        found.map_or(0, u32::from_ne_bytes)
    };
    let count = word(140);
    if count > SOURCES_MAX {
        return Err(open.refuse(format!(
            "a multicast group with {count} sources is not carried"
        )));
    }
    let sources = value.get(GROUP_FILTER..).unwrap_or(&[]).chunks_exact(128);
    Ok(Some(MulticastGroup {
        interface: interface.to_owned(),
        group: group.to_vec(),
        mode: word(136),
        sources: sources
            .take(count as usize)
            .map(|source| source[..group.len()].to_vec())
            .collect(),
        place: 0,
    }))
}

/// Index and name of the interface and the group, the last one first, from `/proc/net/igmp`.
fn joined_v4() -> Vec<(u32, String, [u8; 4])> {
    let text = std::fs::read_to_string("/proc/self/net/igmp").unwrap_or_default();
    let mut found = Vec::new();
    let mut interface = None;
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        if line.starts_with(char::is_whitespace) {
            let group = words.next().and_then(|w| u32::from_str_radix(w, 16).ok());
            if let (Some((index, name)), Some(group)) = (&interface, group) {
                // Printed as a number of this machine, stored in network order.
                found.push((*index, String::clone(name), group.to_ne_bytes()));
            }
        } else if let (Some(Ok(index)), Some(name)) = (words.next().map(str::parse), words.next()) {
            interface = Some((index, name.trim_end_matches(':').to_owned()));
        }
    }
    found
}

/// Index and name of the interface and the group, the last one first, from `/proc/net/igmp6`.
fn joined_v6() -> Vec<(u32, String, [u8; 16])> {
    let text = std::fs::read_to_string("/proc/self/net/igmp6").unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let index = words.next()?.parse().ok()?;
        let name = words.next()?.to_owned();
        let group = u128::from_str_radix(words.next()?, 16).ok()?;
        Some((index, name, group.to_be_bytes()))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_socket_is_not_bound() {
        assert!(!bound(&[2, 0, 0, 0, 0, 0, 0, 0], c::SOCK_DGRAM));
        assert!(bound(&[2, 0, 0, 7, 0, 0, 0, 0], c::SOCK_DGRAM));
        assert!(!bound(&[2, 0, 0, 1, 0, 0, 0, 0], c::SOCK_RAW));
        assert!(bound(&[2, 0, 0, 1, 127, 0, 0, 1], c::SOCK_RAW));
        let mut v6 = [0u8; 28];
        v6[0] = 10;
        assert!(!bound(&v6, c::SOCK_STREAM));
        v6[23] = 1;
        assert!(bound(&v6, c::SOCK_STREAM));
        assert!(!bound(&[], c::SOCK_STREAM));
    }
}
