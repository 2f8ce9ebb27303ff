//! Unix sockets (unix(7)): pairs and listeners, names, queues.

use super::names::{self, Reach};
use super::{Making, Sockets, peer, queue};
use crate::ResurrectError;
use crate::restore::Restore;
use nix::libc as c;
use persist_mem::manifest::{
    DescriptionId, PeerCredentials, SocketState, Thread, UnixLink, UnixSocket, Waiting,
};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use sys::Errno;
use sys::socket::{self, Outgoing};

/// What is needed until all unix sockets are connected.
#[derive(Default)]
pub(super) struct Unix {
    /// How named sockets are reached.
    reach: BTreeMap<DescriptionId, Reach>,
    /// Other ends of sockets whose peer is gone, with their names.
    gone: BTreeMap<DescriptionId, (OwnedFd, Option<Reach>)>,
    /// Clients that are gone and wait to be accepted: by which socket, and their place there.
    left: BTreeMap<(DescriptionId, usize), OwnedFd>,
    /// Ends of pairs that have turned to somebody else since, and the other end where that has not.
    turned: BTreeMap<DescriptionId, Option<DescriptionId>>,
}

/// A unix socket of the manifest.
#[derive(Clone, Copy)]
struct One<'a> {
    making: Making<'a>,
    state: &'a UnixSocket,
}

impl One<'_> {
    fn stream(&self) -> bool {
        self.making.socket.kind != c::SOCK_DGRAM
    }
}

