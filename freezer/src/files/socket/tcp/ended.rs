//! Connections that are over, or could not be made.

use crate::FreezerError;
use crate::files::Open;
use crate::kernel;
use nix::libc as c;
use persist_mem::manifest::{Connection, InetSocket};
use std::os::fd::AsFd;
use sys::socket;

/// A connection that is over, or could not be made.
pub(super) fn ended(
    open: &Open<'_>,
    error: i32,
    was_made: bool,
) -> Result<Connection, FreezerError> {
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

/// Whether a socket has ever had its connection: the other end has acknowledged its request then
/// (`struct tcp_info`: bytes_acked at 120, bytes_received, data_segs_out at 156).
pub(super) fn was_made(info: &[u8]) -> bool {
    let counts = [info.get(120..136), info.get(156..160)];
    counts
        .iter()
        .flatten()
        .any(|bytes| bytes.iter().any(|byte| *byte != 0))
}

/// Whether a socket that is shut down has never asked for a connection: shutdown(2) says ENOTCONN, and does it all the
/// same.
pub(super) fn never_asked(open: &Open<'_>, found: &InetSocket) -> bool {
    /// include/uapi/linux/net.h; connect(2) and accept(2) change it.
    const SS_UNCONNECTED: u64 = 1;
    let state = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        let socket = kernel.fields(sk, "sock", &["sk_socket"])?;
        kernel.fields(socket.first().copied().unwrap_or(0), "socket", &["state"])
    });
    match state {
        Ok(state) => state.first() == Some(&SS_UNCONNECTED),
        // Who has asked has a port.
        Err(_) => found.local.is_empty() && found.error == 0,
    }
}
