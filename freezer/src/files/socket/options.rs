//! Which socket options are carried: every one that can be both read and set, one line each.
//!
//! The rebuilding side sets what differs from a new socket's value, in the order given here.

use crate::FreezerError;
use crate::files::Open;
use nix::libc as c;
use persist_mem::manifest::SocketOption;
use std::os::fd::AsFd;
use sys::{Errno, socket};

/// Level, number, size of the value in bytes.
type Line = (i32, i32, usize);

const SOL_NETLINK: i32 = 270;
const SOL_PACKET: i32 = 263;
const SOL_RAW: i32 = 255;

/// An extension header of IPv6 is not longer: its length is a byte, in units of eight bytes without the first.
const EXTENSION: usize = 2048;

/// include/uapi/asm-generic/socket.h, for all families. Buffers come behind what resizes them.
const GENERAL: &[Line] = &[
    (c::SOL_SOCKET, c::SO_DEBUG, 4),
    (c::SOL_SOCKET, c::SO_REUSEADDR, 4),
    (c::SOL_SOCKET, c::SO_REUSEPORT, 4),
    (c::SOL_SOCKET, c::SO_DONTROUTE, 4),
    (c::SOL_SOCKET, c::SO_BROADCAST, 4),
    (c::SOL_SOCKET, c::SO_KEEPALIVE, 4),
    (c::SOL_SOCKET, c::SO_OOBINLINE, 4),
    (c::SOL_SOCKET, c::SO_NO_CHECK, 4),
    (c::SOL_SOCKET, c::SO_PRIORITY, 4),
    (c::SOL_SOCKET, c::SO_LINGER, 8),
    (c::SOL_SOCKET, c::SO_PASSCRED, 4),
    (c::SOL_SOCKET, c::SO_PASSSEC, 4),
    (c::SOL_SOCKET, 76 /* SO_PASSPIDFD */, 4),
    (c::SOL_SOCKET, 83 /* SO_PASSRIGHTS */, 4),
    (c::SOL_SOCKET, c::SO_RCVLOWAT, 4),
    (c::SOL_SOCKET, c::SO_RCVTIMEO, 16),
    (c::SOL_SOCKET, c::SO_SNDTIMEO, 16),
    (c::SOL_SOCKET, c::SO_BINDTODEVICE, 16),
    (c::SOL_SOCKET, c::SO_MARK, 4),
    (c::SOL_SOCKET, c::SO_RXQ_OVFL, 4),
    (c::SOL_SOCKET, 41 /* SO_WIFI_STATUS */, 4),
    (c::SOL_SOCKET, 43 /* SO_NOFCS */, 4),
    (c::SOL_SOCKET, 45 /* SO_SELECT_ERR_QUEUE */, 4),
    (c::SOL_SOCKET, 49 /* SO_INCOMING_CPU */, 4),
    (c::SOL_SOCKET, c::SO_BUSY_POLL, 4),
    (c::SOL_SOCKET, 69 /* SO_PREFER_BUSY_POLL */, 4),
    (c::SOL_SOCKET, 47 /* SO_MAX_PACING_RATE */, 8),
    (c::SOL_SOCKET, 60 /* SO_ZEROCOPY */, 4),
    (c::SOL_SOCKET, 73 /* SO_RESERVE_MEM */, 4),
    (c::SOL_SOCKET, 74 /* SO_TXREHASH */, 4),
    (c::SOL_SOCKET, 61 /* SO_TXTIME */, 8),
    (c::SOL_SOCKET, 75 /* SO_RCVMARK */, 4),
    (c::SOL_SOCKET, 82 /* SO_RCVPRIORITY */, 4),
    (c::SOL_SOCKET, 84 /* SO_INQ */, 4),
    (c::SOL_SOCKET, 29 /* SO_TIMESTAMP_OLD */, 4),
    (c::SOL_SOCKET, 35 /* SO_TIMESTAMPNS_OLD */, 4),
    (c::SOL_SOCKET, 63 /* SO_TIMESTAMP_NEW */, 4),
    (c::SOL_SOCKET, 64 /* SO_TIMESTAMPNS_NEW */, 4),
    (c::SOL_SOCKET, 37 /* SO_TIMESTAMPING_OLD */, 8),
    (c::SOL_SOCKET, 65 /* SO_TIMESTAMPING_NEW */, 8),
    (c::SOL_SOCKET, c::SO_SNDBUF, 4),
    (c::SOL_SOCKET, c::SO_RCVBUF, 4),
    (c::SOL_SOCKET, 72 /* SO_BUF_LOCK */, 4),
    (c::SOL_SOCKET, c::SO_PEEK_OFF, 4),
];

