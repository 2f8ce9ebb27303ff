//! TCP connections whose both ends are on this host: made anew with the same addresses. One that is over had
//! its other end anywhere; it is made anew with one on this host, and ended.

use super::inet::{self, SO_REUSEPORT, set_int};
use super::options::{self, When};
use super::{Making, Sockets};
use crate::ResurrectError;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc as c;
use persist_mem::manifest::{Connection, DescriptionId, InetSocket, SocketState, Urgent};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::Errno;
use sys::socket::{self, Outgoing};

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
            sockets.fds.insert(id, failed(&one)?);
            continue;
        }
        if one.connection.over {
            let (socket, other) = over(&one)?;
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

/// Has those ask again that had asked to be connected and were not answered yet. Whoever waits for the answer goes
/// on waiting.
pub(super) fn ask_again(all: &[Making<'_>], sockets: &Sockets) -> Result<(), ResurrectError> {
    let doing = "having it ask for its connection";
    for making in all {
        let SocketState::Inet(state) = &making.socket.state else {
            continue;
        };
        if state.asks.is_empty() {
            continue;
        }
        let fd = sockets.get(making)?;
        let blocks = fcntl(fd, FcntlArg::F_GETFL).map_err(making.failed(doing))?;
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(making.failed(doing))?;
        match socket::connect(fd, &state.asks) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(making.failed(doing)(errno)),
        }
        let before = FcntlArg::F_SETFL(OFlag::from_bits_truncate(blocks));
        fcntl(fd, before).map_err(making.failed(doing))?;
    }
    Ok(())
}

/// A connection that is to be over, and its other end.
fn over(one: &One<'_>) -> Result<(OwnedFd, OwnedFd), ResurrectError> {
    let making = &one.making;
    let doing = "making the other end of a connection that is over";
    let listener = making.new_socket()?;
    let address = on_this_host(one, doing)?;
    socket::bind(listener.as_fd(), &address).map_err(making.failed(doing))?;
    socket::listen(listener.as_fd(), 1).map_err(making.failed(doing))?;
    let address = socket::name(listener.as_fd()).map_err(making.failed(doing))?;
    meet(*one, &listener, &address)
}

/// The loopback address of its family, without a port.
fn on_this_host(one: &One<'_>, doing: &'static str) -> Result<Vec<u8>, ResurrectError> {
    let domain = one.making.socket.domain;
    let mut address = if domain == c::AF_INET {
        vec![0; 16]
    } else {
        vec![0; 28]
    };
    address[0] = u8::try_from(domain).unwrap_or(0);
    match (domain, is_v4_in_v6(&one.state.local)) {
        (c::AF_INET, _) => address[4..8].copy_from_slice(&[127, 0, 0, 1]),
        (c::AF_INET6, true) => address[18..24].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]),
        (c::AF_INET6, false) => address[23] = 1,
        _ => return Err(one.making.failed(doing)(Errno::EAFNOSUPPORT)),
    }
    Ok(address)
}

/// A connection that could not be made: nobody listens where it asks.
fn failed(one: &One<'_>) -> Result<OwnedFd, ResurrectError> {
    let making = &one.making;
    let doing = "having a connection fail";
    let local = &one.state.local;
    let deaf = making.new_socket()?;
    let address = if local.is_empty() || inet::wildcard(local) == *local {
        on_this_host(one, doing)?
    } else {
        let mut address = local.clone();
        address[2..4].fill(0);
        address
    };
    socket::bind(deaf.as_fd(), &address).map_err(making.failed(doing))?;
    let address = socket::name(deaf.as_fd()).map_err(making.failed(doing))?;
    let fd = open(making)?;
    if local.get(2..4).is_some_and(|port| port != [0, 0]) {
        bind(making, fd.as_fd(), local)?;
    }
    // Whoever waits for the answer is told of it.
    let blocks = fcntl(&fd, FcntlArg::F_GETFL).map_err(making.failed(doing))?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(making.failed(doing))?;
    match socket::connect(fd.as_fd(), &address) {
        Err(Errno::EINPROGRESS) => told(making, fd.as_fd())?,
        other => return Err(making.failed(doing)(other.err().unwrap_or(Errno::EISCONN))),
    }
    let before = FcntlArg::F_SETFL(OFlag::from_bits_truncate(blocks));
    fcntl(&fd, before).map_err(making.failed(doing))?;
    if one.state.error == 0 {
        // To ask takes it off.
        let asked = socket::int_option(fd.as_fd(), c::SOL_SOCKET, c::SO_ERROR);
        asked.map_err(making.failed(doing))?;
    }
    Ok(fd)
}

