//! TCP sockets (tcp(7)): listening ones, and connections whose both ends are on this host.
//!
//! Such a connection is made anew with the same addresses: nobody sees its sequence numbers. All that
//! counts is what was received and not read, and what is finished.

use super::queue::{Message, from_start};
use super::tcp_queue::Unsent;
use super::{Common, closing, int, tcp_queue, unaccepted};
use crate::FreezerError;
use crate::files::Open;
use crate::kernel::{self, Unreadable};
use crate::nettcp::{self, Ends};
use nix::libc as c;
use persist_mem::manifest::{
    Connection, Description, DescriptionId, DescriptionKind, InetSocket, SocketState,
    WaitingConnection,
};
use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use sys::{Errno, Pid, socket};

/// include/net/tcp_states.h
pub(super) mod state {
    pub(super) const ESTABLISHED: u8 = 1;
    pub(super) const SYN_SENT: u8 = 2;
    pub(in super::super) const FIN_WAIT1: u8 = 4;
    pub(super) const FIN_WAIT2: u8 = 5;
    pub(in super::super) const CLOSE: u8 = 7;
    pub(super) const CLOSE_WAIT: u8 = 8;
    pub(in super::super) const LAST_ACK: u8 = 9;
    pub(in super::super) const LISTEN: u8 = 10;
    pub(in super::super) const CLOSING: u8 = 11;
}

/// How long the other end's kernel side may take to say what it has got (delayed acknowledgements).
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(400);

/// Nothing is under way any more that has not moved for so long: packets take no time on this host.
const CALM: Duration = Duration::from_millis(20);

const MORE_THAN_FITS: &str = "it has sent more than its peer can take";

/// When a TCP socket is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Its process runs: it may change meanwhile.
    Running,
    /// Its process stands still, but what was sent may be under way. What was received and sent is left out
    /// until all sockets are known (`settle.rs`).
    Stopped,
    /// Nothing is under way any more.
    Settled,
}

/// What a TCP socket adds to `found`: its backlog or its connection.
pub(super) fn examine(
    open: &Open<'_>,
    common: &Common,
    when: When,
    found: &mut InetSocket,
) -> Result<(), FreezerError> {
    let fd = open.copy.as_fd();
    let ulp = socket::option(fd, c::SOL_TCP, c::TCP_ULP, 16).unwrap_or_default();
    // Multipath TCP is one, whatever its own socket says.
    let multipath = common.protocol == c::IPPROTO_MPTCP;
    if !ulp.is_empty() && !multipath {
        let name = String::from_utf8_lossy(&ulp)
            .trim_end_matches('\0')
            .to_owned();
        return Err(open.refuse(format!("TCP with an upper layer ({name}) is not carried")));
    }
    if int(open, c::SOL_TCP, c::TCP_REPAIR).is_ok_and(|repair| repair != 0) {
        return Err(open.refuse("a TCP socket in repair mode is not carried"));
    }
    // struct tcp_info: state u8; for a listening socket unacked at 24 is the number of connections
    // that wait, sacked at 28 the backlog (net/ipv4/tcp.c, tcp_get_info).
    let info = socket::option(fd, c::SOL_TCP, c::TCP_INFO, 160).map_err(open.call("TCP_INFO"))?;
    let word = |at: usize| {
        let found = info.get(at..at + 4).and_then(|w| w.try_into().ok());
        found.map_or(0, u32::from_ne_bytes)
    };
    let finished = match info.first() {
        Some(&state::LISTEN) if word(24) != 0 && multipath => {
            let text = format!("{} connections wait to be accepted", word(24));
            return Err(open.refuse(format!("{text}, which is not carried for multipath TCP")));
        }
        Some(&state::LISTEN) => {
            found.backlog = Some(word(28));
            if when != When::Stopped {
                found.waiting = waiting(open)?;
            }
            return Ok(());
        }
        Some(&state::CLOSE) if common.has(c::POLLRDHUP) => {
            found.connection = Some(ended(open, found.error, was_made(&info))?);
            return Ok(());
        }
        Some(&state::CLOSE) if found.error == 0 => return Ok(()),
        // A listening one takes TCP, too, and what it accepts then is TCP.
        _ if multipath => return Err(open.refuse("connections of multipath TCP are not carried")),
        Some(&state::SYN_SENT) if found.error == 0 => {
            found.asks = asks(open)?;
            return Ok(());
        }
        Some(&(state::ESTABLISHED | state::CLOSE_WAIT)) => false,
        Some(&(state::FIN_WAIT1 | state::FIN_WAIT2)) => true,
        _ => return Err(open.refuse("a TCP connection that is being made or ended is not carried")),
    };
    if found.error != 0 {
        return Err(open.refuse("an error waits on a TCP connection that goes on"));
    }
    if !is_local(&found.remote) {
        return Err(open.refuse("live TCP connections to other hosts are not carried yet"));
    }
    let got_all = info.first() == Some(&state::CLOSE_WAIT);
    if !got_all
        && when != When::Stopped
        && let Err(why) = kernel::look(|_| Ok(()))
        && closing::is_there(&found.local, &found.remote)
    {
        let text = "its other end was closed with more to send than it has room for";
        return Err(open.refuse(format!("{text} ({why})")));
    }
    found.connection = Some(Connection {
        finished,
        ended: got_all,
        deaf: common.has(c::POLLRDHUP) && !got_all,
        ..match when {
            When::Stopped => Connection::default(),
            When::Running | When::Settled => numbers(open, when == When::Running)?,
        }
    });
    Ok(())
}

