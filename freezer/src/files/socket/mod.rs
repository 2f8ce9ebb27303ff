//! Sockets: what all families have in common, and the families' modules.

mod addresses;
mod backlog;
mod datagrams;
mod errors;
mod hidden;
mod inet;
mod interfaces;
mod netlink;
mod netlink_answers;
mod options;
mod packet;
mod packet_rings;
mod packets;
mod pending;
mod pieces;
mod queue;
mod raw;
mod refused;
mod reuseport;
mod settle;
mod tcp;
mod unaccepted;
mod unix;
mod vsock;
mod way;

pub use backlog::{take as take_backlogs, untaken as untaken_backlogs};
pub use netlink::take as take_device_messages;
pub(crate) use packet_rings::size_of as packet_rings_of;
pub use tcp::silence as silence_connections;

use super::Open;
use super::known::Copies;
use super::unheld;
use crate::diag::{self, PacketInfo, UnixInfo};
use crate::{Externals, FreezerError};
use nix::libc as c;
use nix::sys::stat::fstat;
use persist_mem::manifest::{
    Description, DescriptionId, DescriptionKind, InetSocket, Socket, SocketMessage, SocketState,
};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use sys::{Errno, socket};

const UNLISTED: &str = "the kernel does not list it (another network namespace?)";

/// The sockets found so far, until it is known who talks to whom.
#[derive(Default)]
pub(crate) struct Sockets {
    facts: Facts,
    unix: Vec<unix::Found>,
    tcp: Vec<settle::Met>,
    holders: HashMap<DescriptionId, (sys::Pid, i32)>,
    in_flight: Vec<InFlight>,
}

/// What is asked of the kernel for all sockets at once, when the first one needs it.
#[derive(Default)]
pub(crate) struct Facts {
    /// Whether a whole host goes to another kernel, where nobody else is told of devices.
    whole_host: bool,
    /// They may change while they are looked at.
    running: bool,
    /// The processes of their tree; None for a whole host.
    inside: Option<Vec<sys::Pid>>,
    held: unheld::Held,
    unix: Option<HashMap<u64, UnixInfo>>,
    packet: Option<HashMap<u64, PacketInfo>>,
    udp_shutdown: Option<HashMap<u64, u8>>,
    /// Who is in which domains of Landlock.
    pub(crate) domains: crate::landlock::Domains,
}

impl Facts {
    /// For processes of a whole host, or for a tree, which stand still.
    pub(crate) fn new(whole_host: bool) -> Facts {
        Facts {
            whole_host,
            ..Facts::default()
        }
    }

    /// For processes that run: those of a tree, or of a whole host.
    pub(crate) fn of_running(inside: Option<&[sys::Pid]>) -> Facts {
        Facts {
            running: true,
            inside: inside.map(<[_]>::to_vec),
            ..Facts::new(inside.is_none())
        }
    }

    /// The processes of their tree; None for a whole host.
    pub(crate) fn inside(&self) -> Option<&[sys::Pid]> {
        self.inside.as_deref()
    }

    /// As [`Facts::unix`], asked for now.
    fn unix_now(&mut self, open: &Open<'_>, inode: u64) -> Result<UnixInfo, FreezerError> {
        self.unix = None;
        self.unix(open, inode)
    }

    fn unix(&mut self, open: &Open<'_>, inode: u64) -> Result<UnixInfo, FreezerError> {
        if let Some(found) = self.unix.as_ref().and_then(|all| all.get(&inode)) {
            return Ok(found.clone());
        }
        // Processes that run make sockets after the list was read.
        let now = diag::unix().map_err(|errno| missing(open, "unix_diag", errno))?;
        let found = self.unix.insert(now).get(&inode).cloned();
        found.ok_or_else(|| open.refuse(UNLISTED))
    }

    /// None of one that is neither bound nor connected: such are not listed.
    fn udp_shutdown(&mut self, open: &Open<'_>, inode: u64) -> Result<Option<u8>, FreezerError> {
        let all = match &mut self.udp_shutdown {
            Some(all) => all,
            none => {
                let asked = diag::udp_shutdown();
                none.insert(asked.map_err(|errno| missing(open, "udp_diag", errno))?)
            }
        };
        Ok(all.get(&inode).copied())
    }

    fn packet(&mut self, open: &Open<'_>, inode: u64) -> Result<PacketInfo, FreezerError> {
        if let Some(found) = self.packet.as_ref().and_then(|all| all.get(&inode)) {
            return Ok(found.clone());
        }
        let now = diag::packet().map_err(|errno| missing(open, "af_packet_diag", errno))?;
        let found = self.packet.insert(now).get(&inode).cloned();
        found.ok_or_else(|| open.refuse(UNLISTED))
    }
}