/// include/uapi/linux/in.h
const IP: &[Line] = &[
    (c::SOL_IP, c::IP_TOS, 4),
    (c::SOL_IP, c::IP_TTL, 4),
    (c::SOL_IP, c::IP_OPTIONS, 40),
    (c::SOL_IP, c::IP_RECVOPTS, 4),
    (c::SOL_IP, c::IP_RETOPTS, 4),
    (c::SOL_IP, c::IP_PKTINFO, 4),
    (c::SOL_IP, c::IP_MTU_DISCOVER, 4),
    (c::SOL_IP, c::IP_RECVERR, 4),
    (c::SOL_IP, c::IP_RECVTTL, 4),
    (c::SOL_IP, c::IP_RECVTOS, 4),
    (c::SOL_IP, c::IP_FREEBIND, 4),
    (c::SOL_IP, 18 /* IP_PASSSEC */, 4),
    (c::SOL_IP, c::IP_TRANSPARENT, 4),
    (c::SOL_IP, c::IP_RECVORIGDSTADDR, 4),
    (c::SOL_IP, c::IP_MINTTL, 4),
    (c::SOL_IP, 22 /* IP_NODEFRAG */, 4),
    (c::SOL_IP, 23 /* IP_CHECKSUM */, 4),
    (c::SOL_IP, 24 /* IP_BIND_ADDRESS_NO_PORT */, 4),
    (c::SOL_IP, 25 /* IP_RECVFRAGSIZE */, 4),
    (c::SOL_IP, 26 /* IP_RECVERR_RFC4884 */, 4),
    (c::SOL_IP, c::IP_MULTICAST_IF, 4),
    (c::SOL_IP, c::IP_MULTICAST_TTL, 4),
    (c::SOL_IP, c::IP_MULTICAST_LOOP, 4),
    (c::SOL_IP, c::IP_MULTICAST_ALL, 4),
    (c::SOL_IP, c::IP_UNICAST_IF, 4),
    (c::SOL_IP, 51 /* IP_LOCAL_PORT_RANGE */, 4),
];

/// include/uapi/linux/in6.h, ipv6.h
const IPV6: &[Line] = &[
    (c::SOL_IPV6, c::IPV6_V6ONLY, 4),
    (c::SOL_IPV6, 3 /* IPV6_2292HOPOPTS */, 4),
    (c::SOL_IPV6, 4 /* IPV6_2292DSTOPTS */, 4),
    (c::SOL_IPV6, 5 /* IPV6_2292RTHDR */, 4),
    (c::SOL_IPV6, 2 /* IPV6_2292PKTINFO */, 4),
    (c::SOL_IPV6, 8 /* IPV6_2292HOPLIMIT */, 4),
    (c::SOL_IPV6, 11 /* IPV6_FLOWINFO */, 4),
    (c::SOL_IPV6, c::IPV6_HOPOPTS, EXTENSION),
    (c::SOL_IPV6, c::IPV6_RTHDRDSTOPTS, EXTENSION),
    (c::SOL_IPV6, c::IPV6_RTHDR, EXTENSION),
    (c::SOL_IPV6, c::IPV6_DSTOPTS, EXTENSION),
    (c::SOL_IPV6, c::IPV6_UNICAST_HOPS, 4),
    (c::SOL_IPV6, c::IPV6_MULTICAST_IF, 4),
    (c::SOL_IPV6, c::IPV6_MULTICAST_HOPS, 4),
    (c::SOL_IPV6, c::IPV6_MULTICAST_LOOP, 4),
    (c::SOL_IPV6, 29 /* IPV6_MULTICAST_ALL */, 4),
    (c::SOL_IPV6, 30 /* IPV6_ROUTER_ALERT_ISOLATE */, 4),
    (c::SOL_IPV6, c::IPV6_MTU_DISCOVER, 4),
    (c::SOL_IPV6, c::IPV6_RECVERR, 4),
    (c::SOL_IPV6, 31 /* IPV6_RECVERR_RFC4884 */, 4),
    (c::SOL_IPV6, 33 /* IPV6_FLOWINFO_SEND */, 4),
    (c::SOL_IPV6, c::IPV6_RECVPKTINFO, 4),
    (c::SOL_IPV6, c::IPV6_RECVHOPLIMIT, 4),
    (c::SOL_IPV6, c::IPV6_RECVHOPOPTS, 4),
    (c::SOL_IPV6, c::IPV6_RECVRTHDR, 4),
    (c::SOL_IPV6, c::IPV6_RECVDSTOPTS, 4),
    (c::SOL_IPV6, c::IPV6_RECVPATHMTU, 4),
    (c::SOL_IPV6, c::IPV6_DONTFRAG, 4),
    (c::SOL_IPV6, c::IPV6_RECVTCLASS, 4),
    (c::SOL_IPV6, c::IPV6_TCLASS, 4),
    (c::SOL_IPV6, 70 /* IPV6_AUTOFLOWLABEL */, 4),
    (c::SOL_IPV6, c::IPV6_ADDR_PREFERENCES, 4),
    (c::SOL_IPV6, c::IPV6_MINHOPCOUNT, 4),
    (c::SOL_IPV6, c::IPV6_RECVORIGDSTADDR, 4),
    (c::SOL_IPV6, c::IPV6_TRANSPARENT, 4),
    (c::SOL_IPV6, 76 /* IPV6_UNICAST_IF */, 4),
    (c::SOL_IPV6, 77 /* IPV6_RECVFRAGSIZE */, 4),
    (c::SOL_IPV6, 78 /* IPV6_FREEBIND */, 4),
];

