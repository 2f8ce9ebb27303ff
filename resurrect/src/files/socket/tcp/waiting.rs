//! Clients that wait to be accepted.

use super::contents::send;
use super::{QUEUED_WITHIN, bind_client, connected, open};
use crate::ResurrectError;
use crate::files::socket::inet::set_int;
use crate::files::socket::options::{self, When};
use crate::files::socket::{Making, Sockets};
use nix::libc as c;
use persist_mem::manifest::{Broken, DescriptionId, InetSocket, SocketState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::{Errno, socket};

/// Has the clients connect that wait to be accepted by a socket that has just begun to listen, in their order:
/// the sockets that will share its port do not listen yet.
pub(in crate::files::socket) fn wait(
    all: &[Making<'_>],
    listener: &Making<'_>,
    sockets: &mut Sockets,
) -> Result<(), ResurrectError> {
    let SocketState::Inet(state) = &listener.socket.state else {
        return Ok(());
    };
    let Some(backlog) = state.backlog else {
        return Ok(());
    };
    // They all fit in, also while one is being made.
    let fd = sockets.get(listener)?;
    let room = u32::try_from(state.waiting.len()).unwrap_or(u32::MAX);
    socket::listen(fd, backlog.saturating_add(room)).map_err(listener.failed("listening"))?;
    let chosen = Chosen::among_its_port(all, listener, state, sockets)?;
    let fd = sockets.get(listener)?;
    if !state.waiting.is_empty() {
        // They take over what it has.
        options::set(listener, fd, When::Late)?;
    }
    let mut made = queue_up(all, listener, state, fd)?;
    made.extend(ask(all, listener, state)?);
    drop(chosen);
    socket::listen(fd, backlog).map_err(listener.failed("listening"))?;
    sockets.fds.extend(made);
    Ok(())
}

/// Those that wait in its queue, with their clients.
fn queue_up(
    all: &[Making<'_>],
    listener: &Making<'_>,
    state: &InetSocket,
    fd: BorrowedFd<'_>,
) -> Result<Vec<(DescriptionId, OwnedFd)>, ResurrectError> {
    const DEFER: (i32, i32) = (c::SOL_TCP, c::TCP_DEFER_ACCEPT);
    let deferred = socket::int_option(fd, DEFER.0, DEFER.1).unwrap_or(0);
    let defer = |value| match deferred {
        0 => Ok(()),
        _ => set_int(fd, DEFER, value).map_err(listener.failed("TCP_DEFER_ACCEPT")),
    };
    // Some may wait there without data all the same.
    defer(0)?;
    let mut made = Vec::new();
    for (number, waiting) in (1..).zip(&state.waiting) {
        let mut clients = connected(all);
        let one = clients.find(|one| Some(one.making.id()) == waiting.client);
        let making = one.map_or(*listener, |one| one.making);
        let client = match one {
            Some(one) => open(&one.making)?,
            None => listener.new_socket()?,
        };
        // To a listener of IPv6 both look like addresses of IPv6, whatever the client's are.
        let (name, to) = match one {
            Some(one) => (&one.state.local, &one.state.remote),
            None => (&waiting.remote, &waiting.local),
        };
        bind_client(&making, client.as_fd(), name, to)?;
        socket::connect(client.as_fd(), to)
            .map_err(making.failed("connecting a client that waits"))?;
        let begun = Instant::now();
        while unaccepted(fd) != Some(number) {
            if begun.elapsed() > QUEUED_WITHIN {
                return Err(listener.failed("having a client wait")(Errno::ECONNABORTED));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        options::enlarge(&client);
        send(&making, client.as_fd(), &waiting.sent, waiting.urgent)?;
        send(
            &making,
            client.as_fd(),
            waiting.closing.as_deref().unwrap_or(&[]),
            None,
        )?;
        if let Some(broken) = waiting.broken {
            break_off(client, broken).map_err(making.failed("breaking off a connection"))?;
            continue;
        }
        made.extend(one.map(|one| (one.making.id(), client)));
    }
    defer(deferred)?;
    Ok(made)
}

/// Has a client go as one that was killed with data that it had not read.
fn break_off(client: OwnedFd, broken: Broken) -> sys::Result<()> {
    // All that it has sent must be there: what was not would go with it.
    let begun = Instant::now();
    while socket::unsent(client.as_fd())? != 0 && begun.elapsed() < QUEUED_WITHIN {
        std::thread::sleep(Duration::from_millis(1));
    }
    if broken == Broken::Finished {
        socket::shutdown(client.as_fd(), c::SHUT_WR)?;
    }
    let at_once = [1i32.to_ne_bytes(), [0; 4]].concat();
    socket::set_option(client.as_fd(), c::SOL_SOCKET, c::SO_LINGER, &at_once)
}

/// Those whose first data has not come are not in its queue yet (`TCP_DEFER_ACCEPT`).
fn ask(
    all: &[Making<'_>],
    listener: &Making<'_>,
    state: &InetSocket,
) -> Result<Vec<(DescriptionId, OwnedFd)>, ResurrectError> {
    let id = Some(listener.id());
    let queued = |id| state.waiting.iter().any(|one| one.client == Some(id));
    let mut made = Vec::new();
    for one in connected(all).filter(|one| one.connection.waits_for == id) {
        if queued(one.making.id()) {
            continue;
        }
        let client = open(&one.making)?;
        let (own, peer) = (&one.state.local, &one.state.remote);
        bind_client(&one.making, client.as_fd(), own, peer)?;
        socket::connect(client.as_fd(), &one.state.remote)
            .map_err(one.making.failed("connecting a client that waits"))?;
        made.push((one.making.id(), client));
    }
    Ok(made)
}

/// How many connections wait to be accepted: `tcpi_unacked` of `struct tcp_info`.
fn unaccepted(fd: BorrowedFd<'_>) -> Option<u32> {
    let info = socket::option(fd, c::SOL_TCP, c::TCP_INFO, 104).ok()?;
    Some(u32::from_ne_bytes(info.get(24..28)?.try_into().ok()?))
}

/// While it lives, one socket gets all connections to a port that several listen at.
struct Chosen<'a>(Option<BorrowedFd<'a>>);

impl<'a> Chosen<'a> {
    fn among_its_port(
        all: &[Making<'_>],
        listener: &Making<'_>,
        state: &InetSocket,
        sockets: &'a Sockets,
    ) -> Result<Chosen<'a>, ResurrectError> {
        let before = all.iter().filter(|other| match &other.socket.state {
            SocketState::Inet(other_state) => {
                other.id() != listener.id()
                    && other_state.backlog.is_some()
                    && other_state.group.is_some()
                    && other_state.local == state.local
                    && sockets.fds.contains_key(&other.id())
            }
            _ => false,
        });
        let place = before.count();
        if state.group.is_none() || place == 0 {
            return Ok(Chosen(None));
        }
        // BPF_RET | BPF_K
        let program = [0x06 | (place as u64) << 32];
        let fd = sockets.get(listener)?;
        socket::attach_port_program(fd, &program)
            .map_err(listener.failed("choosing among the sockets of its port"))?;
        Ok(Chosen(Some(fd)))
    }
}

impl Drop for Chosen<'_> {
    fn drop(&mut self) {
        if let Some(fd) = self.0 {
            // It was attached; the one that belongs there comes at the end.
            let _ = socket::set_int_option(fd, c::SOL_SOCKET, c::SO_DETACH_REUSEPORT_BPF, 0);
        }
    }
}
