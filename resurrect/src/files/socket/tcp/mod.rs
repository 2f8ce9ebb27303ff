//! TCP connections whose both ends are on this host: made anew with the same addresses. One that is over had
//! its other end anywhere; it is made anew with one on this host, and ended.

mod contents;
mod ended;
mod segment;
mod waiting;

use super::inet::{self, SO_REUSEPORT, set_int};
use super::options::{self, When};
use super::{Making, Sockets};
use crate::ResurrectError;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc as c;
use persist_mem::manifest::{Connection, DescriptionId, InetSocket, SocketState};
pub(super) use segment::set as set_segment;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use sys::{Errno, socket};
pub(super) use waiting::wait;

/// How long a connection over the loopback interface may take to get into the queue.
const QUEUED_WITHIN: Duration = Duration::from_secs(5);

/// Other ends that were closed.
#[derive(Default)]
pub(super) struct Gone(BTreeMap<DescriptionId, OwnedFd>);

/// A TCP socket that has a connection.
#[derive(Clone, Copy)]
struct One<'a> {
    making: Making<'a>,
    state: &'a InetSocket,
    connection: &'a Connection,
}

fn connected<'a>(all: &'a [Making<'a>]) -> impl Iterator<Item = One<'a>> {
    all.iter().filter_map(|making| match &making.socket.state {
        SocketState::Inet(state) => Some(One {
            making: *making,
            state,
            connection: state.connection.as_ref()?,
        }),
        _ => None,
    })
}

/// Makes every connection. Done before listening sockets are, which would have the addresses.
pub(super) fn connect(all: &[Making<'_>], sockets: &mut Sockets) -> Result<Gone, ResurrectError> {
    let mut gone = Gone::default();
    for one in connected(all) {
        let id = one.making.id();
        if sockets.fds.contains_key(&id) || one.connection.waits_for.is_some() {
            continue;
        }
        if one.connection.failed {
            sockets.fds.insert(id, ended::failed(&one)?);
            continue;
        }
        if one.connection.over {
            let (socket, other) = ended::over(&one)?;
            sockets.fds.insert(id, socket);
            gone.0.insert(id, other);
            continue;
        }
        if one.connection.peer == Some(id) {
            sockets.fds.insert(id, with_itself(&one)?);
            continue;
        }
        let peer = one.connection.peer;
        let other = peer.and_then(|peer| connected(all).find(|other| other.making.id() == peer));
        // Either may be the one that was accepted; a listener's address is told by its socket.
        let server = other.unwrap_or(one);
        let client = one;
        let (client, server) = if other.is_some_and(|_| listens(all, &one)) {
            (server, one)
        } else {
            (client, server)
        };
        let listener = listen(&server.making, server.state, other.is_none())?;
        let (socket, accepted) = meet(client, &listener, &client.state.remote)?;
        sockets.fds.insert(client.making.id(), socket);
        if other.is_some() {
            sockets.fds.insert(server.making.id(), accepted);
        } else {
            gone.0.insert(id, accepted);
        }
    }
    Ok(gone)
}

/// A connection to a listener: both ends.
fn meet(
    client: One<'_>,
    listener: &OwnedFd,
    address: &[u8],
) -> Result<(OwnedFd, OwnedFd), ResurrectError> {
    let making = &client.making;
    let socket = open(making)?;
    bind_client(making, socket.as_fd(), &client.state.local, address)?;
    socket::connect(socket.as_fd(), address).map_err(making.failed("connecting it"))?;
    let accepted = socket::accept(listener.as_fd()).map_err(making.failed("accepting it"))?;
    Ok((socket, accepted))
}

/// A connection to the own address: nobody listens, both ends ask at once.
fn with_itself(one: &One<'_>) -> Result<OwnedFd, ResurrectError> {
    let making = &one.making;
    let fd = open(making)?;
    bind(making, fd.as_fd(), &one.state.local)?;
    socket::connect(fd.as_fd(), &one.state.remote)
        .map_err(making.failed("connecting it to itself"))?;
    Ok(fd)
}

/// Has one ask again that had asked to be connected and was not answered yet. Whoever waits for the answer goes on
/// waiting.
pub(super) fn ask_again(
    making: &Making<'_>,
    state: &InetSocket,
    fd: BorrowedFd<'_>,
) -> Result<(), ResurrectError> {
    let doing = "having it ask for its connection";
    let blocks = fcntl(fd, FcntlArg::F_GETFL).map_err(making.failed(doing))?;
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(making.failed(doing))?;
    match socket::connect(fd, &state.asks) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(making.failed(doing)(errno)),
    }
    let before = FcntlArg::F_SETFL(OFlag::from_bits_truncate(blocks));
    fcntl(fd, before).map(drop).map_err(making.failed(doing))
}

/// `::ffff:a.b.c.d`
fn is_v4_in_v6(address: &[u8]) -> bool {
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    address.get(8..20) == Some(&MAPPED)
}

/// Whether a listening socket of the manifest has the port.
fn listens(all: &[Making<'_>], one: &One<'_>) -> bool {
    let port = one.state.local.get(2..4);
    all.iter().any(|making| match &making.socket.state {
        SocketState::Inet(state) => state.backlog.is_some() && state.local.get(2..4) == port,
        _ => false,
    })
}

fn open(making: &Making<'_>) -> Result<OwnedFd, ResurrectError> {
    let fd = making.new_socket()?;
    options::set(making, fd.as_fd(), When::Early)?;
    Ok(fd)
}

/// A listener for one connection, with what the accepted socket inherits. When the end is gone it has
/// the address that the other end is connected to.
fn listen(making: &Making<'_>, state: &InetSocket, gone: bool) -> Result<OwnedFd, ResurrectError> {
    let fd = if gone {
        making.new_socket()?
    } else {
        open(making)?
    };
    if gone {
        bind(making, fd.as_fd(), &state.remote)?;
    } else if takes_both(making) && !is_v4_in_v6(&state.local) {
        bind(making, fd.as_fd(), &inet::wildcard(&state.local))?;
    } else {
        bind(making, fd.as_fd(), &state.local)?;
    }
    socket::listen(fd.as_fd(), 1).map_err(making.failed("listening for it"))?;
    Ok(fd)
}

/// Binds the address of a socket that will be connected to `peer`. One of IPv6 that is bound to a host takes no
/// IPv4 from then on (`IPV6_V6ONLY`): one that did was bound to none, and routing has chosen.
fn bind_client(
    making: &Making<'_>,
    fd: BorrowedFd<'_>,
    own: &[u8],
    peer: &[u8],
) -> Result<(), ResurrectError> {
    if takes_both(making) && inet::routing_chooses(own, peer) {
        bind(making, fd, &inet::wildcard(own))
    } else {
        bind(making, fd, own)
    }
}

/// Whether it is of IPv6 and takes IPv4 as well.
fn takes_both(making: &Making<'_>) -> bool {
    const V6ONLY: (i32, i32) = (c::SOL_IPV6, c::IPV6_V6ONLY);
    let mut options = making.socket.options.iter();
    let only = options.find(|option| (option.level, option.name) == V6ONLY);
    making.socket.domain == c::AF_INET6
        && only.is_some_and(|option| option.value.iter().all(|byte| *byte == 0))
}

/// Binds past whatever other connections have the port.
fn bind(making: &Making<'_>, fd: BorrowedFd<'_>, address: &[u8]) -> Result<(), ResurrectError> {
    let failed = "binding the address of a connection";
    set_int(fd, (c::SOL_SOCKET, c::SO_REUSEADDR), 1).map_err(making.failed(failed))?;
    match inet::bind_to(fd, address) {
        Err(Errno::EADDRINUSE) => {
            inet::bind_past_ended(fd, address).map_err(making.failed(failed))?;
            set_int(fd, (c::SOL_SOCKET, c::SO_REUSEADDR), 1).map_err(making.failed(failed))
        }
        bound => bound.map_err(making.failed(failed)),
    }
}

/// What a forced binding left on the socket.
pub(super) fn settle(making: &Making<'_>, fd: BorrowedFd<'_>) -> Result<(), ResurrectError> {
    let wanted = making
        .socket
        .options
        .iter()
        .find(|option| (option.level, option.name) == SO_REUSEPORT);
    let wanted = wanted.is_some_and(|option| option.value.first().is_some_and(|byte| *byte != 0));
    set_int(fd, SO_REUSEPORT, i32::from(wanted)).map_err(making.failed("SO_REUSEPORT"))
}