/// include/uapi/linux/tcp.h
const TCP: &[Line] = &[
    (c::SOL_TCP, c::TCP_NODELAY, 4),
    (c::SOL_TCP, c::TCP_MAXSEG, 4),
    (c::SOL_TCP, c::TCP_CORK, 4),
    (c::SOL_TCP, c::TCP_KEEPIDLE, 4),
    (c::SOL_TCP, c::TCP_KEEPINTVL, 4),
    (c::SOL_TCP, c::TCP_KEEPCNT, 4),
    (c::SOL_TCP, c::TCP_SYNCNT, 4),
    (c::SOL_TCP, c::TCP_LINGER2, 4),
    (c::SOL_TCP, c::TCP_DEFER_ACCEPT, 4),
    (c::SOL_TCP, c::TCP_QUICKACK, 4),
    (c::SOL_TCP, c::TCP_WINDOW_CLAMP, 4),
    (c::SOL_TCP, c::TCP_CONGESTION, 16),
    (c::SOL_TCP, c::TCP_THIN_LINEAR_TIMEOUTS, 4),
    (c::SOL_TCP, c::TCP_THIN_DUPACK, 4),
    (c::SOL_TCP, c::TCP_USER_TIMEOUT, 4),
    (c::SOL_TCP, c::TCP_FASTOPEN, 4),
    (c::SOL_TCP, c::TCP_NOTSENT_LOWAT, 4),
    (c::SOL_TCP, 27 /* TCP_SAVE_SYN */, 4),
    (c::SOL_TCP, c::TCP_FASTOPEN_CONNECT, 4),
    (c::SOL_TCP, c::TCP_FASTOPEN_KEY, 32),
    (c::SOL_TCP, 34 /* TCP_FASTOPEN_NO_COOKIE */, 4),
    (c::SOL_TCP, 36 /* TCP_INQ */, 4),
    (c::SOL_TCP, 37 /* TCP_TX_DELAY */, 4),
    (c::SOL_TCP, 44 /* TCP_RTO_MAX_MS */, 4),
    (c::SOL_TCP, 45 /* TCP_RTO_MIN_US */, 4),
    (c::SOL_TCP, 46 /* TCP_DELACK_MAX_US */, 4),
];

