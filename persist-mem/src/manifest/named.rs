//! Which descriptions a description names: what it watches, holds, is connected to.

use super::{
    DescriptionId, DescriptionKind, InetSocket, Place, Ring, SocketMessage, SocketState, UnixLink,
    UnixSocket, Waiting,
};

impl DescriptionKind {
    /// Their ids, some of them several times.
    #[must_use]
    pub fn named(&self) -> Vec<DescriptionId> {
        let watched = |place: &Place| place.open;
        match self {
            DescriptionKind::Epoll { targets, .. } => {
                targets.iter().map(|target| target.description).collect()
            }
            DescriptionKind::Inotify { watches, .. } => {
                let places = watches.iter().map(|watch| &watch.place);
                places.filter_map(watched).collect()
            }
            DescriptionKind::Fanotify { marks, .. } => {
                let places = marks.iter().map(|mark| &mark.place);
                places.filter_map(watched).collect()
            }
            DescriptionKind::Ring(ring) => by_ring(ring),
            DescriptionKind::Socket(socket) => match &socket.state {
                SocketState::Unix(unix) => by_unix(unix),
                SocketState::Inet(inet) => by_inet(inet),
                SocketState::Netlink(_) | SocketState::Packet(_) | SocketState::Vsock(_) => {
                    Vec::new()
                }
            },
            _ => Vec::new(),
        }
    }
}

fn by_ring(ring: &Ring) -> Vec<DescriptionId> {
    let files = ring.files.iter().flatten().copied();
    let eventfd = ring.eventfd.iter().map(|(eventfd, _)| *eventfd);
    let requests = ring.requests.iter().filter_map(|request| request.file);
    files.chain(eventfd).chain(requests).collect()
}

fn by_unix(unix: &UnixSocket) -> Vec<DescriptionId> {
    let in_flight = |queue: &[SocketMessage]| -> Vec<DescriptionId> {
        let all = queue.iter().flat_map(|message| &message.fds);
        all.copied().collect()
    };
    let mut named = in_flight(&unix.queue);
    match &unix.link {
        UnixLink::Connected(other) | UnixLink::Waiting(other) => named.push(*other),
        UnixLink::Listening { waiting, .. } => {
            for Waiting { client, sent, .. } in waiting {
                named.extend(client);
                named.extend(in_flight(sent.as_deref().unwrap_or_default()));
            }
        }
        UnixLink::None | UnixLink::Gone { .. } | UnixLink::External { .. } => {}
    }
    named
}

fn by_inet(inet: &InetSocket) -> Vec<DescriptionId> {
    let connection = inet.connection.iter();
    let ends = connection.flat_map(|one| one.peer.into_iter().chain(one.waits_for));
    let clients = inet.waiting.iter().filter_map(|waiting| waiting.client);
    ends.chain(clients).collect()
}
