//! Sockets of IP: TCP, UDP, ICMP, raw.
//!
//! | where | what |
//! |---|---|
//! | [`bind`](mod@bind) | addresses and ports |
//! | [`groups`] | multicast groups |
//! | [`datagrams`] | what was received and not read |

mod bind;
mod datagrams;
mod groups;

use super::options::{self, When};
use super::{Making, Sockets, packets, refused};
use crate::ResurrectError;
use nix::libc as c;
use persist_mem::manifest::{InetSocket, SocketOption, SocketState};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::socket::Outgoing;
use sys::{Errno, socket};

pub(super) use bind::{bind_past_ended, bind_to, routing_chooses, wildcard};
pub(super) use datagrams::fill;
pub(super) use groups::join_all;

/// How long the answer to a datagram to this host may take.
pub(super) const REFUSED_WITHIN: Duration = Duration::from_secs(5);
pub(super) const SO_REUSEPORT: (i32, i32) = (c::SOL_SOCKET, c::SO_REUSEPORT);

/// What several sockets have. One may have let go of what they share it by since (`SO_REUSEADDR`, `SO_REUSEPORT`).
#[derive(Default)]
pub(super) struct Shared<'a> {
    /// Ports, as addresses have them, of UDP.
    ports: BTreeSet<[u8; 2]>,
    /// Addresses that TCP listens at.
    listeners: BTreeSet<&'a [u8]>,
}

impl<'a> Shared<'a> {
    pub(super) fn of(all: &[Making<'a>]) -> Shared<'a> {
        let datagrams = all.iter().filter(|one| one.socket.kind == c::SOCK_DGRAM);
        let listener = |one: &Making<'a>| match &one.socket.state {
            SocketState::Inet(state) if state.backlog.is_some() => Some(state.local.as_slice()),
            _ => None,
        };
        Shared {
            ports: more_than_once(datagrams.filter_map(port_of)),
            listeners: more_than_once(all.iter().filter_map(listener)),
        }
    }
}

fn more_than_once<T: Copy + Ord>(all: impl Iterator<Item = T>) -> BTreeSet<T> {
    let mut once = BTreeSet::new();
    all.filter(|one| !once.insert(*one)).collect()
}

fn port_of(making: &Making<'_>) -> Option<[u8; 2]> {
    let SocketState::Inet(state) = &making.socket.state else {
        return None;
    };
    let port = state.local.get(2..4)?.try_into().ok()?;
    (port != [0, 0]).then_some(port)
}

/// Made, bound and listening; not connected yet.
pub(super) fn make(
    making: &Making<'_>,
    state: &InetSocket,
    shared: &Shared<'_>,
) -> Result<OwnedFd, ResurrectError> {
    let fd = making.new_socket()?;
    if packets::gets_packets(making) {
        packets::begin(making, fd.as_fd())?;
    }
    options::set(making, fd.as_fd(), When::Early)?;
    let shares = making.socket.kind == c::SOCK_DGRAM
        && port_of(making).is_some_and(|port| shared.ports.contains(&port));
    if shares || making.socket.kind == c::SOCK_STREAM {
        // Ended connections may still have the port (TIME_WAIT); the real value comes at the end.
        socket::set_int_option(fd.as_fd(), c::SOL_SOCKET, c::SO_REUSEADDR, 1)
            .map_err(making.failed("setting SO_REUSEADDR"))?;
    }
    if state.backlog.is_some() && shared.listeners.contains(state.local.as_slice()) {
        set_int(fd.as_fd(), SO_REUSEPORT, 1).map_err(making.failed("sharing its port"))?;
    }
    let forced = bind::bind(making, state, fd.as_fd())?;
    if let Some(backlog) = state.backlog {
        socket::listen(fd.as_fd(), backlog).map_err(making.failed("listening"))?;
    }
    if forced {
        set_int(fd.as_fd(), SO_REUSEPORT, 0).map_err(making.failed("SO_REUSEPORT"))?;
    }
    Ok(fd)
}

pub(super) fn set_int(
    fd: BorrowedFd<'_>,
    (level, name): (i32, i32),
    value: i32,
) -> sys::Result<()> {
    socket::set_int_option(fd, level, name, value)
}

/// Connects it, also when no route leads there any more: the loopback interface takes it for a neighbour then
/// (net/ipv4/route.c, ip_route_output_key_hash_rcu()).
fn connect_to(fd: BorrowedFd<'_>, making: &Making<'_>, state: &InetSocket) -> sys::Result<()> {
    const DEVICE: (i32, i32) = (c::SOL_SOCKET, c::SO_BINDTODEVICE);
    const TRANSPARENT: (i32, i32) = (c::SOL_IP, c::IP_TRANSPARENT);
    let by_route = socket::connect(fd, &state.remote);
    let own = making.socket.options.iter();
    let no_way = matches!(
        by_route,
        Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EADDRNOTAVAIL | Errno::EINVAL)
    );
    let is_bound = |option: &SocketOption| {
        (option.level, option.name) == DEVICE && option.value.iter().any(|byte| *byte != 0)
    };
    if !no_way || own.into_iter().any(is_bound) {
        return by_route;
    }
    if socket::name(fd)?.get(4..) != state.local.get(4..) {
        bind_to(fd, &state.local)?;
    }
    // Else its own address would have to be the host's.
    let before = socket::int_option(fd, TRANSPARENT.0, TRANSPARENT.1)?;
    set_int(fd, TRANSPARENT, 1)?;
    socket::set_option(fd, DEVICE.0, DEVICE.1, b"lo\0")?;
    let connected = socket::connect(fd, &state.remote);
    socket::set_option(fd, DEVICE.0, DEVICE.1, b"\0")?;
    set_int(fd, TRANSPARENT, before)?;
    connected
}

