//! What is in a receive queue, without taking it out.

use super::pieces::{self, Piece};
use crate::FreezerError;
use crate::files::Open;
use core::cell::Cell;
use nix::libc as c;
use std::os::fd::{AsFd, OwnedFd};
use sys::socket::{self, Received};
use sys::{Errno, Result};

/// More than any datagram: a unix one is bounded by the sender's buffer.
const LARGEST: usize = 64 << 20;
/// What a stream is read by.
const CHUNK: usize = 1 << 20;

/// A message, with copies of the descriptors in flight in it.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) data: Vec<u8>,
    pub(super) source: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    /// The open files in flight in it where nobody can copy them, by where the kernel has them.
    pub(super) files: Vec<u64>,
    pub(super) credentials: Option<(i32, u32, u32)>,
    pub(super) destination: Vec<u8>,
    pub(super) consumed: u32,
    pub(super) urgent: bool,
    pub(super) header: Vec<u8>,
    pub(super) segment: u16,
}

impl Message {
    /// A piece of a stream or a packet, as the kernel's memory has it.
    pub(super) fn of(piece: Piece) -> Message {
        Message {
            data: piece.data,
            credentials: piece.credentials,
            consumed: piece.consumed,
            urgent: piece.urgent,
            files: piece.files,
            ..Message::default()
        }
    }
}

/// All bytes that wait in a socket, as many as there are said to be, wherever `MSG_PEEK` looks.
pub(super) fn from_start(
    open: &Open<'_>,
    total: usize,
) -> core::result::Result<Vec<u8>, FreezerError> {
    let reading = "reading what is in its queue";
    // TCP has such a place since Linux 6.9.
    let moved = super::int(open, c::SOL_SOCKET, c::SO_PEEK_OFF).is_ok_and(|place| place >= 0);
    let place = if moved {
        Some(Place::take(open)?)
    } else {
        None
    };
    if let Some(place) = &place {
        place.set(0).map_err(open.call(reading))?;
    }
    let flags = c::MSG_PEEK | c::MSG_DONTWAIT;
    let received = socket::receive(open.copy.as_fd(), flags, total).map_err(open.call(reading))?;
    if received.data.len() == total {
        return Ok(received.data);
    }
    let text = format!("{} of {total} bytes could be read", received.data.len());
    Err(open.refuse(text))
}

/// Moves the place where `MSG_PEEK` looks (`SO_PEEK_OFF`, socket(7)), and puts it back.
struct Place<'a> {
    open: &'a Open<'a>,
    before: i32,
    moved: Cell<bool>,
}

impl<'a> Place<'a> {
    fn take(open: &'a Open<'a>) -> core::result::Result<Place<'a>, FreezerError> {
        let before = super::int(open, c::SOL_SOCKET, c::SO_PEEK_OFF)?;
        let moved = Cell::new(false);
        Ok(Place {
            open,
            before,
            moved,
        })
    }

    fn set(&self, offset: usize) -> Result<()> {
        let offset = i32::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let fd = self.open.copy.as_fd();
        self.moved.set(true);
        socket::set_int_option(fd, c::SOL_SOCKET, c::SO_PEEK_OFF, offset)
    }

    fn peek(&self, capacity: usize) -> Result<Received> {
        let flags = c::MSG_PEEK | c::MSG_DONTWAIT;
        socket::receive(self.open.copy.as_fd(), flags, capacity)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.moved.get() {
            return;
        }
        let fd = self.open.copy.as_fd();
        // It was read from there; a kernel that has the option takes its own value.
        let _ = socket::set_int_option(fd, c::SOL_SOCKET, c::SO_PEEK_OFF, self.before);
    }
}

/// Has every message come with credentials (`SO_PASSCRED`), and puts that back.
struct Credentials<'a>(&'a Open<'a>);

impl<'a> Credentials<'a> {
    /// None when they come anyway.
    fn ask(open: &'a Open<'a>) -> core::result::Result<Option<Credentials<'a>>, FreezerError> {
        if super::int(open, c::SOL_SOCKET, c::SO_PASSCRED)? != 0 {
            return Ok(None);
        }
        socket::set_int_option(open.copy.as_fd(), c::SOL_SOCKET, c::SO_PASSCRED, 1)
            .map_err(open.call("asking for credentials"))?;
        Ok(Some(Credentials(open)))
    }
}

impl Drop for Credentials<'_> {
    fn drop(&mut self) {
        // It was 0, and was just set.
        let _ = socket::set_int_option(self.0.copy.as_fd(), c::SOL_SOCKET, c::SO_PASSCRED, 0);
    }
}

/// Datagrams or packets with their boundaries, until there are no more. `ends` when behind the last
/// one a read gives 0 bytes: an empty packet differs from that only by what comes with it. `alone` when there is one:
/// then nothing has to be moved to look at it.
pub(super) fn datagrams(
    open: &Open<'_>,
    ends: bool,
    alone: bool,
) -> core::result::Result<Vec<Message>, FreezerError> {
    let reading = "reading what is in its queue";
    let asked = if ends { Credentials::ask(open)? } else { None };
    let place = Place::take(open)?;
    let moves = !alone || place.before >= 0;
    if moves {
        place.set(0).map_err(open.call(reading))?;
    }
    let mut found = Vec::new();
    while moves || found.is_empty() {
        match place.peek(LARGEST) {
            Ok(received) if ends && received.data.is_empty() && received.credentials.is_none() => {
                return Ok(found);
            }
            Ok(mut received) if asked.is_some() => {
                received.credentials = None;
                found.push(message(open, received)?);
            }
            Ok(received) => found.push(message(open, received)?),
            Err(Errno::EAGAIN) => return Ok(found),
            Err(errno) => return Err(open.call(reading)(errno)),
        }
    }
    Ok(found)
}

