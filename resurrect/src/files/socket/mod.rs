//! Sockets: the order in which all of them are made, filled and connected.
//!
//! Unlike other descriptions they cannot be opened one by one: peers are made together, and what is in
//! flight between them are descriptions that must be open before.

mod inet;
mod names;
mod netlink;
mod options;
mod overrun;
mod packet;
mod packet_rings;
mod packets;
mod peer;
mod queue;
mod refused;
mod tcp;
mod unix;
mod vsock;

use crate::ResurrectError;
use crate::error::Subject;
use crate::restore::Restore;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};
use options::When;
use persist_mem::manifest::{
    Description, DescriptionId, DescriptionKind, InetSocket, Socket, SocketState,
};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use sys::{Errno, socket};

/// A socket that is being made.
#[derive(Clone, Copy)]
struct Making<'a> {
    description: &'a Description,
    socket: &'a Socket,
}

impl<'a> Making<'a> {
    fn of(description: &'a Description) -> Option<Making<'a>> {
        match &description.kind {
            DescriptionKind::Socket(socket) => Some(Making {
                description,
                socket,
            }),
            _ => None,
        }
    }

    fn id(&self) -> DescriptionId {
        self.description.id
    }

    /// What errors are about.
    fn subject(&self) -> Subject {
        Subject::Description(self.id())
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(Errno) -> ResurrectError + use<> {
        let what = format!("number {} ({})", self.id().0, self.text());
        let subject = Some(self.subject());
        move |errno| ResurrectError::Description {
            subject,
            what,
            doing,
            errno,
        }
    }

    fn text(&self) -> String {
        match &self.socket.state {
            SocketState::Unix(state) => {
                let name = String::from_utf8_lossy(&state.name).replace('\0', "@");
                format!("unix socket {name}")
            }
            SocketState::Inet(state) => format!(
                "internet socket of type {} bound to {:?}",
                self.socket.kind, state.local
            ),
            SocketState::Netlink(_) => "netlink socket".into(),
            SocketState::Packet(_) => "packet socket".into(),
            SocketState::Vsock(_) => "vsock socket".into(),
        }
    }

    /// socket(2).
    fn new_socket(&self) -> Result<OwnedFd, ResurrectError> {
        let socket = self.socket;
        // A packet socket without a protocol takes nothing until it is bound.
        socket::socket(socket.domain, socket.kind, socket.protocol)
            .map_err(self.failed("making it"))
    }
}

/// The sockets made so far.
#[derive(Default)]
struct Sockets {
    fds: BTreeMap<DescriptionId, OwnedFd>,
    /// Packet sockets with rings, which are not bound yet.
    unbound: BTreeMap<DescriptionId, OwnedFd>,
}

impl Sockets {
    fn get(&self, making: &Making<'_>) -> Result<BorrowedFd<'_>, ResurrectError> {
        let fd = self.fds.get(&making.id()).map(AsFd::as_fd);
        fd.ok_or_else(|| making.failed("looking it up")(Errno::EBADF))
    }
}

/// Makes every socket of the manifest. Every other description is open.
pub(super) fn open_all(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    let mut all: Vec<Making<'_>> = manifest
        .descriptions
        .iter()
        .filter_map(Making::of)
        .collect();
    all.sort_by_key(Making::id);
    if restore.is_upgrade() {
        leave_out_unknown(restore, &mut all)?;
    }
    let mut sockets = Sockets::default();
    let mut unix = unix::Unix::make(restore, &all, &mut sockets)?;
    let mut tcp = tcp::connect(&all, &mut sockets)?;
    packet::make_rings(&all, &mut sockets)?;
    let shared = inet::Shared::of(&all);
    for making in &by_place(&all) {
        if sockets.fds.contains_key(&making.id()) {
            continue;
        }
        let fd = match &making.socket.state {
            SocketState::Unix(_) => continue,
            SocketState::Inet(state) if waits_to_be_accepted(state) => continue,
            SocketState::Inet(state) => inet::make(making, state, &shared)?,
            SocketState::Netlink(state) => netlink::make(making, state)?,
            SocketState::Packet(state) => packet::make(making, state, &mut sockets)?,
            SocketState::Vsock(state) => vsock::make(making, state)?,
        };
        sockets.fds.insert(making.id(), fd);
        tcp::wait(&all, making, &mut sockets)?;
    }
    let listening: BTreeSet<DescriptionId> = all
        .iter()
        .filter(|one| listens(one))
        .map(Making::id)
        .collect();
    for (_, fd) in sockets.fds.iter().filter(|(id, _)| !listening.contains(id)) {
        options::enlarge(fd);
    }
    inet::join_all(&all, &sockets)?;
    netlink::hear_of_devices(&all, &sockets)?;
    netlink::deliver(&all, &sockets)?;
    unix.fill(restore, &all, &sockets)?;
    inet::fill(&all, &sockets)?;
    packets::fill(&all, &sockets)?;
    packet::fill(&all, &sockets);
    packet::share(&all, &sockets)?;
    tcp.fill(&all, &sockets)?;
    unix.connect(restore, &all, &mut sockets)?;
    for making in &all {
        if let SocketState::Inet(state) = &making.socket.state {
            finish_inet(restore, making, state, &mut sockets)?;
        }
        if !packets::gets_packets(making) {
            settle(making, sockets.get(making)?)?;
        }
    }
    for (making, state) in all.iter().filter_map(asks) {
        let asked = tcp::ask_again(making, state, sockets.get(making)?);
        or_told(restore, asked, "it does not ask any more")?;
    }
    // Nothing is sent any more that they could hear.
    for making in all.iter().filter(|making| packets::gets_packets(making)) {
        let fd = sockets.get(making)?;
        packets::end(making, fd)?;
        settle(making, fd)?;
    }
    unix.place(&all)?;
    restore.files.opened.append(&mut sockets.fds);
    Ok(())
}

/// Takes out sockets of protocols that this kernel has not (UDP-Lite, as of Linux 7.1), and has something stand in
/// for them.
fn leave_out_unknown(
    restore: &mut Restore<'_>,
    all: &mut Vec<Making<'_>>,
) -> Result<(), ResurrectError> {
    let mut known = BTreeMap::new();
    let mut is_known = |making: &Making<'_>| {
        let socket = making.socket;
        let which = (socket.domain, socket.kind, socket.protocol);
        *known.entry(which).or_insert_with(|| {
            let made = making.new_socket();
            if let Err(why) = &made {
                log::error!("{why}: who has it open is told that there is no such device");
            }
            made.is_ok()
        })
    };
    let (rest, unknown): (Vec<Making<'_>>, Vec<_>) =
        all.iter().copied().partition(|making| is_known(making));
    for making in unknown {
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let stand_in = super::vanished::open(restore, flags);
        let stand_in = stand_in.map_err(making.failed("standing in for it"))?;
        restore.files.opened.insert(making.id(), stand_in);
    }
    *all = rest;
    Ok(())
}

/// Connects one of IP, and shuts down what was shut down of it.
fn finish_inet(
    restore: &Restore<'_>,
    making: &Making<'_>,
    state: &InetSocket,
    sockets: &mut Sockets,
) -> Result<(), ResurrectError> {
    let connected = inet::connect(making, state, sockets);
    or_told(restore, connected, "it is not connected any more")?;
    inet::shut_down(making, state, sockets.get(making)?)?;
    inet::begin_to_send(making, state, sockets.get(making)?)?;
    match state.connection {
        Some(ref connection) => {
            tcp::set_segment(connection, sockets.get(making)?);
            tcp::settle(making, sockets.get(making)?)
        }
        None => Ok(()),
    }
}

/// Those that ask to be connected.
fn asks<'a>(making: &'a Making<'a>) -> Option<(&'a Making<'a>, &'a InetSocket)> {
    match &making.socket.state {
        SocketState::Inet(state) if !state.asks.is_empty() => Some((making, state)),
        _ => None,
    }
}

/// After the jump a way that is not there any more is no reason to lose everybody.
fn or_told(
    restore: &Restore<'_>,
    done: Result<(), ResurrectError>,
    otherwise: &str,
) -> Result<(), ResurrectError> {
    match done {
        Err(why) if restore.is_upgrade() => {
            log::error!("{why}: {otherwise}");
            Ok(())
        }
        done => done,
    }
}

/// Whether it is a listening socket of IP: nothing is put into its queue, and from Linux 7 on the size of its buffer
/// would bound the windows of what it accepts for ever (`TCP_WINDOW_CLAMP`).
fn listens(making: &Making<'_>) -> bool {
    matches!(&making.socket.state, SocketState::Inet(state) if state.backlog.is_some())
}

/// In the order in which they share a port; the others as they are. Those that listen come last: their addresses cannot
/// be bound any more.
fn by_place<'a>(all: &[Making<'a>]) -> Vec<Making<'a>> {
    let mut sorted = all.to_vec();
    sorted.sort_by_key(|making| match &making.socket.state {
        SocketState::Inet(state) => (
            state.backlog.is_some(),
            state.group.as_ref().map_or(0, |group| group.place),
        ),
        _ => (false, 0),
    });
    sorted
}