fn missing(open: &Open<'_>, module: &str, errno: Errno) -> FreezerError {
    open.refuse(format!(
        "the kernel does not tell about it ({errno}); is the module {module} missing?"
    ))
}

/// Descriptors that are in flight in a message.
pub(crate) struct InFlight {
    /// The socket whose queue they are in.
    pub(crate) socket: DescriptionId,
    /// Which of the clients that wait to be accepted by it has sent them.
    client: Option<usize>,
    /// Which message.
    message: usize,
    /// What is known of them.
    pub(crate) what: Flying,
    /// The holder of the socket, for messages: `process, fd`.
    pub(crate) holder: (sys::Pid, i32),
}

/// What is known of descriptors in flight.
pub(crate) enum Flying {
    /// Copies of them.
    Copies(Vec<OwnedFd>),
    /// Where the kernel has what they are open on.
    Files(Vec<u64>),
}

impl Flying {
    fn is_empty(&self) -> bool {
        match self {
            Flying::Copies(copies) => copies.is_empty(),
            Flying::Files(files) => files.is_empty(),
        }
    }
}

/// What every socket has.
struct Common {
    domain: i32,
    kind: i32,
    protocol: i32,
    inode: u64,
    /// poll(2)'s answer.
    events: i16,
}

impl Common {
    fn has(&self, event: i16) -> bool {
        self.events & event != 0
    }
}

/// Looks at a socket without changing it or reading from it, and refuses what is not carried.
///
/// The queue and, for unix sockets, the peer are left out.
pub(crate) fn examine(open: &Open<'_>, facts: &mut Facts) -> Result<Socket, FreezerError> {
    let common = common(open)?;
    let found = fstat(open.copy).map_err(open.call("fstat"))?;
    let state = match common.domain {
        c::AF_UNIX => SocketState::Unix(unix::examine(open, &common, facts)?),
        c::AF_INET | c::AF_INET6 => SocketState::Inet(inet::examine(open, &common, facts)?),
        c::AF_NETLINK => SocketState::Netlink(netlink::examine(open, &common, facts)?),
        c::AF_PACKET => SocketState::Packet(packet::examine(open, &common, facts)?),
        c::AF_VSOCK => SocketState::Vsock(vsock::examine(open, &common)?),
        other => {
            let why = family_obstacle(other).unwrap_or_default();
            return Err(open.refuse(why));
        }
    };
    let filter = socket::filter(open.copy.as_fd()).map_err(|errno| match errno {
        Errno::EACCES => open.refuse("a program other than a classic BPF filter is attached to it"),
        errno => open.call("reading its filter")(errno),
    })?;
    let mut options = options::read(open, common.domain, common.kind, common.protocol)?;
    let connects = |state: &InetSocket| state.connection.is_some() || !state.asks.is_empty();
    if matches!(&state, SocketState::Inet(state) if connects(state)) {
        options.retain(|option| !tcp::not_of_a_connection(option.level, option.name));
    }
    let hidden = hidden::examine(open, &common)?;
    if matches!(&state, SocketState::Inet(state) if state.connection.is_some())
        && hidden.iter().any(hidden::is_signature)
    {
        return Err(open.refuse("connections with signatures (TCP_MD5SIG) are not carried"));
    }
    options.extend(hidden);
    let socket = Socket {
        domain: common.domain,
        kind: common.kind,
        protocol: common.protocol,
        owner: (found.st_uid, found.st_gid),
        mode: found.st_mode & 0o7777,
        options,
        filter,
        filter_locked: int(open, c::SOL_SOCKET, c::SO_LOCK_FILTER)? != 0,
        state,
    };
    if facts.whole_host {
        interfaces::check(open, &socket)?;
    }
    Ok(socket)
}

/// Why sockets of an address family are not carried.
pub(crate) fn family_obstacle(family: i32) -> Option<String> {
    match family {
        c::AF_UNIX | c::AF_INET | c::AF_INET6 | c::AF_NETLINK | c::AF_PACKET | c::AF_VSOCK => None,
        other => Some(format!("sockets of address family {other} are not carried")),
    }
}

fn common(open: &Open<'_>) -> Result<Common, FreezerError> {
    Ok(Common {
        domain: int(open, c::SOL_SOCKET, c::SO_DOMAIN)?,
        kind: int(open, c::SOL_SOCKET, c::SO_TYPE)?,
        protocol: int(open, c::SOL_SOCKET, c::SO_PROTOCOL)?,
        inode: fstat(open.copy).map_err(open.call("fstat"))?.st_ino,
        events: socket::events(open.copy.as_fd()).map_err(open.call("polling"))?,
    })
}

fn int(open: &Open<'_>, level: i32, name: i32) -> Result<i32, FreezerError> {
    socket::int_option(open.copy.as_fd(), level, name)
        .map_err(open.call(&format!("reading option {level}:{name}")))
}