/// Shuts down what was shut down of a socket without a connection.
pub(super) fn shut_down(
    making: &Making<'_>,
    state: &InetSocket,
    fd: BorrowedFd<'_>,
) -> Result<(), ResurrectError> {
    // SHUT_RD is 0, SHUT_WR 1, SHUT_RDWR 2.
    let Some(how) = state.shutdown.checked_sub(1) else {
        return Ok(());
    };
    match socket::shutdown(fd, i32::from(how)) {
        // It is done all the same (net/ipv4/af_inet.c, inet_shutdown()).
        Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
        Err(errno) => Err(making.failed("shutting it down")(errno)),
    }
}

/// Begins a datagram that is not complete.
pub(super) fn begin_to_send(
    making: &Making<'_>,
    state: &InetSocket,
    fd: BorrowedFd<'_>,
) -> Result<(), ResurrectError> {
    let Some(pending) = &state.pending else {
        return Ok(());
    };
    // It may go to somebody else than the peer.
    let to = if host_and_port(&state.remote) == host_and_port(&pending.to) {
        &[]
    } else {
        &pending.to[..]
    };
    let message = Outgoing {
        data: &pending.data,
        to,
        ..Outgoing::default()
    };
    socket::send(fd, &message, c::MSG_DONTWAIT | c::MSG_MORE)
        .map(drop)
        .map_err(making.failed("beginning a datagram"))
}

/// Of an address of IP.
fn host_and_port(address: &[u8]) -> Option<(&[u8], &[u8])> {
    let host = match i32::from(*address.first()?) {
        c::AF_INET => 4..8,
        _ => 8..24,
    };
    Some((address.get(host)?, address.get(2..4)?))
}

/// Has what waits as an error come again, and connects it, when it was connected.
pub(super) fn connect(
    making: &Making<'_>,
    state: &InetSocket,
    sockets: &mut Sockets,
) -> Result<(), ResurrectError> {
    let fd = sockets.get(making)?;
    if state.remote.is_empty() || state.connection.is_some() {
        return refused::send_again(making, state, fd);
    }
    connect_one(making, state, fd)?;
    let raw = making.socket.kind == c::SOCK_RAW;
    if raw || state.local.is_empty() || socket::name(fd).is_ok_and(|name| name == state.local) {
        return Ok(());
    }
    // Another own address than routing chooses: it was bound to it.
    let unbound = [0u8; 16];
    socket::connect(fd, &unbound).map_err(making.failed("disconnecting it"))?;
    let bound_only = state_bound_only(state);
    let again = make(
        making,
        bound_only.as_ref().unwrap_or(state),
        &Shared::default(),
    )?;
    for group in &state.groups {
        groups::join(making, again.as_fd(), group)?;
    }
    connect_one(making, state, again.as_fd())?;
    sockets.fds.insert(making.id(), again);
    Ok(())
}

fn connect_one(
    making: &Making<'_>,
    state: &InetSocket,
    fd: BorrowedFd<'_>,
) -> Result<(), ResurrectError> {
    if state.error != 0 && state.refused.is_empty() {
        fail_to_send(fd, &state.local).map_err(making.failed("having its error wait"))?;
    }
    refused::send_again(making, state, fd)?;
    connect_to(fd, making, state).map_err(making.failed("connecting it"))
}

/// Has a datagram refused (`ECONNREFUSED`): it is sent to a port of its own host where nobody is.
fn fail_to_send(fd: BorrowedFd<'_>, local: &[u8]) -> sys::Result<()> {
    let mut address = local.to_vec();
    address.get_mut(2..4).ok_or(Errno::EINVAL)?.fill(0);
    let domain = i32::from(local.first().copied().unwrap_or(0));
    let taken = socket::socket(domain, c::SOCK_DGRAM, 0)?;
    socket::bind(taken.as_fd(), &address)?;
    let nobody = socket::name(taken.as_fd())?;
    drop(taken);
    socket::connect(fd, &nobody)?;
    let message = Outgoing {
        data: b"?",
        ..Outgoing::default()
    };
    socket::send(fd, &message, c::MSG_DONTWAIT)?;
    let begun = Instant::now();
    while socket::events(fd)? & c::POLLERR == 0 {
        if begun.elapsed() > REFUSED_WITHIN {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The same socket without a peer, so that its own address is bound as it is; None when it has messages,
/// which would be lost.
fn state_bound_only(state: &InetSocket) -> Option<InetSocket> {
    state.queue.is_empty().then(|| InetSocket {
        remote: Vec::new(),
        ..state.clone()
    })
}
