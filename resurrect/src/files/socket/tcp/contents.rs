//! What connections have received, have still to send, and have finished.

use super::{Gone, One, QUEUED_WITHIN, connected, ended};
use crate::ResurrectError;
use crate::files::socket::options::{self, When};
use crate::files::socket::{Making, Sockets};
use nix::libc as c;
use persist_mem::manifest::{DescriptionId, SocketState, Urgent};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use sys::Errno;
use sys::socket::{self, Outgoing};

/// How long all that was sent may take to get to the other ends. What takes longer goes on by itself.
const ARRIVED_WITHIN: Duration = Duration::from_secs(1);

impl Gone {
    /// Sends what was received and not read, then finishes what was finished.
    pub(in crate::files::socket) fn fill(
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
        arrive(all, sockets)?;
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
                return ended::reset(one, fd, other);
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

/// Waits until what was sent is where it goes: a receive that does not wait finds it, and `TCP_INFO` tells no other
/// state than before. An acknowledgement may take 40 ms by itself.
fn arrive(all: &[Making<'_>], sockets: &Sockets) -> Result<(), ResurrectError> {
    let begun = Instant::now();
    // What more comes from an end that was closed comes by itself.
    let whole = |one: &One<'_>| !one.connection.over && one.connection.closing.is_none();
    let waiting = clients_that_wait(all);
    for one in connected(all).filter(whole) {
        let fd = sockets.get(&one.making)?;
        let received: usize = one.state.queue.iter().map(|one| one.data.len()).sum();
        let has_other = one.connection.peer.is_some() || waiting.contains(&one.making.id());
        let last = one.connection.finished && one.connection.unsent.is_empty() && has_other;
        let on_its_way = || {
            // The urgent byte is not counted.
            let missing =
                one.connection.urgent.is_none() && (socket::unread(fd)? as usize) < received;
            Ok(missing || last && socket::unsent(fd)? > 0)
        };
        while on_its_way().map_err(one.making.failed("waiting for what was sent"))?
            && begun.elapsed() < ARRIVED_WITHIN
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Clients that wait to be accepted, whose data and ends the listening socket's kernel side takes.
fn clients_that_wait(all: &[Making<'_>]) -> BTreeSet<DescriptionId> {
    let listening = all.iter().filter_map(|making| match &making.socket.state {
        SocketState::Inet(state) => Some(&state.waiting),
        _ => None,
    });
    listening.flatten().filter_map(|one| one.client).collect()
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

pub(super) fn send(
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