fn unix<'a>(all: &'a [Making<'a>]) -> impl Iterator<Item = One<'a>> {
    all.iter().filter_map(|making| match &making.socket.state {
        SocketState::Unix(state) => Some(One {
            making: *making,
            state,
        }),
        _ => None,
    })
}

fn find<'a>(all: &'a [Making<'a>], id: DescriptionId) -> Option<One<'a>> {
    // They come in the order of their ids.
    let index = all.binary_search_by_key(&id, Making::id).ok()?;
    unix(&all[index..=index]).next()
}

/// One end of a connection while it is made.
struct End<'a> {
    name: &'a [u8],
    file: Option<&'a persist_mem::manifest::UnixFile>,
    /// Whom this end sees.
    sees: Option<&'a PeerCredentials>,
}

impl<'a> End<'a> {
    fn of(one: &One<'a>) -> End<'a> {
        End {
            name: &one.state.name,
            file: one.state.file.as_ref(),
            sees: one.state.peer_credentials.as_ref(),
        }
    }
}

impl Unix {
    /// Makes and names all of them; streams are connected, queues empty.
    pub(super) fn make(
        restore: &mut Restore<'_>,
        all: &[Making<'_>],
        sockets: &mut Sockets,
    ) -> Result<Unix, ResurrectError> {
        let mut made = Unix::default();
        // Connections first: while they are made an abstract name may be needed that is a listener's.
        made.make_pairs(restore, all, sockets)?;
        made.make_turned(restore, all, sockets)?;
        for one in unix(all) {
            made.make_connected(restore, all, one, sockets)?;
        }
        for one in unix(all) {
            let id = one.making.id();
            if let Entry::Vacant(place) = sockets.fds.entry(id) {
                place.insert(one.making.new_socket()?);
            }
            let fd = sockets.get(&one.making)?;
            if !one.state.name.is_empty() && socket::name(fd).is_ok_and(|name| name.len() <= 2) {
                let file = one.state.file.as_ref();
                let reach = names::bind(&one.making, fd, &one.state.name, file)?;
                made.reach.insert(id, reach);
            }
        }
        for one in unix(all) {
            made.listen(restore, all, one, sockets)?;
        }
        Ok(made)
    }

    /// Makes the pairs that were made by socketpair(2), as far as can be seen: all that look alike at once.
    fn make_pairs(
        &self,
        restore: &mut Restore<'_>,
        all: &[Making<'_>],
        sockets: &mut Sockets,
    ) -> Result<(), ResurrectError> {
        let mut wanted: HashMap<_, Vec<(DescriptionId, DescriptionId)>> = HashMap::new();
        for one in unix(all) {
            let id = one.making.id();
            let UnixLink::Connected(peer) = one.state.link else {
                continue;
            };
            let Some(other) = find(all, peer).filter(|_| id < peer) else {
                continue;
            };
            let named = [one, other].map(|end| !end.state.name.is_empty());
            let accepted = one.stream() && named != [false; 2];
            if other.state.link == UnixLink::Connected(id) && !accepted && named != [true; 2] {
                let who = one.state.peer_credentials.as_ref();
                let alike = wanted.entry((who, one.making.socket.kind));
                alike.or_default().push((id, peer));
            }
        }
        for ((who, kind), pairs) in wanted {
            let made = peer::pairs(restore, who, kind, pairs.len())?;
            for ((a, b), (first, second)) in made.into_iter().zip(pairs) {
                sockets.fds.insert(first, a);
                sockets.fds.insert(second, b);
            }
        }
        Ok(())
    }

    /// Makes pairs of which one end has another peer by now (or none), while the other still has this one.
    fn make_turned(
        &mut self,
        restore: &mut Restore<'_>,
        all: &[Making<'_>],
        sockets: &mut Sockets,
    ) -> Result<(), ResurrectError> {
        for one in unix(all).filter(|one| !one.stream()) {
            let id = one.making.id();
            let UnixLink::Connected(peer) = one.state.link else {
                continue;
            };
            // One that has been bound since cannot be told from one that was connected to by its name, but by what
            // has come from it.
            let paired = |other: &One<'_>| other.state.name.is_empty() || only_by_pair(&one);
            let Some(other) = find(all, peer).filter(paired) else {
                continue;
            };
            let known = |id| sockets.fds.contains_key(&id);
            if other.state.link == UnixLink::Connected(id) || known(id) || known(peer) {
                continue;
            }
            let who = one.state.peer_credentials.as_ref();
            let (own, turned) = peer::pair(restore, who, one.making.socket.kind)?;
            sockets.fds.insert(id, own);
            sockets.fds.insert(peer, turned);
            self.turned.insert(peer, Some(id));
        }
        Ok(())
    }

    /// Makes a socket that has a peer, and the peer.
    fn make_connected(
        &mut self,
        restore: &mut Restore<'_>,
        all: &[Making<'_>],
        one: One<'_>,
        sockets: &mut Sockets,
    ) -> Result<(), ResurrectError> {
        let id = one.making.id();
        if sockets.fds.contains_key(&id) {
            return Ok(());
        }
        match &one.state.link {
            UnixLink::Connected(other) if *other != id && one.stream() => {
                let missing = || one.making.failed("looking up its peer")(Errno::ENOTCONN);
                let other = find(all, *other).ok_or_else(missing)?;
                let mutual = other.state.link == UnixLink::Connected(id);
                if mutual {
                    let ends = self.connection(restore, all, one, other)?;
                    sockets.fds.insert(id, ends.0);
                    sockets.fds.insert(other.making.id(), ends.1);
                }
            }
            UnixLink::Gone { name, .. } if one.stream() || name.is_empty() => {
                let gone = End {
                    name,
                    file: None,
                    sees: None,
                };
                let ends = if one.stream() {
                    let own = End::of(&one);
                    if name.is_empty() && !own.name.is_empty() {
                        let (gone, own) = self.connect_ends(restore, one, gone, own, None)?;
                        (own, gone)
                    } else {
                        self.connect_ends(restore, one, own, gone, Some(id))?
                    }
                } else {
                    let who = one.state.peer_credentials.as_ref();
                    peer::pair(restore, who, one.making.socket.kind)?
                };
                sockets.fds.insert(id, ends.0);
                self.gone.insert(id, (ends.1, None));
            }
            // It was made in a pair and has turned away from the other end, which has gone.
            _ if !one.stream() && (only_by_pair(&one) || one.state.peer_credentials.is_some()) => {
                let who = one.state.peer_credentials.as_ref();
                let (own, gone) = peer::pair(restore, who, one.making.socket.kind)?;
                sockets.fds.insert(id, own);
                self.gone.insert(id, (gone, None));
                self.turned.insert(id, None);
            }
            _ => {}
        }
        Ok(())
    }

    /// A connection between two sockets of the manifest, in the order of the arguments.
    fn connection(
        &mut self,
        restore: &mut Restore<'_>,
        all: &[Making<'_>],
        one: One<'_>,
        other: One<'_>,
    ) -> Result<(OwnedFd, OwnedFd), ResurrectError> {
        // Whoever was accepted has the name of whoever listened.
        let listened = |name: &[u8]| {
            unix(all)
                .any(|l| matches!(l.state.link, UnixLink::Listening { .. }) && l.state.name == name)
        };
        let (a, b) = (&one.state.name, &other.state.name);
        let one_accepted = !a.is_empty() && (b.is_empty() || (listened(a) && !listened(b)));
        if one_accepted {
            let client = other.making.id();
            let (client, server) =
                self.connect_ends(restore, one, End::of(&other), End::of(&one), Some(client))?;
            Ok((server, client))
        } else {
            let client = one.making.id();
            self.connect_ends(restore, one, End::of(&one), End::of(&other), Some(client))
        }
    }

    /// Makes both ends of a connection: a pair when the server has no name, else through a listener of
    /// its name. `client_id` is the client's, when it is part of the manifest.
    fn connect_ends(
        &mut self,
        restore: &mut Restore<'_>,
        one: One<'_>,
        client: End<'_>,
        server: End<'_>,
        client_id: Option<DescriptionId>,
    ) -> Result<(OwnedFd, OwnedFd), ResurrectError> {
        let kind = one.making.socket.kind;
        if server.name.is_empty() {
            return peer::pair(restore, client.sees.or(server.sees), kind);
        }
        let new = || {
            socket::socket(c::AF_UNIX, kind, 0).map_err(one.making.failed("making a connection"))
        };
        let listener = new()?;
        let reach = names::bind(&one.making, listener.as_fd(), server.name, None)?;
        peer::listen(restore, client.sees, listener.as_fd(), 1)?;
        let socket = new()?;
        if !client.name.is_empty() {
            let own = names::bind(&one.making, socket.as_fd(), client.name, client.file)?;
            if let Some(id) = client_id {
                self.reach.insert(id, own);
            }
        }
        peer::connect(restore, server.sees, socket.as_fd(), &reach)?;
        let accepted =
            socket::accept(listener.as_fd()).map_err(one.making.failed("accepting it"))?;
        Ok((socket, accepted))
    }

    /// Makes a listener of it, with the clients that wait.
    fn listen(
        &mut self,
        restore: &mut Restore<'_>,
        all: &[Making<'_>],
        one: One<'_>,
        sockets: &Sockets,
    ) -> Result<(), ResurrectError> {
        let UnixLink::Listening { backlog, waiting } = &one.state.link else {
            return Ok(());
        };
        let who = one.state.peer_credentials.as_ref();
        let server = sockets.get(&one.making)?;
        // More may wait than it would take now: it has asked for less since.
        let enough = u32::try_from(waiting.len())
            .unwrap_or(u32::MAX)
            .max(*backlog);
        let mut listens = (who, enough);
        peer::listen(restore, who, server, enough)?;
        for (place, client) in waiting.iter().enumerate() {
            // A client sees who was listening when it came: others may be since.
            let client_of = client.client.and_then(|id| find(all, id));
            let seen = client_of.and_then(|client| client.state.peer_credentials.as_ref());
            let wanted = seen.or(listens.0);
            if wanted != listens.0 {
                listens.0 = wanted;
                peer::listen(restore, wanted, server, enough)?;
            }
            self.wait(restore, all, one, (place, client), sockets)?;
        }
        if listens != (who, *backlog) {
            peer::listen(restore, who, server, *backlog)?;
        }
        Ok(())
    }

    /// Connects a client that waits, or one that has gone since. What it has sent comes later: sockets may be in flight
    /// in it.
    fn wait(
        &mut self,
        restore: &mut Restore<'_>,
        all: &[Making<'_>],
        listener: One<'_>,
        (place, waiting): (usize, &Waiting),
        sockets: &Sockets,
    ) -> Result<(), ResurrectError> {
        let making = &listener.making;
        let missing = || making.failed("looking up a client")(Errno::ENOTCONN);
        let reach = self.reach.get(&making.id()).ok_or_else(missing)?;
        let (client, held) = match waiting.client {
            Some(id) => {
                let client = find(all, id).ok_or_else(missing)?;
                (sockets.get(&client.making)?, holder(restore, id))
            }
            None => {
                let gone = making.new_socket()?;
                self.left.insert((making.id(), place), gone);
                let gone = self.left.get(&(making.id(), place)).ok_or_else(missing)?;
                (gone.as_fd(), None)
            }
        };
        let who = waiting.credentials.clone().or(held);
        let server = sockets.get(making)?;
        super::options::pass(making, server, waiting.passes)
            .map_err(making.failed("setting what its clients take over"))?;
        peer::connect(restore, who.as_ref(), client, reach)?;
        super::options::enlarge(client);
        Ok(())
    }

    /// Sends what clients had sent that wait to be accepted; those that are gone go.
    fn speak(
        &mut self,
        restore: &mut Restore<'_>,
        all: &[Making<'_>],
        listener: One<'_>,
        sockets: &Sockets,
    ) -> Result<(), ResurrectError> {
        let UnixLink::Listening { waiting, .. } = &listener.state.link else {
            return Ok(());
        };
        let making = &listener.making;
        let missing = || making.failed("looking up a client")(Errno::ENOTCONN);
        for (place, one) in waiting.iter().enumerate() {
            let gone = self.left.remove(&(making.id(), place));
            let client = match (one.client, &gone) {
                (Some(id), _) => sockets.get(&find(all, id).ok_or_else(missing)?.making)?,
                (None, Some(gone)) => gone.as_fd(),
                (None, None) => return Err(missing()),
            };
            for message in one.sent.as_ref().ok_or_else(missing)? {
                queue::send_unix(restore, making, sockets, client, message, &[])?;
            }
        }
        Ok(())
    }

    /// Sends what was in the queues.
    pub(super) fn fill(
        &mut self,
        restore: &mut Restore<'_>,
        all: &[Making<'_>],
        sockets: &Sockets,
    ) -> Result<(), ResurrectError> {
        for (fd, _) in self.gone.values() {
            super::options::enlarge(fd);
        }
        for one in unix(all) {
            self.speak(restore, all, one, sockets)?;
        }
        // To turn away takes what was not read, and ends that have turned away can send no more.
        let from_turned = |made: &Unix, one: &One<'_>| {
            let id = Some(one.making.id());
            matches!(one.state.link, UnixLink::Connected(peer) if made.turned.get(&peer) == Some(&id))
        };
        for one in unix(all).filter(|one| from_turned(self, one)) {
            self.fill_one(restore, all, one, sockets)?;
        }
        self.turn(all, sockets)?;
        for one in unix(all).filter(|one| !from_turned(self, one)) {
            self.fill_one(restore, all, one, sockets)?;
        }
        Ok(())
    }

    /// Sends what was in one's queue.
    fn fill_one(
        &self,
        restore: &mut Restore<'_>,
        all: &[Making<'_>],
        one: One<'_>,
        sockets: &Sockets,
    ) -> Result<(), ResurrectError> {
        let paired = self.paired(all, one, sockets);
        for message in &one.state.queue {
            if let Some(peer) = paired {
                queue::send_unix(restore, &one.making, sockets, peer.as_fd(), message, &[])?;
                queue::consume(&one.making, sockets.get(&one.making)?, message)?;
            } else {
                self.send_to(restore, all, one, sockets, message)?;
            }
        }
        Ok(())
    }

    /// The other end that all of what it has got came from, as far as it is one of a pair or connection.
    fn paired<'b>(
        &'b self,
        all: &[Making<'_>],
        one: One<'_>,
        sockets: &'b Sockets,
    ) -> Option<&'b OwnedFd> {
        let id = one.making.id();
        let has_it = |other: &One<'_>| other.state.link == UnixLink::Connected(id);
        match &one.state.link {
            UnixLink::Connected(other) => find(all, *other)
                .filter(|other| {
                    one.stream() || other.state.name.is_empty() || one.state.name.is_empty()
                })
                .filter(|other| {
                    has_it(other) || self.turned.get(&other.making.id()) == Some(&Some(id))
                })
                .and_then(|other| sockets.fds.get(&other.making.id())),
            // It has turned away itself.
            UnixLink::None if !one.stream() && one.state.name.is_empty() => unix(all)
                .find(has_it)
                .and_then(|other| sockets.fds.get(&other.making.id()))
                .or_else(|| self.gone.get(&id).map(|(fd, _)| fd)),
            // Who has a name may have been sent to by anybody.
            _ if self.turned.contains_key(&id) && !one.state.name.is_empty() => None,
            _ => self.gone.get(&id).map(|(fd, _)| fd),
        }
    }

    /// Sends a datagram to a socket that many may send to, from the socket that sent it or one of the
    /// same name.
    fn send_to(
        &self,
        restore: &mut Restore<'_>,
        all: &[Making<'_>],
        one: One<'_>,
        sockets: &Sockets,
        message: &persist_mem::manifest::SocketMessage,
    ) -> Result<(), ResurrectError> {
        let making = &one.making;
        let missing = || making.failed("looking up its name")(Errno::EDESTADDRREQ);
        let reach = self.reach.get(&making.id()).ok_or_else(missing)?;
        let name = source_name(&message.source);
        let sender = unix(all)
            .filter(|s| !s.stream() && s.state.name == name)
            .find(|s| !name.is_empty() || s.state.link == UnixLink::Connected(making.id()));
        let stranger;
        let mut _reach = None;
        let fd = match sender.and_then(|sender| sockets.fds.get(&sender.making.id())) {
            Some(fd) => fd,
            None => {
                stranger = socket::socket(c::AF_UNIX, c::SOCK_DGRAM, 0)
                    .map_err(making.failed("making a sender"))?;
                if !name.is_empty() {
                    _reach = Some(names::bind(making, stranger.as_fd(), name, None)?);
                }
                super::options::enlarge(&stranger);
                &stranger
            }
        };
        let (dir, _) = reach.address();
        let mut send = || {
            let mut sent = Ok(());
            let doing = making.failed("filling its queue");
            debug_assert!(dir.is_none() || dir.is_some_and(|dir| dir.is_absolute()));
            reach
                .with(|address| {
                    sent = queue::send_unix(restore, making, sockets, fd.as_fd(), message, address);
                    Ok(())
                })
                .map_err(doing)?;
            sent
        };
        match send() {
            Err(ResurrectError::Description {
                errno: Errno::EAGAIN,
                ..
            }) if sender.is_some_and(|sender| are_peers(one, sender)) => {
                // When the queue has been longer than others may make it, nobody else has sent behind that.
                self.connect_datagram(one, sockets)?;
                send()
            }
            sent => sent,
        }
    }

    /// Connects datagram sockets, lets go of peers that are gone, shuts down what was shut down.
    pub(super) fn connect(
        &mut self,
        restore: &mut Restore<'_>,
        all: &[Making<'_>],
        sockets: &mut Sockets,
    ) -> Result<(), ResurrectError> {
        for one in datagrams_in_order(all) {
            self.connect_datagram(one, sockets)?;
        }
        for one in unix(all) {
            let fd = sockets.get(&one.making)?;
            match &one.state.link {
                UnixLink::Gone { name, .. } if !one.stream() && !name.is_empty() => {
                    let making = &one.making;
                    let gone = making.new_socket()?;
                    let reach = names::bind(making, gone.as_fd(), name, None)?;
                    reach
                        .with(|address| socket::connect(fd, address))
                        .map_err(making.failed("connecting it"))?;
                }
                UnixLink::Gone { reset: true, .. } => {
                    let unread = Outgoing {
                        data: b"?",
                        ..Outgoing::default()
                    };
                    socket::send(fd, &unread, c::MSG_DONTWAIT)
                        .map_err(one.making.failed("leaving data unread"))?;
                }
                UnixLink::External { name } => {
                    let who = holder(restore, one.making.id());
                    let reach = Reach::Direct(name.clone());
                    peer::connect(restore, who.as_ref(), fd, &reach)?;
                }
                _ => {}
            }
        }
        self.gone.clear();
        for one in unix(all) {
            let how = match one.state.shutdown {
                1 => c::SHUT_RD,
                2 => c::SHUT_WR,
                3 => c::SHUT_RDWR,
                _ => continue,
            };
            if !matches!(one.state.link, UnixLink::Gone { .. }) || !one.stream() {
                socket::shutdown(sockets.get(&one.making)?, how)
                    .map_err(one.making.failed("shutting it down"))?;
            }
        }
        Ok(())
    }

    /// Has ends of pairs turn away from the other end: what that had not read would be lost, and it has been sent.
    fn turn(&self, all: &[Making<'_>], sockets: &Sockets) -> Result<(), ResurrectError> {
        let nobody = (c::AF_UNSPEC as u16).to_ne_bytes();
        for one in self.turned.keys().filter_map(|id| find(all, *id)) {
            socket::connect(sockets.get(&one.making)?, &nobody)
                .map_err(one.making.failed("turning it away"))?;
        }
        Ok(())
    }

    fn connect_datagram(&self, one: One<'_>, sockets: &Sockets) -> Result<(), ResurrectError> {
        let UnixLink::Connected(other) = &one.state.link else {
            return Ok(());
        };
        let fd = sockets.get(&one.making)?;
        match self.reach.get(other) {
            Some(reach) if socket::peer_name(fd).is_err() => reach
                .with(|address| socket::connect(fd, address))
                .map_err(one.making.failed("connecting it")),
            _ => Ok(()),
        }
    }

    /// Puts the files of names where they belong.
    pub(super) fn place(&self, all: &[Making<'_>]) -> Result<(), ResurrectError> {
        for one in unix(all) {
            if let Some(file) = &one.state.file
                && let Some(reach) = self.reach.get(&one.making.id())
            {
                names::settle(reach, file).map_err(|e| {
                    let why = format!("the socket cannot be put there: {e}");
                    ResurrectError::changed(String::from_utf8_lossy(&file.path), why)
                        .about(one.making.subject())
                })?;
            }
        }
        Ok(())
    }
}

/// Whether nobody could have sent what it has got but the other end of the pair that it was made in.
fn only_by_pair(one: &One<'_>) -> bool {
    one.state.name.is_empty() && !one.state.queue.is_empty()
}

/// Whether each is the other's peer: such send more than others may (`unix_dgram_sendmsg`, net/unix/af_unix.c).
fn are_peers(one: One<'_>, other: One<'_>) -> bool {
    let has =
        |one: One<'_>, other: One<'_>| one.state.link == UnixLink::Connected(other.making.id());
    has(one, other) && has(other, one)
}

/// Datagram sockets, those before their peers that connect to one with another peer: such a one takes no connection
/// any more (`unix_may_send`, net/unix/af_unix.c).
fn datagrams_in_order<'a>(all: &'a [Making<'a>]) -> Vec<One<'a>> {
    let mut ordered: Vec<(usize, One<'a>)> = unix(all)
        .filter(|one| !one.stream())
        .map(|one| (steps(all, one), one))
        .collect();
    ordered.sort_by_key(|(steps, _)| core::cmp::Reverse(*steps));
    ordered.into_iter().map(|(_, one)| one).collect()
}

/// How many peers lie one behind the other, until one has none or two have each other.
fn steps(all: &[Making<'_>], one: One<'_>) -> usize {
    let mut at = one;
    for steps in 0..all.len() {
        let UnixLink::Connected(peer) = at.state.link else {
            return steps;
        };
        match find(all, peer) {
            Some(next) if next.state.link != UnixLink::Connected(at.making.id()) => at = next,
            _ => return steps,
        }
    }
    0
}

/// The name in the bytes of a `struct sockaddr_un`.
fn source_name(source: &[u8]) -> &[u8] {
    let name = source.get(2..).unwrap_or(&[]);
    match name.first() {
        Some(0) | None => name,
        Some(_) => name.split(|byte| *byte == 0).next().unwrap_or(name),
    }
}

/// Who holds a description: it is taken for who connected it.
fn holder(restore: &Restore<'_>, id: DescriptionId) -> Option<PeerCredentials> {
    let (table, _) = restore.manifest.holder(id)?;
    let (_, live) = restore.lives().find(|(pid, _)| *pid == table.pid)?;
    let of_table = |thread: &&Thread| table.thread.is_none_or(|tid| tid == thread.tid);
    let credentials = &live.threads.iter().find(of_table)?.credentials;
    Some(PeerCredentials {
        pid: table.pid.0,
        uid: credentials.uid[1],
        gid: credentials.gid[1],
        groups: credentials.groups.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::source_name;

    #[test]
    fn paths_end_at_their_first_nul_and_abstract_names_do_not() {
        assert_eq!(source_name(b"\x01\0/a/b\0"), b"/a/b");
        assert_eq!(source_name(b"\x01\0\0x\0y"), b"\0x\0y");
        assert_eq!(source_name(b"\x01\0"), b"");
        assert_eq!(source_name(b""), b"");
    }
}