/// Waits until an error waits on it.
fn told(making: &Making<'_>, fd: BorrowedFd<'_>) -> Result<(), ResurrectError> {
    let doing = "waiting for its error";
    let begun = Instant::now();
    while socket::events(fd).map_err(making.failed(doing))? & c::POLLERR == 0 {
        if begun.elapsed() > QUEUED_WITHIN {
            return Err(making.failed(doing)(Errno::ETIMEDOUT));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// `::ffff:a.b.c.d`
fn is_v4_in_v6(address: &[u8]) -> bool {
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    address.get(8..20) == Some(&MAPPED)
}

/// Has the clients connect that wait to be accepted by a socket that has just begun to listen, in their order:
/// the sockets that will share its port do not listen yet.
pub(super) fn wait(
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
        made.extend(one.map(|one| (one.making.id(), client)));
    }
    defer(deferred)?;
    Ok(made)
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
        // Where not all fits, no more may be promised to the sender than there was room for: what it sends then
        // is dropped, and comes again after ever longer times.
        for one in connected(all).filter(|one| !one.connection.unsent.is_empty()) {
            keep_small(all, sockets, &one)?;
        }
        for one in connected(all).filter(|one| one.connection.closing.is_some()) {
            options::set(&one.making, sockets.get(&one.making)?, When::Late)?;
        }
        for one in connected(all) {
            let id = one.making.id();
            // Nothing comes from a peer that has not accepted it.
            if one.state.queue.is_empty() {
                continue;
            }
            let peer = one.connection.peer.and_then(|peer| sockets.fds.get(&peer));
            let sender = peer.or_else(|| self.0.get(&id));
            let missing = || one.making.failed("looking up its peer")(Errno::ENOTCONN);
            let sender = sender.ok_or_else(missing)?.as_fd();
            let urgent = one.connection.urgent;
            for message in &one.state.queue {
                send(&one.making, sender, &message.data, urgent)?;
            }
            if urgent.is_some_and(|urgent| urgent.read) {
                read_urgent(&one.making, sockets.get(&one.making)?)?;
            }
        }
        for one in connected(all).filter(|one| !one.connection.unsent.is_empty()) {
            let fd = sockets.get(&one.making)?;
            send(&one.making, fd, &one.connection.unsent, None)?;
        }
        for one in connected(all) {
            if let (Some(rest), Some(other)) =
                (&one.connection.closing, self.0.get(&one.making.id()))
            {
                send(&one.making, other.as_fd(), rest, None)?;
            }
        }
        for one in connected(all) {
            self.finish(&one, sockets.get(&one.making)?)?;
        }
        // Whoever has still to send goes on without a process.
        self.0.clear();
        Ok(())
    }

    /// Finishes what was finished, at this end or the other.
    fn finish(&mut self, one: &One<'_>, fd: BorrowedFd<'_>) -> Result<(), ResurrectError> {
        if one.connection.over {
            // The other end first, so that it is the one that is remembered (TIME_WAIT).
            let other = self.0.remove(&one.making.id());
            if one.state.error != 0
                && let Some(other) = other
            {
                return reset(one, fd, other);
            }
        }
        let how = match (one.connection.finished, one.connection.deaf) {
            _ if one.connection.failed => return Ok(()),
            (true, true) => c::SHUT_RDWR,
            (true, false) => c::SHUT_WR,
            (false, true) => c::SHUT_RD,
            (false, false) => return Ok(()),
        };
        socket::shutdown(fd, how).map_err(one.making.failed("shutting it down"))
    }
}

/// Has the other end break the connection: what it is told depends on whether that had finished.
fn reset(one: &One<'_>, fd: BorrowedFd<'_>, other: OwnedFd) -> Result<(), ResurrectError> {
    let doing = "breaking a connection";
    if one.state.error == c::EPIPE {
        socket::shutdown(other.as_fd(), c::SHUT_WR).map_err(one.making.failed(doing))?;
    }
    // struct linger: on, no seconds.
    let linger = [1i32, 0].map(i32::to_ne_bytes).concat();
    socket::set_option(other.as_fd(), c::SOL_SOCKET, c::SO_LINGER, &linger)
        .map_err(one.making.failed(doing))?;
    drop(other);
    told(&one.making, fd)
}

/// Gives the other end its own buffer's size before anything is sent to it.
fn keep_small(all: &[Making<'_>], sockets: &Sockets, one: &One<'_>) -> Result<(), ResurrectError> {
    let peer = one.connection.peer;
    match connected(all).find(|other| Some(other.making.id()) == peer) {
        Some(peer) => options::set(&peer.making, sockets.get(&peer.making)?, When::Late),
        None => Ok(()),
    }
}

/// Reads the urgent byte, so that only its mark is left.
fn read_urgent(making: &Making<'_>, fd: BorrowedFd<'_>) -> Result<(), ResurrectError> {
    let begun = Instant::now();
    loop {
        match socket::receive(fd, c::MSG_OOB | c::MSG_DONTWAIT, 1) {
            // It is on its way.
            Err(Errno::EAGAIN | Errno::EINVAL) if begun.elapsed() < QUEUED_WITHIN => {
                std::thread::sleep(Duration::from_millis(1));
            }
            done => {
                return done
                    .map(drop)
                    .map_err(making.failed("reading the urgent byte of its queue"));
            }
        }
    }
}

fn send(
    making: &Making<'_>,
    sender: BorrowedFd<'_>,
    data: &[u8],
    urgent: Option<Urgent>,
) -> Result<(), ResurrectError> {
    let Some(urgent) = urgent else {
        return send_plain(making, sender, data, 0);
    };
    let (before, rest) = data.split_at(data.len().min(urgent.at as usize));
    let (byte, after) = rest.split_at(rest.len().min(1));
    send_plain(making, sender, before, 0)?;
    send_plain(making, sender, byte, c::MSG_OOB)?;
    send_plain(making, sender, after, 0)
}

fn send_plain(
    making: &Making<'_>,
    sender: BorrowedFd<'_>,
    data: &[u8],
    flags: i32,
) -> Result<(), ResurrectError> {
    let mut rest = data;
    while !rest.is_empty() {
        let outgoing = Outgoing {
            data: rest,
            ..Outgoing::default()
        };
        let sent = socket::send(sender, &outgoing, c::MSG_DONTWAIT | flags)
            .map_err(making.failed("filling its queue"))?;
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
