//! TCP connections whose both ends are on this host: made anew with the same addresses.

use super::inet::{self, SO_REUSEPORT, set_int};
use super::options::{self, When};
use super::{Making, Sockets};
use crate::ResurrectError;
use nix::libc as c;
use persist_mem::manifest::{Connection, DescriptionId, InetSocket, SocketState};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::Errno;
use sys::socket::{self, Outgoing};

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
        if sockets.fds.contains_key(&id) {
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
        let socket = open(&client.making)?;
        bind(&client.making, socket.as_fd(), &client.state.local)?;
        socket::connect(socket.as_fd(), &client.state.remote)
            .map_err(client.making.failed("connecting it"))?;
        let accepted =
            socket::accept(listener.as_fd()).map_err(server.making.failed("accepting it"))?;
        sockets.fds.insert(client.making.id(), socket);
        if other.is_some() {
            sockets.fds.insert(server.making.id(), accepted);
        } else {
            gone.0.insert(id, accepted);
        }
    }
    Ok(gone)
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
    let address = if gone { &state.remote } else { &state.local };
    bind(making, fd.as_fd(), address)?;
    socket::listen(fd.as_fd(), 1).map_err(making.failed("listening for it"))?;
    Ok(fd)
}

/// Binds past whatever other connections have the port.
fn bind(making: &Making<'_>, fd: BorrowedFd<'_>, address: &[u8]) -> Result<(), ResurrectError> {
    let failed = "binding the address of a connection";
    set_int(fd, (c::SOL_SOCKET, c::SO_REUSEADDR), 1).map_err(making.failed(failed))?;
    match socket::bind(fd, address) {
        Err(Errno::EADDRINUSE) => {
            inet::bind_past_ended(fd, address).map_err(making.failed(failed))?;
            set_int(fd, (c::SOL_SOCKET, c::SO_REUSEADDR), 1).map_err(making.failed(failed))
        }
        bound => bound.map_err(making.failed(failed)),
    }
}

impl Gone {
    /// Sends what was received and not read, then finishes what was finished.
    pub(super) fn fill(
        &mut self,
        all: &[Making<'_>],
        sockets: &Sockets,
    ) -> Result<(), ResurrectError> {
        for fd in self.0.values() {
            options::enlarge(fd);
        }
        for one in connected(all) {
            let id = one.making.id();
            let peer = one.connection.peer.and_then(|peer| sockets.fds.get(&peer));
            let sender = peer.or_else(|| self.0.get(&id));
            let missing = || one.making.failed("looking up its peer")(Errno::ENOTCONN);
            let sender = sender.ok_or_else(missing)?.as_fd();
            for message in &one.state.queue {
                send(&one, sender, &message.data)?;
            }
        }
        for one in connected(all) {
            let fd = sockets.get(&one.making)?;
            let how = match (one.connection.finished, one.connection.deaf) {
                (true, true) => c::SHUT_RDWR,
                (true, false) => c::SHUT_WR,
                (false, true) => c::SHUT_RD,
                (false, false) => continue,
            };
            socket::shutdown(fd, how).map_err(one.making.failed("shutting it down"))?;
        }
        self.0.clear();
        Ok(())
    }
}

fn send(one: &One<'_>, sender: BorrowedFd<'_>, data: &[u8]) -> Result<(), ResurrectError> {
    let mut rest = data;
    while !rest.is_empty() {
        let outgoing = Outgoing {
            data: rest,
            ..Outgoing::default()
        };
        let sent = socket::send(sender, &outgoing, c::MSG_DONTWAIT)
            .map_err(one.making.failed("filling its queue"))?;
        rest = &rest[sent..];
    }
    Ok(())
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