/// include/uapi/linux/udp.h
const UDP: &[Line] = &[
    (c::SOL_UDP, c::UDP_CORK, 4),
    (c::SOL_UDP, 100 /* UDP_ENCAP */, 4),
    (c::SOL_UDP, 101 /* UDP_NO_CHECK6_TX */, 4),
    (c::SOL_UDP, 102 /* UDP_NO_CHECK6_RX */, 4),
    (c::SOL_UDP, c::UDP_SEGMENT, 4),
    (c::SOL_UDP, c::UDP_GRO, 4),
];

/// include/net/udplite.h
const UDP_LITE: &[Line] = &[
    (c::IPPROTO_UDPLITE, 10 /* UDPLITE_SEND_CSCOV */, 4),
    (c::IPPROTO_UDPLITE, 11 /* UDPLITE_RECV_CSCOV */, 4),
];

const RAW: &[Line] = &[
    (c::SOL_IP, c::IP_HDRINCL, 4),
    (c::SOL_IP, 5 /* IP_ROUTER_ALERT */, 4),
    (SOL_RAW, 1 /* ICMP_FILTER */, 4),
];

const RAW6: &[Line] = &[
    (c::SOL_IPV6, 36 /* IPV6_HDRINCL */, 4),
    (c::SOL_IPV6, 22 /* IPV6_ROUTER_ALERT */, 4),
    (SOL_RAW, 7 /* IPV6_CHECKSUM */, 4),
    (58 /* SOL_ICMPV6 */, 1 /* ICMPV6_FILTER */, 32),
];

/// include/uapi/linux/netlink.h
const NETLINK: &[Line] = &[
    (SOL_NETLINK, c::NETLINK_PKTINFO, 4),
    (SOL_NETLINK, c::NETLINK_BROADCAST_ERROR, 4),
    (SOL_NETLINK, c::NETLINK_NO_ENOBUFS, 4),
    (SOL_NETLINK, c::NETLINK_LISTEN_ALL_NSID, 4),
    (SOL_NETLINK, c::NETLINK_CAP_ACK, 4),
    (SOL_NETLINK, 11 /* NETLINK_EXT_ACK */, 4),
    (SOL_NETLINK, 12 /* NETLINK_GET_STRICT_CHK */, 4),
];

/// include/uapi/linux/if_packet.h
const PACKET: &[Line] = &[
    (SOL_PACKET, 7 /* PACKET_COPY_THRESH */, 4),
    (SOL_PACKET, 8 /* PACKET_AUXDATA */, 4),
    (SOL_PACKET, 9 /* PACKET_ORIGDEV */, 4),
    (SOL_PACKET, 10 /* PACKET_VERSION */, 4),
    (SOL_PACKET, 12 /* PACKET_RESERVE */, 4),
    (SOL_PACKET, 14 /* PACKET_LOSS */, 4),
    (SOL_PACKET, 15 /* PACKET_VNET_HDR */, 4),
    (SOL_PACKET, 24 /* PACKET_VNET_HDR_SZ */, 4),
    (SOL_PACKET, 17 /* PACKET_TIMESTAMP */, 4),
    (SOL_PACKET, 19 /* PACKET_TX_HAS_OFF */, 4),
    (SOL_PACKET, 20 /* PACKET_QDISC_BYPASS */, 4),
    (SOL_PACKET, 23 /* PACKET_IGNORE_OUTGOING */, 4),
];

/// include/uapi/linux/vm_sockets.h: the size of the buffer lies between its bounds.
const VSOCK: &[Line] = &[
    (c::AF_VSOCK, 2 /* SO_VM_SOCKETS_BUFFER_MAX_SIZE */, 8),
    (c::AF_VSOCK, 1 /* SO_VM_SOCKETS_BUFFER_MIN_SIZE */, 8),
    (c::AF_VSOCK, 0 /* SO_VM_SOCKETS_BUFFER_SIZE */, 8),
    (
        c::AF_VSOCK,
        6, /* SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD */
        16,
    ),
];

/// Options that only datagrams have a use for.
const MULTICAST: &[(i32, i32)] = &[
    (c::SOL_IP, c::IP_MULTICAST_IF),
    (c::SOL_IP, c::IP_MULTICAST_TTL),
    (c::SOL_IPV6, c::IPV6_MULTICAST_IF),
    (c::SOL_IPV6, c::IPV6_MULTICAST_HOPS),
];