/// The bytes of a stream, `total` of them, in the pieces that they were sent in: each takes some of the
/// sender's room. Where the kernel's memory does not tell, in [`runs`].
pub(super) fn stream(
    open: &Open<'_>,
    total: usize,
) -> core::result::Result<Vec<Message>, FreezerError> {
    match pieces::of(open.copy.as_fd()) {
        Ok(pieces) if pieces.iter().any(|piece| piece.urgent) => Ok(with_urgent(pieces)),
        // Linux 6.17 and later count an urgent byte that was skipped for unread.
        Ok(pieces) => in_pieces(open, pieces),
        Err(why) => {
            log::debug!("fd {}: the pieces of its stream: {why}", open.fd);
            runs(open, total)
        }
    }
}

/// What is peeked at piece by piece comes with the descriptors of each. Where there are none nothing needs a peek: if
/// this process was killed while it moves where the next one looks, that would stay so.
fn in_pieces(
    open: &Open<'_>,
    pieces: Vec<Piece>,
) -> core::result::Result<Vec<Message>, FreezerError> {
    let reading = "reading what is in its queue";
    let mut place = None;
    let mut found = Vec::new();
    let mut at = 0;
    for piece in pieces.into_iter().filter(|piece| piece.unread() != 0) {
        if piece.files.is_empty() {
            at += piece.unread();
            found.push(Message::of(piece));
            continue;
        }
        let place = match &place {
            Some(place) => place,
            None => place.insert(Place::take(open)?),
        };
        if at != 0 || place.before >= 0 {
            place.set(at).map_err(open.call(reading))?;
        }
        let received = place.peek(piece.unread()).map_err(open.call(reading))?;
        let len = received.data.len();
        if len != piece.unread() {
            let text = format!("{len} of {} bytes of a piece could be read", piece.unread());
            return Err(open.refuse(text));
        }
        // The kernel shows them only while the receiver asks for them; the message keeps them.
        found.push(Message {
            consumed: piece.consumed,
            credentials: piece.credentials,
            ..message(open, received)?
        });
        at += len;
    }
    Ok(found)
}

/// Nobody can peek past an urgent byte: all of it is what the kernel's memory says.
fn with_urgent(pieces: Vec<Piece>) -> Vec<Message> {
    pieces.into_iter().map(Message::of).collect()
}

/// The bytes of a stream in runs that were sent alike: descriptors come with the first byte of a run.
fn runs(open: &Open<'_>, total: usize) -> core::result::Result<Vec<Message>, FreezerError> {
    let reading = "reading what is in its queue";
    let place = Place::take(open)?;
    let mut found: Vec<Message> = Vec::new();
    let mut at = 0;
    // Nothing may be read once all is read: that would take a pending error off the socket.
    while at < total {
        place.set(at).map_err(open.call(reading))?;
        let received = place.peek(CHUNK).map_err(open.call(reading))?;
        let len = received.data.len();
        if len == 0 {
            let text = format!("{} of {total} bytes could be read", at);
            return Err(open.refuse(text));
        }
        if received.fds.is_empty() {
            found.push(message(open, received)?);
        } else {
            let start = run_with_descriptors(&place, at, len).map_err(open.call(reading))?;
            let mut last = message(open, received)?;
            let rest = last.data.split_off(start);
            if start > 0 {
                found.push(Message {
                    data: core::mem::replace(&mut last.data, rest),
                    credentials: last.credentials,
                    source: last.source.clone(),
                    ..Message::default()
                });
            } else {
                last.data = rest;
            }
            found.push(last);
        }
        at += len;
    }
    Ok(found)
}

/// Bytes before the run that carries descriptors, the last one of `len` bytes read at `at`: a read glues
/// it to the runs before it.
fn run_with_descriptors(place: &Place<'_>, at: usize, len: usize) -> Result<usize> {
    place.set(at)?;
    let flags = c::MSG_PEEK | c::MSG_DONTWAIT;
    match socket::receive_whole_pieces(place.open.copy.as_fd(), flags, len - 1) {
        Ok(before) => Ok(before.data.len()),
        // There is none before it.
        Err(Errno::EFAULT) => Ok(0),
        Err(errno) => Err(errno),
    }
}

fn message(open: &Open<'_>, received: Received) -> core::result::Result<Message, FreezerError> {
    if received.flags & c::MSG_CTRUNC != 0 {
        let why = "descriptors in flight in it cannot be looked at (see the limit of open files)";
        return Err(open.refuse(why));
    }
    if received.flags & c::MSG_TRUNC != 0 {
        return Err(open.refuse("a message in its queue is too large"));
    }
    let destination = received.control.iter().find_map(|(level, kind, value)| {
        let wanted = [(c::SOL_IP, c::IP_PKTINFO), (c::SOL_IPV6, c::IPV6_PKTINFO)];
        wanted.contains(&(*level, *kind)).then(|| value.clone())
    });
    Ok(Message {
        data: received.data,
        source: received.source,
        fds: received.fds,
        credentials: received.credentials.map(|c| (c.pid, c.uid, c.gid)),
        destination: destination.unwrap_or_default(),
        ..Message::default()
    })
}