/// The address that a socket has asked for a connection and that has not answered: nobody else tells it.
fn asks(open: &Open<'_>) -> Result<Vec<u8>, FreezerError> {
    /// The request itself counts as a byte; more was sent with it (TCP_FASTOPEN_CONNECT).
    const REQUEST: u32 = 1;
    let unsent = socket::unsent(open.copy.as_fd()).map_err(open.call("asking for unsent data"))?;
    if unsent > REQUEST {
        return Err(open.refuse("a TCP connection that is being made with data is not carried"));
    }
    let found = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        unaccepted::addresses(kernel, sk)
    });
    let text = "a TCP connection that is being made is not carried";
    let (_, remote) = found.map_err(|why| open.refuse(format!("{text}: {why}")))?;
    if !is_local(&remote) {
        return Err(open.refuse(format!("{text} to another host")));
    }
    Ok(remote)
}

/// Whether a socket has ever had its connection: the other end has acknowledged its request then
/// (`struct tcp_info`: bytes_acked at 120, bytes_received, data_segs_out at 156).
fn was_made(info: &[u8]) -> bool {
    let counts = [info.get(120..136), info.get(156..160)];
    counts
        .iter()
        .flatten()
        .any(|bytes| bytes.iter().any(|byte| *byte != 0))
}

/// A connection that is over, or could not be made.
fn ended(open: &Open<'_>, error: i32, was_made: bool) -> Result<Connection, FreezerError> {
    let fd = open.copy.as_fd();
    // One that could not be made has its first packet there for ever, another one what was on its way when it broke.
    let unsent = socket::unsent(fd).map_err(open.call("asking for unsent data"))? != 0;
    let failed = unsent && !was_made;
    if failed && ![0, c::ECONNREFUSED].contains(&error) || !failed && error == c::ECONNREFUSED {
        let text = format!("a TCP connection that has failed is not carried (error {error})");
        return Err(open.refuse(text));
    }
    Ok(Connection {
        finished: true,
        ended: true,
        over: true,
        failed,
        ..Connection::default()
    })
}

/// How far a live connection has received, and what it has to send.
fn numbers(open: &Open<'_>, running: bool) -> Result<Connection, FreezerError> {
    let stalled = stalled(open)?;
    let found = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        let received = tcp_queue::received(kernel, sk)?;
        let unsent = tcp_queue::unsent(kernel, sk)?;
        Ok((received, unsent))
    });
    match found {
        // It changed while it was read, and will not when its process stands still.
        Err(Unreadable::Inconsistent(_)) if running => Ok(Connection::default()),
        Ok((received, unsent)) => Ok(Connection {
            urgent: received.urgent,
            next: received.next,
            first: unsent.first,
            unsent: unsent.bytes,
            ..Connection::default()
        }),
        Err(why) if stalled => Err(open.refuse(format!("{MORE_THAN_FITS} ({why})"))),
        Err(why) if common_events(open)? & c::POLLPRI != 0 => {
            Err(open.refuse(format!("urgent data of TCP is not carried ({why})")))
        }
        Err(why) => {
            log::debug!("fd {}: what it has received and sent: {why}", open.fd);
            Ok(Connection::default())
        }
    }
}

