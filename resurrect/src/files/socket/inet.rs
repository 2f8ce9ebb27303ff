//! Sockets of IP: TCP, UDP, ICMP, raw.

use super::options::{self, When};
use super::{Making, Sockets, interface, packets, queue, refused};
use crate::ResurrectError;
use nix::libc as c;
use persist_mem::manifest::{InetSocket, MulticastGroup, SocketMessage, SocketOption, SocketState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::socket::{Control, Outgoing};
use sys::{Errno, Pid, socket};

/// How long the answer to a datagram to this host may take.
pub(super) const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// include/uapi/linux/in.h
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
const MCAST_EXCLUDE: u32 = 0;
const IPV6_TRANSPARENT: i32 = 75;
const SO_DETACH_REUSEPORT_BPF: (i32, i32) = (c::SOL_SOCKET, c::SO_DETACH_REUSEPORT_BPF);
pub(super) const SO_REUSEPORT: (i32, i32) = (c::SOL_SOCKET, c::SO_REUSEPORT);

/// Made, bound and listening; not connected yet.
pub(super) fn make(making: &Making<'_>, state: &InetSocket) -> Result<OwnedFd, ResurrectError> {
    let fd = making.new_socket()?;
    if packets::gets_packets(making) {
        packets::begin(making, fd.as_fd())?;
    }
    options::set(making, fd.as_fd(), When::Early)?;
    if making.socket.kind == c::SOCK_STREAM {
        // Ended connections may still have the port (TIME_WAIT); the real value comes at the end.
        socket::set_int_option(fd.as_fd(), c::SOL_SOCKET, c::SO_REUSEADDR, 1)
            .map_err(making.failed("setting SO_REUSEADDR"))?;
    }
    let forced = bind(making, state, fd.as_fd())?;
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

/// Binds it; true when it was forced ([`bind_past_ended`]).
fn bind(
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
pub(super) fn bind_to(fd: BorrowedFd<'_>, address: &[u8]) -> sys::Result<()> {
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
fn by_routing(state: &InetSocket) -> bool {
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
pub(super) fn bind_past_ended(fd: BorrowedFd<'_>, address: &[u8]) -> sys::Result<()> {
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

/// Whether a socket that is connected to `peer` gets the host of `own`.
pub(super) fn routing_chooses(own: &[u8], peer: &[u8]) -> bool {
    let host = if own.first() == Some(&2) { 4..8 } else { 8..24 };
    let domain = i32::from(own.first().copied().unwrap_or(0));
    let probe = socket::socket(domain, c::SOCK_DGRAM, 0);
    probe.is_ok_and(|fd| {
        socket::connect(fd.as_fd(), peer).is_ok()
            && socket::name(fd.as_fd())
                .is_ok_and(|name| name.get(host.clone()) == own.get(host.clone()))
    })
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
    let to = if state.remote.is_empty() {
        &pending.to[..]
    } else {
        &[]
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

/// The address with the same port and no host.
pub(super) fn wildcard(address: &[u8]) -> Vec<u8> {
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
    let again = make(making, state_bound_only(state).as_ref().unwrap_or(state))?;
    for group in &state.groups {
        join(making, again.as_fd(), group)?;
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

/// Has sockets join their multicast groups, in the order in which they were joined.
pub(super) fn join_all(all: &[Making<'_>], sockets: &Sockets) -> Result<(), ResurrectError> {
    let mut groups: Vec<(&MulticastGroup, &Making<'_>)> = Vec::new();
    for making in all {
        if let SocketState::Inet(state) = &making.socket.state {
            groups.extend(state.groups.iter().map(|group| (group, making)));
        }
    }
    groups.sort_by_key(|(group, _)| std::cmp::Reverse(group.place));
    groups
        .into_iter()
        .try_for_each(|(group, making)| join(making, sockets.get(making)?, group))
}

/// Joins a multicast group (`struct group_req`, `struct group_filter`).
fn join(
    making: &Making<'_>,
    fd: BorrowedFd<'_>,
    group: &MulticastGroup,
) -> Result<(), ResurrectError> {
    let level = if group.group.first() == Some(&2) {
        c::SOL_IP
    } else {
        c::SOL_IPV6
    };
    let index = interface(making, &group.interface)?;
    let mut request = vec![0u8; 136];
    request[..4].copy_from_slice(&index.to_ne_bytes());
    request[8..8 + group.group.len()].copy_from_slice(&group.group);
    match socket::set_option(fd, level, MCAST_JOIN_GROUP, &request) {
        // Every IPv6 socket is in the all-nodes group of itself.
        Ok(()) | Err(Errno::EADDRINUSE) => {}
        Err(errno) => return Err(making.failed("joining a multicast group")(errno)),
    }
    if group.mode == MCAST_EXCLUDE && group.sources.is_empty() {
        return Ok(());
    }
    request.extend_from_slice(&group.mode.to_ne_bytes());
    request.extend_from_slice(&(group.sources.len() as u32).to_ne_bytes());
    for source in &group.sources {
        let mut storage = source.clone();
        storage.resize(128, 0);
        request.extend_from_slice(&storage);
    }
    socket::set_option(fd, level, MCAST_MSFILTER, &request)
        .map_err(making.failed("setting the sources of a multicast group"))
}

/// Sends what was in the queues of UDP sockets, over the loopback interface and from the addresses it
/// came from.
pub(super) fn fill(all: &[Making<'_>], sockets: &Sockets) -> Result<(), ResurrectError> {
    for making in all {
        if let SocketState::Inet(state) = &making.socket.state {
            if state.connection.is_some() || packets::gets_packets(making) {
                continue;
            }
            if state.queue.is_empty() {
                continue;
            }
            unbind_device(making, sockets.get(making)?)?;
            let shared = choose(all, making, state, sockets.get(making)?)?;
            for message in &state.queue {
                send(all, sockets, making, state, message)?;
            }
            if shared {
                set_int(sockets.get(making)?, SO_DETACH_REUSEPORT_BPF, 0)
                    .map_err(making.failed("letting the kernel choose again"))?;
            }
        }
    }
    Ok(())
}

/// Has a socket get what comes for all that share its port (`SO_REUSEPORT`); false when it shares it with nobody.
fn choose(
    all: &[Making<'_>],
    making: &Making<'_>,
    state: &InetSocket,
    fd: BorrowedFd<'_>,
) -> Result<bool, ResurrectError> {
    let Some(own) = &state.group else {
        return Ok(false);
    };
    // They were bound in the order of their places.
    let before = all.iter().filter(|other| {
        let SocketState::Inet(other_state) = &other.socket.state else {
            return false;
        };
        let alike = (
            other.socket.domain,
            other.socket.protocol,
            &other_state.local,
        ) == (making.socket.domain, making.socket.protocol, &state.local);
        alike
            && other_state
                .group
                .as_ref()
                .is_some_and(|group| group.place < own.place)
    });
    let place = before.count() as u64;
    // ret #place
    match socket::attach_port_program(fd, &[0x06 | place << 32]) {
        Ok(()) => Ok(true),
        // It has let go of its device, and of its group with it.
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(making.failed("having it get what is sent to its port")(
            errno,
        )),
    }
}

/// What is sent on this host comes from the loopback interface; the device comes back with the options.
fn unbind_device(making: &Making<'_>, fd: BorrowedFd<'_>) -> Result<(), ResurrectError> {
    // To let go of none would take it out of the group of its port (net/ipv4/udp.c, udp_lib_rehash()).
    let bound = making.socket.options.iter().any(|option| {
        let line = (option.level, option.name) == (c::SOL_SOCKET, c::SO_BINDTODEVICE);
        line && option.value.iter().any(|byte| *byte != 0)
    });
    if !bound {
        return Ok(());
    }
    socket::set_option(fd, c::SOL_SOCKET, c::SO_BINDTODEVICE, &[0])
        .map_err(making.failed("letting go of its device"))
}

fn send(
    all: &[Making<'_>],
    sockets: &Sockets,
    making: &Making<'_>,
    state: &InetSocket,
    message: &SocketMessage,
) -> Result<(), ResurrectError> {
    let source = plain(&message.source);
    let to = destination(
        &plain(&state.local),
        &source,
        &message.destination,
        &message.header,
    );
    let mut control = as_sent(&message.header);
    // One that does not ask for it would get the parts.
    if message.segment != 0 && takes_segments(making) {
        let size = message.segment.to_ne_bytes().to_vec();
        control.push((c::SOL_UDP, c::UDP_SEGMENT, size));
    }
    let domain = i32::from(source.first().copied().unwrap_or(0));
    let local = socket::is_local(&source);
    let mut senders = all.iter().filter(|sender| {
        sender.socket.kind == c::SOCK_DGRAM
            && sender.socket.domain == domain
            && sender.socket.protocol == making.socket.protocol
            && sends_from(sender, &source, local)
    });
    // Also itself, where nobody else has the address.
    let myself = senders.clone().find(|sender| sender.id() == making.id());
    let known = senders.find(|sender| sender.id() != making.id()).or(myself);
    if let Some(sender) = known {
        return queue::send_inet(making, sockets.get(sender)?, message, &to, &control);
    }
    let doing = "making a sender for what is in its queue";
    let stranger = socket::socket(domain, c::SOCK_DGRAM, making.socket.protocol)
        .map_err(making.failed(doing))?;
    let fd = stranger.as_fd();
    let transparent = if domain == c::AF_INET {
        (c::SOL_IP, c::IP_TRANSPARENT)
    } else {
        (c::SOL_IPV6, IPV6_TRANSPARENT)
    };
    for (level, name) in [
        transparent,
        (c::SOL_SOCKET, c::SO_REUSEADDR),
        (c::SOL_SOCKET, c::SO_REUSEPORT),
        (c::SOL_SOCKET, c::SO_BROADCAST),
    ] {
        socket::set_int_option(fd, level, name, 1).map_err(making.failed(doing))?;
    }
    socket::bind(fd, &source).map_err(making.failed(doing))?;
    queue::send_inet(making, fd, message, &to, &control)
}

/// Whether a socket gets datagrams together that came together (`UDP_GRO`).
fn takes_segments(making: &Making<'_>) -> bool {
    making.socket.options.iter().any(|option| {
        let line = (option.level, option.name) == (c::SOL_UDP, c::UDP_GRO);
        line && option.value.iter().any(|byte| *byte != 0)
    })
}

/// Whether what a socket sends comes from an address, which is one of this host's or not.
fn sends_from(sender: &Making<'_>, source: &[u8], local: bool) -> bool {
    match &sender.socket.state {
        SocketState::Inet(state) => {
            state.local == source || (local && state.local == wildcard(source))
        }
        _ => false,
    }
}

/// Hops, type of service and options of a header of IP, as control messages of the sender, who may have others by now.
fn as_sent(header: &[u8]) -> Vec<Control> {
    let number = |level, name, value: u8| (level, name, i32::from(value).to_ne_bytes().to_vec());
    match *header {
        [first, service, _, _, _, _, _, _, hops, ..] if first >> 4 == 4 => vec![
            number(c::SOL_IP, c::IP_TTL, hops),
            number(c::SOL_IP, c::IP_TOS, service),
            (c::SOL_IP, c::IP_RETOPTS, options_of(first, header)),
        ],
        [first, second, _, _, _, _, _, hops, ..] if first >> 4 == 6 => vec![
            number(c::SOL_IPV6, c::IPV6_HOPLIMIT, hops),
            number(c::SOL_IPV6, c::IPV6_TCLASS, first << 4 | second >> 4),
        ],
        _ => Vec::new(),
    }
}

/// The options of a header of IPv4 that begins with `first`.
fn options_of(first: u8, header: &[u8]) -> Vec<u8> {
    const LEAST: usize = 20;
    let len = usize::from(first & 0xf) * 4;
    header.get(LEAST..len).unwrap_or_default().to_vec()
}

/// An IPv4 address inside an IPv6 one as an IPv4 address.
fn plain(address: &[u8]) -> Vec<u8> {
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    match (address.first(), address.get(8..20)) {
        (Some(10), Some(prefix)) if prefix == MAPPED => {
            [&[2, 0], &address[2..4], &address[20..24], &[0; 8]].concat()
        }
        _ => address.to_vec(),
    }
}

/// The address that a header of IP was sent to, when it is one of this host's.
fn to_this_host(port: &[u8], header: &[u8]) -> Option<Vec<u8>> {
    let v6 = header.first()? >> 4 == 6;
    let to = if v6 {
        [&[10, 0], port, &[0; 4], header.get(24..40)?, &[0; 4]].concat()
    } else {
        [&[2, 0], port, header.get(16..20)?, &[0; 8]].concat()
    };
    socket::is_local(&to).then_some(to)
}

/// Where to send a datagram so that the socket bound to `local` gets it: the address it was sent to
/// where that is known, else the one it is bound to, else the sender's own when it is this host's (then
/// routing chooses the same as source), else the loopback address.
fn destination(local: &[u8], source: &[u8], info: &[u8], header: &[u8]) -> Vec<u8> {
    let port = local.get(2..4).unwrap_or(&[0, 0]);
    if let Some(to) = to_this_host(port, header) {
        return to;
    }
    if source.first() == Some(&2) {
        // struct in_pktinfo: index, specific destination, destination.
        let told = info.get(8..12).filter(|_| info.len() == 12);
        let own = local.get(4..8).filter(|_| local.first() == Some(&2));
        let host = [told, own]
            .into_iter()
            .flatten()
            .find(|host| **host != [0; 4]);
        let own = source.get(4..8).filter(|_| socket::is_local(source));
        let host = host.or(own).unwrap_or(&[127, 0, 0, 1]);
        return [&[2, 0], port, host, &[0; 8]].concat();
    }
    // struct in6_pktinfo: destination, index.
    let mut loopback = [0u8; 16];
    loopback[15] = 1;
    let told = info.get(..16).filter(|_| info.len() == 20);
    let own = local.get(8..24);
    let host = [told, own]
        .into_iter()
        .flatten()
        .find(|host| **host != [0; 16]);
    let scope = local.get(24..28).unwrap_or(&[0; 4]);
    let same = source.get(8..24).filter(|_| socket::is_local(source));
    let host = host.or(same).unwrap_or(&loopback);
    [&[10, 0], port, &[0; 4], host, scope].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: [u8; 16] = [2, 0, 0, 7, 10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn a_datagram_goes_to_where_its_receiver_is() {
        let any = wildcard(&V4);
        assert_eq!(any[..8], [2, 0, 0, 7, 0, 0, 0, 0]);
        assert_eq!(destination(&V4, &V4, &[], &[]), V4);
        assert_eq!(destination(&any, &V4, &[], &[])[4..8], [127, 0, 0, 1]);
        let info = [1, 0, 0, 0, 127, 0, 0, 1, 127, 0, 0, 9];
        assert_eq!(destination(&any, &V4, &info, &[])[4..8], [127, 0, 0, 9]);
        let mut header = [0x45; 20];
        header[16..].copy_from_slice(&[127, 0, 0, 8]);
        assert_eq!(destination(&any, &V4, &info, &header)[4..8], [127, 0, 0, 8]);
        let mapped = [0; 20];
        assert_eq!(destination(&any, &V4, &mapped, &[])[4..8], [127, 0, 0, 1]);
    }

    #[test]
    fn mapped_addresses() {
        let mut mapped = vec![10, 0, 0, 7, 0, 0, 0, 0];
        mapped.extend_from_slice(&[0; 10]);
        mapped.extend_from_slice(&[0xff, 0xff, 10, 0, 0, 9, 0, 0, 0, 0]);
        assert_eq!(plain(&mapped), V4);
        assert_eq!(plain(&V4), V4);
    }
}
