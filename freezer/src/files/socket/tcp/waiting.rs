//! Connections that nobody has accepted yet.

use super::state;
use crate::FreezerError;
use crate::files::Open;
use crate::files::socket::unaccepted;
use nix::libc as c;
use persist_mem::manifest::{Broken, WaitingConnection};
use std::os::fd::AsFd;
use sys::socket;

/// The connections that wait to be accepted by a listening socket. Who their clients are is found later.
pub(super) fn waiting(open: &Open<'_>) -> Result<Vec<WaitingConnection>, FreezerError> {
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
        if !socket::is_local(&one.remote) {
            return Err(open.refuse("TCP connections of other hosts wait to be accepted"));
        }
        let broken = match (one.state, one.error) {
            (state::ESTABLISHED | state::CLOSE_WAIT, _) => None,
            (state::CLOSE, c::ECONNRESET) => Some(Broken::Reset),
            (state::CLOSE, c::EPIPE) => Some(Broken::Finished),
            _ => {
                return Err(open.refuse("a TCP connection that waits to be accepted has failed"));
            }
        };
        waiting.push(WaitingConnection {
            client: None,
            local: one.local,
            remote: one.remote,
            sent: one.sent,
            urgent: one.received.urgent,
            next: one.received.next,
            closing: None,
            broken,
        });
    }
    Ok(waiting)
}