fn common_events(open: &Open<'_>) -> Result<i16, FreezerError> {
    socket::events(open.copy.as_fd()).map_err(open.call("polling"))
}

/// The connections that wait to be accepted by a listening socket. Who their clients are is found later.
fn waiting(open: &Open<'_>) -> Result<Vec<WaitingConnection>, FreezerError> {
    let count = || {
        let info = socket::option(open.copy.as_fd(), c::SOL_TCP, c::TCP_INFO, 104);
        let count = info.map_err(open.call("TCP_INFO"))?;
        Ok::<bool, FreezerError>(count.get(24..28) != Some(&[0; 4]))
    };
    if !count()? {
        return Ok(Vec::new());
    }
    let found = unaccepted::tcp(open.copy.as_fd())
        .map_err(|why| open.refuse(format!("TCP connections wait to be accepted, and {why}")))?;
    let mut waiting = Vec::new();
    for one in found {
        if !is_local(&one.remote) {
            return Err(open.refuse("TCP connections of other hosts wait to be accepted"));
        }
        if ![state::ESTABLISHED, state::CLOSE_WAIT].contains(&one.state) {
            return Err(open.refuse("a TCP connection that waits to be accepted has failed"));
        }
        waiting.push(WaitingConnection {
            client: None,
            local: one.local,
            remote: one.remote,
            sent: one.sent,
            urgent: one.received.urgent,
            next: one.received.next,
            closing: None,
        });
    }
    Ok(waiting)
}

/// Whether its peer takes nothing of what was sent: its queue is full, and its process does not read.
fn stalled(open: &Open<'_>) -> Result<bool, FreezerError> {
    let (begun, before) = (Instant::now(), unsent(open)?);
    while before != 0 && unsent(open)? == before {
        if begun.elapsed() > patience(open) {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(false)
}

/// How many bytes it has sent that were not acknowledged.
pub(super) fn unsent(open: &Open<'_>) -> Result<u32, FreezerError> {
    socket::unsent(open.copy.as_fd()).map_err(open.call("asking for unsent data"))
}

/// How long what it has sent may stand still before it is known that nothing of it moves.
pub(super) fn patience(open: &Open<'_>) -> Duration {
    let more = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        tcp_queue::waits_for_more(kernel, sk)
    });
    match more {
        Ok(false) => CALM,
        _ => ACKNOWLEDGED_WITHIN,
    }
}

/// Whether an address is one of this host's.
pub(super) fn is_local(address: &[u8]) -> bool {
    let mut any_port = address.to_vec();
    if let Some(port) = any_port.get_mut(2..4) {
        port.fill(0);
    }
    let domain = i32::from(address.first().copied().unwrap_or(0));
    socket::socket(domain, c::SOCK_DGRAM, 0)
        .is_ok_and(|fd| socket::bind(fd.as_fd(), &any_port).is_ok())
}

/// What a connection received and nobody has read.
pub(super) fn queue(
    open: &Open<'_>,
    connection: &Connection,
) -> Result<Vec<Message>, FreezerError> {
    let fd = open.copy.as_fd();
    let reading = "reading what is in its queue";
    if connection.urgent.is_some() {
        // A read ends at the urgent byte, or leaves it out.
        let bytes = kernel::look(|kernel| {
            let sk = kernel.own_sock(fd)?;
            tcp_queue::bytes(kernel, sk)
        });
        let data = bytes.map_err(|why| open.refuse(format!("{reading}: {why}")))?;
        return Ok(vec![Message {
            data,
            ..Message::default()
        }]);
    }
    let total = socket::unread(fd).map_err(open.call("asking for unread data"))? as usize;
    if total == 0 {
        return Ok(Vec::new());
    }
    Ok(vec![Message {
        data: from_start(open, total)?,
        ..Message::default()
    }])
}

