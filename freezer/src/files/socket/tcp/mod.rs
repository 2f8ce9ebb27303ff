//! TCP sockets (tcp(7)): listening ones, and connections whose both ends are on this host.
//!
//! Such a connection is made anew with the same addresses: nobody sees its sequence numbers. All that
//! counts is what was received and not read, and what is finished.

pub(super) mod buffers;
mod closing;
mod ended;
mod link;
mod live;
mod silence;
mod waiting;

use super::{Common, int, unaccepted};
use crate::FreezerError;
use crate::files::Open;
use crate::kernel;
use ended::{ended, never_asked, was_made};
pub(super) use link::link;
use live::numbers;
pub(super) use live::{patience, queue, unsent};
use nix::libc as c;
use persist_mem::manifest::{Connection, InetSocket};
pub use silence::silence;
use std::os::fd::AsFd;
use sys::socket;
use waiting::waiting;

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
    let multipath = common.protocol == c::IPPROTO_MPTCP;
    plain(open, multipath)?;
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
        Some(&state::CLOSE) if common.has(c::POLLRDHUP) && !never_asked(open, found) => {
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
    if !socket::is_local(&found.remote) {
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
        segment: int(open, c::SOL_TCP, c::TCP_MAXSEG)?.cast_unsigned(),
        ..match when {
            When::Stopped => Connection::default(),
            When::Running | When::Settled => numbers(open, when == When::Running)?,
        }
    });
    Ok(())
}

/// Refuses upper layers, and repair mode.
fn plain(open: &Open<'_>, multipath: bool) -> Result<(), FreezerError> {
    let ulp = socket::option(open.copy.as_fd(), c::SOL_TCP, c::TCP_ULP, 16).unwrap_or_default();
    // Multipath TCP is one, whatever its own socket says.
    if !ulp.is_empty() && !multipath {
        let name = String::from_utf8_lossy(&ulp)
            .trim_end_matches('\0')
            .to_owned();
        return Err(open.refuse(format!("TCP with an upper layer ({name}) is not carried")));
    }
    if int(open, c::SOL_TCP, c::TCP_REPAIR).is_ok_and(|repair| repair != 0) {
        return Err(open.refuse("a TCP socket in repair mode is not carried"));
    }
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
    if !socket::is_local(&remote) {
        return Err(open.refuse(format!("{text} to another host")));
    }
    Ok(remote)
}

/// Options that a connection shows otherwise than they were set, or cannot be given any more.
pub(super) fn not_of_a_connection(level: i32, name: i32) -> bool {
    let names = [c::TCP_MAXSEG, c::TCP_FASTOPEN, c::TCP_FASTOPEN_CONNECT];
    level == c::SOL_TCP && names.contains(&name)
}
