//! What the kernel tells about sockets only through sock_diag(7).

use nix::libc as c;
use std::collections::HashMap;
use std::os::fd::AsFd;
use sys::socket::{self, Outgoing};
use sys::{Errno, Result};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct unix_diag_msg` and of `struct packet_diag_msg`.
const MESSAGE: usize = 16;

/// What unix_diag tells (include/uapi/linux/unix_diag.h).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnixInfo {
    /// The name as bound, without a NUL behind a path; empty when it has none.
    pub(crate) name: Vec<u8>,
    /// TCP_LISTEN is 10.
    pub(crate) state: u8,
    /// Inode of the peer; 0 when it is in no process's table any more, or not yet.
    pub(crate) peer: Option<u64>,
    /// Inodes of clients that wait to be accepted, in order; 0 for one that is gone.
    pub(crate) waiting: Vec<u64>,
    /// For a listening socket its backlog.
    pub(crate) backlog: u32,
    /// `SHUT_RD` as 1, `SHUT_WR` as 2.
    pub(crate) shutdown: u8,
}

impl UnixInfo {
    pub(crate) fn listens(&self) -> bool {
        self.state == 10
    }
}

/// Unix sockets of this network namespace, by inode.
///
/// # Errors
/// `ENOENT` when the kernel lacks unix_diag.
pub(crate) fn unix() -> Result<HashMap<u64, UnixInfo>> {
    // family, protocol, pad, states: all, inode, UDIAG_SHOW_{NAME,VFS,PEER,ICONS,RQLEN}, cookie
    let mut request = vec![c::AF_UNIX as u8, 0, 0, 0];
    for word in [u32::MAX, 0, 0x1f, u32::MAX, u32::MAX] {
        request.extend_from_slice(&word.to_ne_bytes());
    }
    let mut found = HashMap::new();
    dump(&request, |message| {
        let inode = u64::from(word(message, 4));
        let mut info = UnixInfo {
            state: message.get(2).copied().unwrap_or(0),
            ..UnixInfo::default()
        };
        for (kind, value) in attributes(message.get(MESSAGE..).unwrap_or(&[])) {
            match kind {
                0 => info.name = unterminated(value),
                2 => info.peer = Some(u64::from(word(value, 0))),
                3 => {
                    info.waiting = value
                        .chunks_exact(4)
                        .map(|w| u64::from(word(w, 0)))
                        .collect()
                }
                4 => info.backlog = word(value, 4),
                6 => info.shutdown = value.first().copied().unwrap_or(0),
                _ => {}
            }
        }
        found.insert(inode, info);
    })?;
    Ok(found)
}

fn unterminated(name: &[u8]) -> Vec<u8> {
    match name.split_last() {
        Some((0, path)) if path.first().is_some_and(|first| *first != 0) => path.to_vec(),
        _ => name.to_vec(),
    }
}

/// What packet_diag tells (include/uapi/linux/packet_diag.h).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PacketInfo {
    /// Memberships: interface index, `PACKET_MR_*`, address.
    pub(crate) memberships: Vec<(u32, u16, Vec<u8>)>,
    /// It has a ring shared with the program.
    pub(crate) ring: bool,
    /// It is part of a fan-out group.
    pub(crate) fanout: bool,
}

/// Packet sockets of this network namespace, by inode.
///
/// # Errors
/// `ENOENT` when the kernel lacks packet_diag.
pub(crate) fn packet() -> Result<HashMap<u64, PacketInfo>> {
    // family, protocol, pad, inode, PACKET_SHOW_{MCLIST,RING_CFG,FANOUT}, cookie
    let mut request = vec![c::AF_PACKET as u8, 0, 0, 0];
    for word in [0, 0xe, u32::MAX, u32::MAX] {
        request.extend_from_slice(&word.to_ne_bytes());
    }
    let mut found = HashMap::new();
    dump(&request, |message| {
        let mut info = PacketInfo::default();
        for (kind, value) in attributes(message.get(MESSAGE..).unwrap_or(&[])) {
            match kind {
                1 => info.memberships = value.chunks_exact(44).map(membership).collect(),
                2 | 3 => info.ring = true,
                4 => info.fanout = true,
                _ => {}
            }
        }
        found.insert(u64::from(word(message, 4)), info);
    })?;
    Ok(found)
}

/// Bytes of `struct inet_diag_msg`, whose last word is the inode.
const INET_MESSAGE: usize = 72;

/// Asks for all UDP sockets of this network namespace that are bound or connected.
fn udp(mut each: impl FnMut(&[u8])) -> Result<()> {
    for family in [c::AF_INET, c::AF_INET6] {
        // struct inet_diag_req_v2: family, protocol, extensions, pad, states: all, struct inet_diag_sockid
        let mut request = vec![family as u8, c::IPPROTO_UDP as u8, 0, 0];
        request.extend_from_slice(&u32::MAX.to_ne_bytes());
        request.resize(56, 0);
        dump(&request, &mut each)?;
    }
    Ok(())
}

/// Where UDP sockets of this network namespace are: ports and hosts, bytes in network order.
///
/// # Errors
/// `ENOENT` when the kernel lacks udp_diag.
pub(crate) fn udp_names() -> Result<Vec<([u8; 2], Vec<u8>)>> {
    let mut found = Vec::new();
    udp(|message| {
        let len = match message.first() {
            Some(family) if i32::from(*family) == c::AF_INET => 4,
            _ => 16,
        };
        let (port, host) = (message.get(4..6), message.get(8..8 + len));
        if let (Some(&[high, low]), Some(host)) = (port, host) {
            found.push(([high, low], host.to_vec()));
        }
    })?;
    Ok(found)
}

/// Which halves of the UDP sockets of this network namespace are shut down, by inode: `SHUT_RD` as 1,
/// `SHUT_WR` as 2 (include/uapi/linux/inet_diag.h).
///
/// # Errors
/// `ENOENT` when the kernel lacks udp_diag.
pub(crate) fn udp_shutdown() -> Result<HashMap<u64, u8>> {
    const INET_DIAG_SHUTDOWN: u16 = 8;
    let mut found = HashMap::new();
    udp(|message| {
        let inode = u64::from(word(message, INET_MESSAGE - 4));
        for (kind, value) in attributes(message.get(INET_MESSAGE..).unwrap_or(&[])) {
            if kind == INET_DIAG_SHUTDOWN {
                found.insert(inode, value.first().copied().unwrap_or(0));
            }
        }
    })?;
    Ok(found)
}

/// `struct packet_diag_mclist`: index, count, type u16, length u16, address.
fn membership(bytes: &[u8]) -> (u32, u16, Vec<u8>) {
    let kind = word(bytes, 8) as u16;
    let len = (word(bytes, 8) >> 16) as usize;
    let address = bytes.get(12..12 + len).unwrap_or(&[]).to_vec();
    (word(bytes, 0), kind, address)
}

/// Sends a request and calls `each` with every answer's payload.
fn dump(request: &[u8], mut each: impl FnMut(&[u8])) -> Result<()> {
    let fd = socket::socket(c::AF_NETLINK, c::SOCK_RAW, c::NETLINK_SOCK_DIAG)?;
    let mut message = Vec::new();
    message.extend_from_slice(&((HEADER + request.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(request);
    let to = [c::AF_NETLINK as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let outgoing = Outgoing {
        data: &message,
        to: &to,
        ..Outgoing::default()
    };
    socket::send(fd.as_fd(), &outgoing, 0)?;
    loop {
        let received = socket::receive(fd.as_fd(), 0, 1 << 16)?;
        let mut rest = received.data.as_slice();
        while rest.len() >= HEADER {
            let len = (word(rest, 0) as usize).clamp(HEADER, rest.len());
            let payload = &rest[HEADER..len];
            match word(rest, 4) as u16 {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let errno = word(payload, 0).cast_signed().saturating_neg();
                    return Err(Errno::from_raw(errno));
                }
                _ => each(payload),
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
    }
}

/// The word at an offset, 0 when there is none.
fn word(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..at + 4).and_then(|w| w.try_into().ok());
    found.map_or(0, u32::from_ne_bytes)
}

/// Netlink attributes: kind, value.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= 4 {
        let len = (word(bytes, 0) as u16 as usize).clamp(4, bytes.len());
        let kind = (word(bytes, 0) >> 16) as u16 & 0x3fff;
        found.push((kind, &bytes[4..len]));
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::net::{UnixListener, UnixStream};

    fn inode(fd: &impl AsRawFd) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        std::fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn pairs_name_each_other() {
        let (a, b) = UnixStream::pair().unwrap();
        b.shutdown(std::net::Shutdown::Write).unwrap();
        let found = unix().unwrap();
        assert_eq!(found[&inode(&a)].peer, Some(inode(&b)));
        assert_eq!(found[&inode(&a)].shutdown, 1);
        assert_eq!(found[&inode(&b)].shutdown, 2);
    }

    #[test]
    fn halves_of_udp_sockets() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(socket.local_addr().unwrap()).unwrap();
        assert_eq!(udp_shutdown().unwrap()[&inode(&socket)], 0);
        nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
        assert_eq!(udp_shutdown().unwrap()[&inode(&socket)], 2);
    }

    #[test]
    fn clients_that_wait_are_listed_in_order() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("kupgrade-diag-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let clients: Vec<OwnedFd> = (0..3)
            .map(|_| UnixStream::connect_addr(&address).unwrap().into())
            .collect();
        let found = unix().unwrap();
        let info = &found[&inode(&listener)];
        assert!(info.listens());
        assert_eq!(info.waiting, clients.iter().map(inode).collect::<Vec<_>>());
        assert!(info.backlog >= 128);
        assert_eq!(found[&inode(&clients[0])].peer, Some(0));
        assert_eq!(found[&inode(&clients[0])].shutdown, 0);
    }
}