fn waits_to_be_accepted(state: &InetSocket) -> bool {
    let connection = state.connection.as_ref();
    connection.is_some_and(|connection| connection.waits_for.is_some())
}

/// What comes last: options, filter, owner.
fn settle(making: &Making<'_>, fd: BorrowedFd<'_>) -> Result<(), ResurrectError> {
    options::set(making, fd, When::Late)?;
    attach_filter(making, fd)?;
    if let SocketState::Inet(state) = &making.socket.state
        && let Some(group) = state
            .group
            .as_ref()
            .filter(|group| !group.program.is_empty())
    {
        socket::attach_port_program(fd, &group.program).map_err(
            making.failed("attaching the program that chooses among the sockets of its port"),
        )?;
    }
    if making.socket.filter_locked {
        let (level, name) = (nix::libc::SOL_SOCKET, nix::libc::SO_LOCK_FILTER);
        socket::set_int_option(fd, level, name, 1).map_err(making.failed("locking its filter"))?;
    }
    let now = fstat(fd).map_err(making.failed("fstat"))?;
    let (uid, gid) = making.socket.owner;
    if (now.st_uid, now.st_gid) != (uid, gid) {
        fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(making.failed("setting its owner"))?;
    }
    if now.st_mode & 0o7777 != making.socket.mode {
        fchmod(fd, Mode::from_bits_truncate(making.socket.mode))
            .map_err(making.failed("setting its mode"))?;
    }
    Ok(())
}

/// Attaches its filter unless it has one.
fn attach_filter(making: &Making<'_>, fd: BorrowedFd<'_>) -> Result<(), ResurrectError> {
    let filter = &making.socket.filter;
    if filter.is_empty() || socket::filter(fd).is_ok_and(|now| now == *filter) {
        return Ok(());
    }
    socket::attach_filter(fd, filter).map_err(making.failed("attaching its filter"))
}

/// The index of an interface of this kernel.
fn interface(making: &Making<'_>, name: &str) -> Result<u32, ResurrectError> {
    nix::net::if_::if_nametoindex(name).map_err(|_| {
        let why = format!("a {} is bound to it, and it is not there", making.text());
        ResurrectError::changed(format!("network interface {name}"), why).about(making.subject())
    })
}