/// Host and port: an IPv4 address inside an IPv6 one is the same as the IPv4 address.
pub(super) fn plain(address: &[u8]) -> Vec<u8> {
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let port = address.get(2..4).unwrap_or(&[]);
    let host = match address.first() {
        Some(2) => address.get(4..8),
        _ if address.get(8..20) == Some(&MAPPED) => address.get(20..24),
        _ => address.get(8..24),
    };
    [port, host.unwrap_or(&[])].concat()
}

/// Writes into connections which description the other end is, or which socket has not accepted it yet.
pub(super) fn link(
    holders: &HashMap<DescriptionId, (Pid, i32)>,
    descriptions: &mut [Description],
) -> Result<(), FreezerError> {
    let mut by_pair: HashMap<Ends, DescriptionId> = HashMap::new();
    for description in descriptions.iter_mut() {
        let id = description.id;
        if let Some(state) = connected(description) {
            by_pair.insert((plain(&state.local), plain(&state.remote)), id);
        }
    }
    // The host's tables may be large.
    if !descriptions.iter().any(is_inet) {
        return Ok(());
    }
    let refuse = |id: DescriptionId, why: &str| {
        let (pid, fd) = holders.get(&id).copied().unwrap_or((Pid(0), -1));
        FreezerError::refuse(pid, format!("fd {fd}"), why)
    };
    let everyone = nettcp::Table::read();
    let mut waits: HashMap<DescriptionId, DescriptionId> = HashMap::new();
    for description in descriptions.iter_mut() {
        let listener = description.id;
        for one in accepting(description)
            .into_iter()
            .flat_map(|state| &mut state.waiting)
        {
            let ends = (plain(&one.remote), plain(&one.local));
            one.client = by_pair.get(&ends).copied();
            match one.client {
                Some(client) => drop(waits.insert(client, listener)),
                None if everyone.held(&ends) => {
                    let why = "a client waits to be accepted that is no part of the tree";
                    return Err(refuse(listener, why));
                }
                None => {}
            }
        }
    }
    link_requests(&everyone, &by_pair, descriptions, &mut waits);
    close(&everyone, &by_pair, descriptions)?;
    let received = received(descriptions);
    for description in descriptions {
        let id = description.id;
        let Some(state) = connected(description) else {
            continue;
        };
        let reversed = (plain(&state.remote), plain(&state.local));
        let peer = by_pair.get(&reversed).copied();
        let waits_for = waits.get(&id).copied();
        let connection = state.connection.as_ref();
        let ended = connection.is_some_and(|c| c.ended || c.closing.is_some());
        if peer.is_none() && waits_for.is_none() && (everyone.held(&reversed) || !ended) {
            let why = "the other end of its TCP connection is no part of the tree, or was not accepted yet";
            return Err(refuse(id, why));
        }
        if let Some(connection) = &mut state.connection {
            connection.peer = peer;
            connection.waits_for = waits_for;
            leave_out_received(connection, received.get(&reversed).copied())
                .map_err(|why| refuse(id, why))?;
        }
    }
    Ok(())
}

/// Notes what ends that were closed have still to send.
fn close(
    everyone: &nettcp::Table,
    by_pair: &HashMap<Ends, DescriptionId>,
    descriptions: &mut [Description],
) -> Result<(), FreezerError> {
    // Ends of their own, how far the other one has received, and where to note it.
    let mut open: Vec<(Ends, u32, &mut Option<Vec<u8>>)> = Vec::new();
    for description in descriptions {
        let Some(state) = inet_of(description) else {
            continue;
        };
        for one in &mut state.waiting {
            let ends = (plain(&one.remote), plain(&one.local));
            open.push((ends, one.next, &mut one.closing));
        }
        let ends = (plain(&state.remote), plain(&state.local));
        if let Some(one) = state.connection.as_mut().filter(|one| !one.ended) {
            open.push((ends, one.next, &mut one.closing));
        }
    }
    open.retain(|(ends, ..)| {
        !by_pair.contains_key(ends) && everyone.closed(ends, &closing::STATES)
    });
    let wanted: HashSet<Ends> = open.iter().map(|(ends, ..)| ends.clone()).collect();
    let refuse = |why: String| FreezerError::refuse(Pid(0), "TCP connection", why);
    let text = "an end of it was closed with more to send than the other one has room for";
    let mut found = closing::find(&wanted).map_err(|why| refuse(format!("{text} ({why})")))?;
    for (ends, next, place) in open {
        if let Some(unsent) = found.remove(&ends) {
            let rest = rest_of(unsent, next);
            *place =
                Some(rest.ok_or_else(|| refuse("it was sending while it was looked at".into()))?);
        }
    }
    Ok(())
}

