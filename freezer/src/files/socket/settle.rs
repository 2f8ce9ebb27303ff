//! What TCP sockets have received and sent, all at one moment. Their processes stand still, but what one has
//! sent may still be under way to another (`MSG_MORE`, Nagle, retransmissions): one socket after the other, it
//! would be found at both ends or at none.

use super::tcp::state::{CLOSE, LISTEN};
use super::tcp::{self, When};
use super::{common, unaccepted};
use crate::FreezerError;
use crate::files::Open;
use crate::files::known::Copies;
use crate::proc::FdInfo;
use nix::libc as c;
use persist_mem::manifest::{
    Description, DescriptionId, DescriptionKind, InetSocket, SocketMessage, SocketState,
};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use sys::{Pid, socket};

/// How often what they hold may change while it is read, until somebody else must be sending.
const TRIES: u32 = 10;

/// A TCP socket that was met.
pub(super) struct Met {
    id: DescriptionId,
    pid: Pid,
    fd: i32,
    link: Vec<u8>,
    info: FdInfo,
}

impl Met {
    pub(super) fn new(open: &Open<'_>, id: DescriptionId) -> Met {
        Met {
            id,
            pid: open.pid,
            fd: open.fd,
            link: open.link.to_vec(),
            info: open.info.clone(),
        }
    }

    fn open<'a>(&'a self, copies: &'a Copies) -> Result<Open<'a>, FreezerError> {
        let copy = copies.get(&self.id).ok_or_else(|| {
            FreezerError::refuse(self.pid, format!("fd {}", self.fd), "it was lost sight of")
        })?;
        Open::new(self.pid, self.fd, &self.link, &self.info, copy)
    }
}

/// Completes the descriptions of TCP sockets: connections, those that wait to be accepted, queues.
///
/// # Errors
/// When a socket holds what is not carried, or does not come to rest.
pub(super) fn settle(
    all: &[Met],
    copies: &Copies,
    descriptions: &mut [Description],
) -> Result<(), FreezerError> {
    let opened = all.iter().map(|met| met.open(copies));
    let opened: Vec<Open<'_>> = opened.collect::<Result<_, _>>()?;
    let Some(first) = opened.first() else {
        return Ok(());
    };
    let mut states: HashMap<DescriptionId, &mut InetSocket> = HashMap::new();
    for description in descriptions {
        let id = description.id;
        states.extend(inet(description).map(|state| (id, state)));
    }
    let live = |open: &&Open<'_>| {
        let info = socket::option(open.copy.as_fd(), c::SOL_TCP, c::TCP_INFO, 1);
        info.is_ok_and(|info| ![Some(&LISTEN), Some(&CLOSE)].contains(&info.first()))
    };
    let live: Vec<&Open<'_>> = opened.iter().filter(live).collect();
    for _ in 0..TRIES {
        rest(&live)?;
        let before = marks(&opened)?;
        for (met, open) in all.iter().zip(&opened) {
            if let Some(state) = states.get_mut(&met.id) {
                complete(open, state)?;
            }
        }
        if marks(&opened)? == before {
            return Ok(());
        }
    }
    Err(first.refuse("a TCP connection of these processes does not come to rest"))
}

fn inet(description: &mut Description) -> Option<&mut InetSocket> {
    match &mut description.kind {
        DescriptionKind::Socket(socket) => match &mut socket.state {
            SocketState::Inet(state) => Some(state),
            _ => None,
        },
        _ => None,
    }
}

fn complete(open: &Open<'_>, state: &mut InetSocket) -> Result<(), FreezerError> {
    state.connection = None;
    tcp::examine(open, &common(open)?, When::Settled, state)?;
    state.queue = match &state.connection {
        Some(connection) => tcp::queue(open, connection)?
            .into_iter()
            .map(|message| SocketMessage {
                data: message.data,
                ..SocketMessage::default()
            })
            .collect(),
        None => Vec::new(),
    };
    Ok(())
}

/// Waits until nothing that was sent moves any more, for all of them at once.
fn rest(all: &[&Open<'_>]) -> Result<(), FreezerError> {
    let unsent = || {
        let all = all.iter().map(|open| tcp::unsent(open));
        all.collect::<Result<Vec<_>, _>>()
    };
    let (mut before, mut since) = (unsent()?, Instant::now());
    loop {
        let moving = all.iter().zip(&before).filter(|(_, unsent)| **unsent != 0);
        let Some(patience) = moving.map(|(open, _)| tcp::patience(open)).max() else {
            return Ok(());
        };
        if since.elapsed() > patience {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
        let now = unsent()?;
        if now != before {
            (before, since) = (now, Instant::now());
        }
    }
}

/// How far a socket has received: what `struct tcp_info` tells, and the connections that wait to be accepted.
#[derive(PartialEq, Eq)]
struct Mark {
    state: Option<u8>,
    /// Of a listening socket the number that wait.
    unacknowledged: Option<[u8; 4]>,
    received: Option<[u8; 8]>,
    waiting: Vec<u32>,
}

/// include/uapi/linux/tcp.h: `tcpi_unacked` and `tcpi_bytes_received`.
const UNACKED: usize = 24;
const BYTES_RECEIVED: usize = 128;

fn marks(all: &[Open<'_>]) -> Result<Vec<Mark>, FreezerError> {
    all.iter().map(mark).collect()
}

fn mark(open: &Open<'_>) -> Result<Mark, FreezerError> {
    let fd = open.copy.as_fd();
    let size = BYTES_RECEIVED + 8;
    let info = socket::option(fd, c::SOL_TCP, c::TCP_INFO, size).map_err(open.call("TCP_INFO"))?;
    let listens = info.first() == Some(&LISTEN);
    let unacknowledged = info.get(UNACKED..).and_then(<[u8]>::first_chunk).copied();
    let waits = listens && unacknowledged != Some([0; 4]);
    let waiting = match waits.then(|| unaccepted::tcp(fd)) {
        Some(Ok(found)) => found.iter().map(|one| one.received.next).collect(),
        // What cannot be read is refused.
        Some(Err(_)) | None => Vec::new(),
    };
    Ok(Mark {
        state: info.first().copied(),
        unacknowledged: unacknowledged.filter(|_| listens),
        received: info
            .get(BYTES_RECEIVED..)
            .and_then(<[u8]>::first_chunk)
            .copied(),
        waiting,
    })
}