/// The tables that apply to a socket.
fn tables(domain: i32, kind: i32, protocol: i32) -> Vec<&'static [Line]> {
    let mut found = vec![GENERAL];
    match domain {
        c::AF_INET => found.push(IP),
        c::AF_INET6 => found.extend([IP, IPV6]),
        c::AF_NETLINK => found.push(NETLINK),
        c::AF_PACKET => found.push(PACKET),
        c::AF_VSOCK => found.push(VSOCK),
        _ => {}
    }
    if domain == c::AF_INET || domain == c::AF_INET6 {
        match (kind, protocol) {
            (c::SOCK_STREAM, _) => found.push(TCP),
            (c::SOCK_DGRAM, c::IPPROTO_UDP) => found.push(UDP),
            (c::SOCK_DGRAM, c::IPPROTO_UDPLITE) => found.extend([UDP, UDP_LITE]),
            (c::SOCK_RAW, _) if domain == c::AF_INET => found.push(RAW),
            (c::SOCK_RAW, _) => found.push(RAW6),
            _ => {}
        }
    }
    found
}

/// Options that rebuilding changes for a while, or that others change: told even when they are as in a new
/// socket. So are all of `SOL_SOCKET`.
const CHANGED_BY_OTHERS: &[(i32, i32)] = &[
    (c::SOL_IP, c::IP_FREEBIND),
    (c::SOL_IP, c::IP_TRANSPARENT),
    (c::SOL_IP, c::IP_TOS),
    (c::SOL_IPV6, c::IPV6_V6ONLY),
    (c::SOL_IPV6, c::IPV6_TRANSPARENT),
    (c::SOL_IPV6, 78 /* IPV6_FREEBIND */),
    (c::SOL_TCP, c::TCP_CORK),
    (c::SOL_TCP, c::TCP_NODELAY),
    (c::SOL_TCP, c::TCP_WINDOW_CLAMP),
    (c::SOL_UDP, c::UDP_CORK),
];

/// Every option of the socket that this kernel knows and that is not as in a new socket.
pub(super) fn read(
    open: &Open<'_>,
    domain: i32,
    kind: i32,
    protocol: i32,
) -> Result<Vec<SocketOption>, FreezerError> {
    let fresh = socket::socket(domain, kind, protocol).ok();
    let as_new = |level, name, value: &Vec<u8>| {
        let size = value.len();
        let fresh = fresh.as_ref();
        !CHANGED_BY_OTHERS.contains(&(level, name))
            && level != c::SOL_SOCKET
            && fresh.is_some_and(|fd| {
                socket::option(fd.as_fd(), level, name, size).as_ref() == Ok(value)
            })
    };
    let mut found = Vec::new();
    for &(level, name, size) in tables(domain, kind, protocol).into_iter().flatten() {
        // TCP shows what came with the peer's first packet there, and takes nothing.
        if kind == c::SOCK_STREAM && MULTICAST.contains(&(level, name)) {
            continue;
        }
        match socket::option(open.copy.as_fd(), level, name, size) {
            // A new socket of the next kernel has its own idea of these.
            Ok(value) if as_new(level, name, &value) => {}
            Ok(value) => found.push(SocketOption { level, name, value }),
            // This kernel or this kind of socket does not have it.
            Err(
                Errno::ENOPROTOOPT
                | Errno::EOPNOTSUPP
                | Errno::EINVAL
                | Errno::ENOTCONN
                | Errno::ENODEV
                | Errno::ENOENT,
            ) => {}
            Err(errno) => return Err(open.call(&format!("reading option {level}:{name}"))(errno)),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_is_listed_twice() {
        for (domain, kind, protocol) in [
            (c::AF_INET6, c::SOCK_STREAM, c::IPPROTO_TCP),
            (c::AF_INET6, c::SOCK_RAW, c::IPPROTO_ICMPV6),
            (c::AF_INET, c::SOCK_DGRAM, c::IPPROTO_UDP),
            (c::AF_NETLINK, c::SOCK_RAW, 0),
            (c::AF_PACKET, c::SOCK_RAW, 0),
            (c::AF_VSOCK, c::SOCK_STREAM, 0),
        ] {
            let mut names: Vec<_> = tables(domain, kind, protocol)
                .into_iter()
                .flatten()
                .map(|(level, name, _)| (level, name))
                .collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count);
        }
    }
}
