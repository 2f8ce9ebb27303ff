//! Addresses and ports of sockets of IP.

use super::{SO_REUSEPORT, set_int};
use crate::ResurrectError;
use crate::files::socket::Making;
use nix::libc as c;
use persist_mem::manifest::InetSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use sys::{Errno, Pid, socket};

/// Binds it; true when it was forced ([`bind_past_ended`]).
pub(super) fn bind(
    making: &Making<'_>,
    state: &InetSocket,
    fd: BorrowedFd<'_>,
) -> Result<bool, ResurrectError> {
    if state.local.is_empty() {
        return Ok(false);
    }
    if state.chosen_port && state.group.is_none() && choose_port(making, state, fd)? {
        return Ok(false);
    }
    // The own address of a connected socket is usually what connect(2) chose, and goes with it.
    if by_routing(state) && socket::bind(fd, &wildcard(&state.local)).is_ok() {
        return Ok(false);
    }
    if making.socket.kind == c::SOCK_DGRAM && state.local.get(2..4) == Some(&[0, 0]) {
        return bind_without_port(making, state, fd).map(|()| false);
    }
    match bind_to(fd, &state.local) {
        Err(Errno::EADDRINUSE) if making.socket.protocol == c::IPPROTO_MPTCP => {
            bind_when_free(fd, &state.local).map_err(making.failed("binding its address"))?;
            Ok(false)
        }
        Err(Errno::EADDRINUSE)
            if making.socket.kind == c::SOCK_STREAM && only(&state.local, &CONNECTIONS) =>
        {
            bind_past_ended(fd, &state.local).map_err(making.failed("binding its address"))?;
            Ok(true)
        }
        bound => bound
            .map(|()| false)
            .map_err(making.failed("binding its address")),
    }
}

/// Binds an address, also one that the host has not any more: who had bound it keeps it.
pub(in crate::files::socket) fn bind_to(fd: BorrowedFd<'_>, address: &[u8]) -> sys::Result<()> {
    const FREEBIND: (i32, i32) = (c::SOL_IP, c::IP_FREEBIND);
    match socket::bind(fd, address) {
        Err(Errno::EADDRNOTAVAIL) => {
            let before = socket::int_option(fd, FREEBIND.0, FREEBIND.1)?;
            set_int(fd, FREEBIND, 1)?;
            let bound = socket::bind(fd, address);
            set_int(fd, FREEBIND, before)?;
            bound
        }
        bound => bound,
    }
}

/// Binds a host and no port, as sockets of UDP are that were bound so, connected and disconnected.
fn bind_without_port(
    making: &Making<'_>,
    state: &InetSocket,
    fd: BorrowedFd<'_>,
) -> Result<(), ResurrectError> {
    const NO_PORT: (i32, i32) = (c::SOL_IP, c::IP_BIND_ADDRESS_NO_PORT);
    let doing = "binding its address without a port";
    let before = socket::int_option(fd, NO_PORT.0, NO_PORT.1).map_err(making.failed(doing))?;
    set_int(fd, NO_PORT, 1).map_err(making.failed(doing))?;
    bind_to(fd, &state.local).map_err(making.failed(doing))?;
    set_int(fd, NO_PORT, before).map_err(making.failed(doing))
}

/// Has the kernel choose the port that it had chosen before, which is forgotten when the socket is disconnected. False when
/// it would not, or may not be told (Linux 6.3): nothing has happened then.
fn choose_port(
    making: &Making<'_>,
    state: &InetSocket,
    fd: BorrowedFd<'_>,
) -> Result<bool, ResurrectError> {
    /// include/uapi/linux/in.h: the lowest in the lower half.
    const RANGE: (i32, i32) = (c::SOL_IP, 51);
    let Some(&[high, low]) = state.local.get(2..4) else {
        return Ok(false);
    };
    let port = u16::from_be_bytes([high, low]);
    let Ok(before) = socket::int_option(fd, RANGE.0, RANGE.1) else {
        return Ok(false);
    };
    if port == 0 || !may_be_chosen(port) {
        return Ok(false);
    }
    if !by_routing(state) && wildcard(&state.local) != state.local {
        let mut without = state.clone();
        without.local[2..4].fill(0);
        bind_without_port(making, &without, fd)?;
    }
    let doing = "having its port chosen";
    let range = i32::from(port) << 16 | i32::from(port);
    set_int(fd, RANGE, range).map_err(making.failed(doing))?;
    // Who sends gets a port before it is found that there is nobody to send to.
    let nothing = socket::send(fd, &socket::Outgoing::default(), c::MSG_DONTWAIT);
    set_int(fd, RANGE, before).map_err(making.failed(doing))?;
    let name = socket::name(fd).map_err(making.failed(doing))?;
    match (nothing, name.get(2..4)) {
        (Err(_), Some(found)) if found == [high, low] => Ok(true),
        (Err(_), Some([0, 0])) => Ok(false),
        _ => Err(making.failed(doing)(Errno::EADDRNOTAVAIL)),
    }
}