/// What is left of what an end has to send, when the other one has received up to `next`.
fn rest_of(unsent: Unsent, next: u32) -> Option<Vec<u8>> {
    let known = usize::try_from(next.wrapping_sub(unsent.first)).ok()?;
    unsent.bytes.get(known..).map(<[u8]>::to_vec)
}

fn inet_of(description: &mut Description) -> Option<&mut InetSocket> {
    match &mut description.kind {
        DescriptionKind::Socket(socket) => match &mut socket.state {
            SocketState::Inet(state) => Some(state),
            _ => None,
        },
        _ => None,
    }
}

/// Sequence numbers behind what was received, by the receiver's ends.
fn received(descriptions: &mut [Description]) -> HashMap<Ends, u32> {
    let mut found = HashMap::new();
    for description in descriptions {
        if let Some(state) = connected(description)
            && let Some(connection) = &state.connection
        {
            found.insert((plain(&state.local), plain(&state.remote)), connection.next);
        } else if let Some(state) = accepting(description) {
            let one = |one: &WaitingConnection| ((plain(&one.local), plain(&one.remote)), one.next);
            found.extend(state.waiting.iter().map(one));
        }
    }
    found
}

/// What the other end has received is not sent again, though it has not been acknowledged.
fn leave_out_received(
    connection: &mut Connection,
    received: Option<u32>,
) -> Result<(), &'static str> {
    if connection.unsent.is_empty() {
        return Ok(());
    }
    let Some(next) = received else {
        return Err("it has sent what nobody will receive");
    };
    let known = next.wrapping_sub(connection.first) as usize;
    // An end that was received counts as a byte.
    let known = known.min(connection.unsent.len() + 1);
    if next.wrapping_sub(connection.first) >= 1 << 31 {
        return Err("it was sending while it was looked at");
    }
    connection
        .unsent
        .drain(..known.min(connection.unsent.len()));
    connection.first = next;
    Ok(())
}

/// Connections whose listening socket waits for their first data (`TCP_DEFER_ACCEPT`): for the client they are
/// made, for the other side only asked for.
fn link_requests(
    everyone: &nettcp::Table,
    by_pair: &HashMap<Ends, DescriptionId>,
    descriptions: &mut [Description],
    waits: &mut HashMap<DescriptionId, DescriptionId>,
) {
    for ((local, remote), client) in by_pair {
        let reversed = (remote.clone(), local.clone());
        if !everyone.asked_for(&reversed) {
            continue;
        }
        let of_host = |description: &mut Description| {
            let state = accepting(description)?;
            nettcp::hears(&plain(&state.local), remote).then_some(())
        };
        let listener = descriptions
            .iter_mut()
            .find_map(|one| of_host(one).map(|()| one.id));
        if let Some(listener) = listener {
            waits.insert(*client, listener);
        }
    }
}

fn accepting(description: &mut Description) -> Option<&mut InetSocket> {
    let DescriptionKind::Socket(socket) = &mut description.kind else {
        return None;
    };
    match &mut socket.state {
        SocketState::Inet(state) if state.backlog.is_some() => Some(state),
        _ => None,
    }
}

fn is_inet(description: &Description) -> bool {
    matches!(&description.kind, DescriptionKind::Socket(socket) if matches!(socket.state, SocketState::Inet(_)))
}