impl Sockets {
    /// For processes of a whole host, or for a tree.
    pub(super) fn new(whole_host: bool) -> Sockets {
        Sockets {
            facts: Facts::new(whole_host),
            ..Sockets::default()
        }
    }

    /// Describes a socket of a stopped process, what is in its queue included.
    pub(super) fn capture(
        &mut self,
        open: &Open<'_>,
        id: DescriptionId,
    ) -> Result<DescriptionKind, FreezerError> {
        let mut socket = examine(open, &mut self.facts)?;
        self.holders.insert(id, (open.pid, open.fd));
        let common = common(open)?;
        let messages = match &socket.state {
            SocketState::Unix(_) => {
                let found =
                    unix::Found::new(open, id, &common, self.facts.unix(open, common.inode)?)?;
                let messages = unix::queue(open, &common, found.info())?;
                self.unaccepted(open, &found);
                self.unix.push(found);
                messages
            }
            SocketState::Inet(_) => {
                if common.kind == c::SOCK_STREAM {
                    self.tcp.push(settle::Met::new(open, id));
                }
                inet::queue(open, &common)?
            }
            SocketState::Netlink(_) | SocketState::Packet(_) | SocketState::Vsock(_) => Vec::new(),
        };
        let mut queue = Vec::new();
        for (index, message) in messages.into_iter().enumerate() {
            let what = match message.files.is_empty() {
                true => Flying::Copies(message.fds),
                false => Flying::Files(message.files),
            };
            if !what.is_empty() {
                self.in_flight.push(InFlight {
                    socket: id,
                    client: None,
                    message: index,
                    what,
                    holder: (open.pid, open.fd),
                });
            }
            queue.push(SocketMessage {
                data: message.data,
                source: message.source,
                fds: Vec::new(),
                credentials: message.credentials,
                destination: message.destination,
                consumed: message.consumed,
                urgent: message.urgent,
                header: message.header,
                segment: message.segment,
            });
        }
        match &mut socket.state {
            SocketState::Unix(state) => state.queue = queue,
            SocketState::Inet(state) => state.queue = queue,
            SocketState::Packet(state) => {
                state.queue = packet::queue(open, &common);
                if let Some(rings) = &mut state.rings {
                    *rings = packet_rings::capture(open, rings)?;
                }
            }
            SocketState::Netlink(_) | SocketState::Vsock(_) => {}
        }
        Ok(DescriptionKind::Socket(Box::new(socket)))
    }

    /// Notes what is in flight in what the clients of a listening socket have sent.
    fn unaccepted(&mut self, open: &Open<'_>, listener: &unix::Found) {
        let one = |(client, message, files): (usize, usize, &Vec<u64>)| InFlight {
            socket: listener.id(),
            client: Some(client),
            message,
            what: Flying::Files(files.clone()),
            holder: (open.pid, open.fd),
        };
        let all = listener.in_flight().map(one);
        self.in_flight
            .extend(all.filter(|one| !one.what.is_empty()));
    }

    /// Descriptors in flight that have not been looked at yet; those that can be copied first, which may be known by
    /// where the kernel has them then.
    pub(super) fn next_in_flight(&mut self) -> Option<InFlight> {
        let copies = |one: &InFlight| matches!(one.what, Flying::Copies(_));
        match self.in_flight.iter().rposition(copies) {
            Some(place) => Some(self.in_flight.remove(place)),
            None => self.in_flight.pop(),
        }
    }

    /// Writes into a message which descriptions are in flight in it.
    pub(super) fn settle(
        &mut self,
        sent: &InFlight,
        ids: Vec<DescriptionId>,
        descriptions: &mut [Description],
    ) {
        let message = match sent.client {
            Some(client) => {
                let mut all = self.unix.iter_mut();
                let listener = all.find(|one| one.id() == sent.socket);
                listener.and_then(|one| one.sent(client, sent.message))
            }
            None => message_of(descriptions, sent),
        };
        if let Some(message) = message {
            message.fds = ids;
        }
    }

    /// Who talks to whom, when every description is known.
    pub(super) fn link(
        self,
        descriptions: &mut [Description],
        copies: &Copies,
        externals: &Externals,
    ) -> Result<(), FreezerError> {
        settle::settle(&self.tcp, copies, descriptions)?;
        unix::link(&self.unix, descriptions, externals)?;
        tcp::link(&self.holders, descriptions)
    }
}

fn message_of<'a>(
    descriptions: &'a mut [Description],
    sent: &InFlight,
) -> Option<&'a mut SocketMessage> {
    let mut sockets = descriptions.iter_mut().filter(|d| d.id == sent.socket);
    match &mut sockets.next()?.kind {
        DescriptionKind::Socket(socket) => match &mut socket.state {
            SocketState::Unix(state) => state.queue.get_mut(sent.message),
            _ => None,
        },
        _ => None,
    }
}