/// Whether its own host is the one that routing chooses when it is connected.
pub(super) fn by_routing(state: &InetSocket) -> bool {
    !state.bound_host && !state.remote.is_empty() && routing_chooses(&state.local, &state.remote)
}

/// Whether the kernel chooses a port by itself (ip(7), `ip_local_port_range`).
fn may_be_chosen(port: u16) -> bool {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let range = range.unwrap_or_default();
    let mut ends = range.split_whitespace().map(|end| end.parse::<u16>().ok());
    let (Some(Some(low)), Some(Some(high))) = (ends.next(), ends.next()) else {
        return false;
    };
    (low..=high).contains(&port)
}

/// Binds a port that only connections of another SO_REUSEADDR have, ended ones (TIME_WAIT) among them. In repair mode
/// (tcp(7)) bind(2) asks nobody; SO_REUSEPORT then tells listen(2) that the port is this socket's.
/// net/ipv4/inet_connection_sock.c: inet_csk_get_port().
pub(in crate::files::socket) fn bind_past_ended(
    fd: BorrowedFd<'_>,
    address: &[u8],
) -> sys::Result<()> {
    const TCP_REPAIR_OFF_NO_WP: i32 = -1;
    set_int(fd, SO_REUSEPORT, 1)?;
    set_int(fd, (c::SOL_TCP, c::TCP_REPAIR), 1)?;
    let bound = socket::bind(fd, address);
    set_int(fd, (c::SOL_TCP, c::TCP_REPAIR), TCP_REPAIR_OFF_NO_WP)?;
    bound
}

/// Binds a port that ended connections have until they are forgotten: multipath TCP has no repair mode.
fn bind_when_free(fd: BorrowedFd<'_>, address: &[u8]) -> sys::Result<()> {
    /// Longer than connections are remembered (include/net/tcp.h, `TCP_TIMEWAIT_LEN`).
    const REMEMBERED: Duration = Duration::from_secs(65);
    let end = Instant::now() + REMEMBERED;
    loop {
        match socket::bind(fd, address) {
            Err(Errno::EADDRINUSE) if only(address, &[TIME_WAIT]) && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(100));
            }
            done => return done,
        }
    }
}

const TIME_WAIT: &str = "06";

/// include/net/tcp_states.h: all but CLOSE, LISTEN and NEW_SYN_RECV.
const CONNECTIONS: [&str; 9] = ["01", "02", "03", "04", "05", TIME_WAIT, "08", "09", "0B"];

/// Whether nothing has the port but what is in one of these states.
fn only(address: &[u8], states: &[&str]) -> bool {
    let Some(port) = address.get(2..4) else {
        return false;
    };
    let suffix = format!(":{:02X}{:02X}", port[0], port[1]);
    let mut known = true;
    for table in ["tcp", "tcp6"] {
        let me = Pid(nix::unistd::getpid().as_raw());
        let Ok(bytes) = sys::procdir::read(me, &format!("net/{table}")) else {
            return false;
        };
        let text = String::from_utf8_lossy(&bytes);
        // sl, local address, remote address, state, ...
        for line in text.lines().skip(1) {
            let mut words = line.split_whitespace().skip(1);
            let local = words.next().unwrap_or("");
            let state = words.nth(1).unwrap_or("");
            known &= !local.ends_with(&suffix) || states.contains(&state);
        }
    }
    known
}

/// Whether a socket that is connected to `peer` gets the host of `own`.
pub(in crate::files::socket) fn routing_chooses(own: &[u8], peer: &[u8]) -> bool {
    let host = if own.first() == Some(&2) { 4..8 } else { 8..24 };
    let domain = i32::from(own.first().copied().unwrap_or(0));
    let probe = socket::socket(domain, c::SOCK_DGRAM, 0);
    probe.is_ok_and(|fd| {
        socket::connect(fd.as_fd(), peer).is_ok()
            && socket::name(fd.as_fd())
                .is_ok_and(|name| name.get(host.clone()) == own.get(host.clone()))
    })
}

/// The address with the same port and no host.
pub(in crate::files::socket) fn wildcard(address: &[u8]) -> Vec<u8> {
    let mut bytes = address.to_vec();
    let host = if bytes.first() == Some(&2) {
        4..8
    } else {
        4..28
    };
    for byte in bytes.get_mut(host).into_iter().flatten() {
        *byte = 0;
    }
    bytes
}
