//! The little of rtnetlink(7) that is needed: dumps as raw messages, and messages sent again ([`messages`]).

pub mod messages;

use crate::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, recv, sendto, setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
const DONE: u16 = 3;
const ERROR: u16 = 2;
const F_REQUEST: u16 = 1;
const F_ACK: u16 = 4;
const F_DUMP: u16 = 0x300;
const F_CREATE: u16 = 0x400;
const F_REPLACE: u16 = 0x100;

/// `RTM_NEWLINK` (linux/rtnetlink.h).
pub const NEWLINK: u16 = 16;
/// `RTM_GETLINK`.
pub const GETLINK: u16 = 18;
/// `RTM_NEWADDR`.
pub const NEWADDR: u16 = 20;
/// `RTM_GETADDR`.
pub const GETADDR: u16 = 22;
/// `RTM_NEWROUTE`.
pub const NEWROUTE: u16 = 24;
/// `RTM_GETROUTE`.
pub const GETROUTE: u16 = 26;

/// `RTM_NEWNEIGH`.
pub const NEWNEIGH: u16 = 28;
/// `RTM_GETNEIGH`.
pub const GETNEIGH: u16 = 30;
/// `RTM_NEWRULE`.
pub const NEWRULE: u16 = 32;
/// `RTM_DELRULE`.
pub const DELRULE: u16 = 33;
/// `RTM_GETRULE`.
pub const GETRULE: u16 = 34;
/// `RTM_GETQDISC`.
pub const GETQDISC: u16 = 38;
/// `RTM_GETNEXTHOP`.
pub const GETNEXTHOP: u16 = 106;

/// Bytes of `struct ifinfomsg`, `struct ifaddrmsg` and `struct rtmsg`, which messages begin with.
pub const LINK_FIXED: usize = 16;
/// See [`LINK_FIXED`].
pub const ADDRESS_FIXED: usize = 8;
/// See [`LINK_FIXED`].
pub const ROUTE_FIXED: usize = 12;
/// Bytes of `struct fib_rule_hdr`, which messages of rules begin with.
pub const RULE_FIXED: usize = 12;
/// Bytes of `struct ndmsg`.
pub const NEIGHBOUR_FIXED: usize = 12;
/// Bytes of `struct tcmsg`.
pub const TRAFFIC_FIXED: usize = 20;

/// A socket to the kernel's routing tables, or to another part of its network.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// Opens one.
    ///
    /// # Errors
    /// As socket(2).
    pub fn open() -> Result<Netlink, Errno> {
        Netlink::to(libc::NETLINK_ROUTE)
    }

    /// Opens one to its packet filters (nft(8)).
    ///
    /// # Errors
    /// As socket(2).
    pub fn to_filters() -> Result<Netlink, Errno> {
        Netlink::to(libc::NETLINK_NETFILTER)
    }

    /// Opens one to its keys and policies of IPsec (ip-xfrm(8)).
    ///
    /// # Errors
    /// As socket(2).
    pub fn to_security() -> Result<Netlink, Errno> {
        Netlink::to(libc::NETLINK_XFRM)
    }

    fn to(protocol: i32) -> Result<Netlink, Errno> {
        let socket = crate::socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(5))?;
        Ok(Netlink { socket })
    }

    fn send(&self, kind: u16, flags: u16, payload: &[u8]) -> Result<(), Errno> {
        let len = HEADER + payload.len();
        let mut message = Vec::with_capacity(len);
        message.extend_from_slice(
            &u32::try_from(len)
                .map_err(|_| Errno::EMSGSIZE)?
                .to_ne_bytes(),
        );
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(payload);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(
            self.socket.as_raw_fd(),
            &message,
            &kernel,
            MsgFlags::empty(),
        )
        .map(drop)
    }

    /// Everything of one kind: message type and payload of each.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn dump(&self, kind: u16, payload: &[u8]) -> Result<Vec<(u16, Vec<u8>)>, Errno> {
        self.send(kind, F_REQUEST | F_DUMP, payload)?;
        let mut found = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let got = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (kind, payload) in messages(&buffer[..got]) {
                match kind {
                    DONE => return Ok(found),
                    ERROR => return Err(error_of(payload).err().unwrap_or(Errno::EPROTO)),
                    _ => found.push((kind, payload.to_vec())),
                }
            }
        }
    }

    /// Asks for a change and waits for the answer. What is there already is replaced.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn change(&self, kind: u16, payload: &[u8]) -> Result<(), Errno> {
        let create = if kind == NEWLINK {
            0
        } else {
            F_CREATE | F_REPLACE
        };
        self.send(kind, F_REQUEST | F_ACK | create, payload)?;
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let got = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for (kind, payload) in messages(&buffer[..got]) {
                if kind == ERROR {
                    return error_of(payload);
                }
            }
        }
    }
}

/// `struct nlmsgerr` begins with a negative errno, 0 for an acknowledgement.
fn error_of(payload: &[u8]) -> Result<(), Errno> {
    let code = payload
        .first_chunk()
        .map_or(-libc::EPROTO, |b| i32::from_ne_bytes(*b));
    if code == 0 {
        Ok(())
    } else {
        Err(Errno::from_raw(-code))
    }
}

/// Splits what was received.
fn messages(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some(head) = bytes.first_chunk::<HEADER>() {
        let len = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let Some(payload) = bytes.get(HEADER..len) else {
            break;
        };
        found.push((kind, payload));
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Attributes behind a fixed header of `fixed` bytes: type and value.
#[must_use]
pub fn attributes(payload: &[u8], fixed: usize) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    let mut bytes = payload.get(fixed..).unwrap_or_default();
    while let Some([l0, l1, t0, t1]) = bytes.first_chunk() {
        let len = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let Some(value) = bytes.get(4..len) else {
            break;
        };
        // The top two bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
        found.push((u16::from_ne_bytes([*t0, *t1]) & 0x3fff, value));
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// One attribute as bytes, padded.
#[must_use]
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&len.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back() {
        let mut payload = vec![9; 8];
        payload.extend(attribute(1, &[1, 2, 3]));
        payload.extend(attribute(4, b"lo"));
        assert_eq!(attributes(&payload, 8), [(1, &[1, 2, 3][..]), (4, b"lo")]);
        payload.extend([200, 0, 1, 0]);
        assert_eq!(
            attributes(&payload, 8).len(),
            2,
            "what is cut off is left out"
        );
    }

    #[test]
    fn this_hosts_addresses_are_dumped() {
        let netlink = Netlink::open().unwrap();
        let dump = netlink.dump(GETADDR, &[0; 8]).unwrap();
        assert!(dump.iter().all(|(kind, _)| *kind == NEWADDR), "{dump:?}");
    }
}