fn connected(description: &mut Description) -> Option<&mut InetSocket> {
    let DescriptionKind::Socket(socket) = &mut description.kind else {
        return None;
    };
    match &mut socket.state {
        SocketState::Inet(state) if state.connection.is_some() => Some(state),
        _ => None,
    }
}

/// Options that a connection shows otherwise than they were set, or cannot be given any more.
pub(super) fn not_of_a_connection(level: i32, name: i32) -> bool {
    let names = [c::TCP_MAXSEG, c::TCP_FASTOPEN, c::TCP_FASTOPEN_CONNECT];
    level == c::SOL_TCP && names.contains(&name)
}

/// Whether the other end was closed and has still to send.
fn is_closing(state: &InetSocket) -> bool {
    let connection = state.connection.as_ref();
    connection.is_some_and(|connection| connection.closing.is_some())
}

/// Has connections end without a word when their processes are killed, so that their addresses are free
/// at once. From here on the processes must not go on.
///
/// # Errors
/// When a socket cannot be reached.
pub fn silence(manifest: &persist_mem::manifest::Manifest) -> Result<(), FreezerError> {
    for description in &manifest.descriptions {
        let DescriptionKind::Socket(socket) = &description.kind else {
            continue;
        };
        if !matches!(&socket.state, SocketState::Inet(state) if state.connection.is_some()) {
            continue;
        }
        let Some((table, fd)) = manifest.holder(description.id) else {
            continue;
        };
        let pid = table.shown_as();
        let closing = matches!(&socket.state, SocketState::Inet(state) if is_closing(state));
        let set = || {
            let pidfd = crate::proc::pidfd(pid)?;
            let copy = sys::process::pidfd_getfd(pidfd.as_fd(), fd)?;
            if closing {
                // Nobody else ends what is left of the other end (struct linger: on, no seconds).
                let linger = [1i32, 0].map(i32::to_ne_bytes).concat();
                return socket::set_option(copy.as_fd(), c::SOL_SOCKET, c::SO_LINGER, &linger);
            }
            match socket::set_int_option(copy.as_fd(), c::SOL_TCP, c::TCP_REPAIR, 1) {
                // It ended meanwhile.
                Err(Errno::EPERM) => Ok(()),
                done => done,
            }
        };
        set().map_err(FreezerError::call(pid, format!("fd {fd}: silencing it")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Duration, Open, numbers, plain};
    use crate::proc::{self, FdInfo};
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::{AsRawFd, OwnedFd};
    use sys::Pid;

    #[test]
    fn a_queue_that_changes_is_no_reason_yet() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let from = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut to, _) = listener.accept().unwrap();
        let writer = from.try_clone().unwrap();
        let writes = std::thread::spawn(move || while (&writer).write(&[7; 3000]).is_ok() {});
        let reads = std::thread::spawn(move || {
            while to.read(&mut [0; 100_000]).is_ok_and(|n| n > 0) {
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let me = Pid(nix::unistd::getpid().as_raw());
        let copy = OwnedFd::from(from);
        let fd = copy.as_raw_fd();
        let (link, info) = (proc::link(me, &format!("fd/{fd}")), FdInfo::read(me, fd));
        let (link, info) = (link.unwrap(), info.unwrap());
        let open = Open::new(me, fd, &link, &info, &copy).unwrap();
        for _ in 0..40 {
            numbers(&open, true).unwrap();
        }
        TcpStream::from(copy).shutdown(Shutdown::Both).unwrap();
        writes.join().unwrap();
        reads.join().unwrap();
    }

    #[test]
    fn mapped_addresses_are_the_same() {
        let v4 = [2, 0, 0, 7, 10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut v6 = vec![10, 0, 0, 7, 0, 0, 0, 0];
        v6.extend([0; 10]);
        v6.extend([0xff, 0xff, 10, 0, 0, 9, 0, 0, 0, 0]);
        assert_eq!(plain(&v4), [0, 7, 10, 0, 0, 9]);
        assert_eq!(plain(&v6), plain(&v4));
        v6[23] = 8;
        assert_ne!(plain(&v6), plain(&v4));
    }
}
