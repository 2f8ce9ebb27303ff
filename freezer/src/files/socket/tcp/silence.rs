//! Ends of connections that are to go without a word.

use crate::FreezerError;
use nix::libc as c;
use persist_mem::manifest::{DescriptionKind, InetSocket, SocketState};
use std::os::fd::AsFd;
use sys::{Errno, socket};

/// Has connections end without a word when their processes are killed, so that their addresses are free
/// at once. From here on the processes must not go on.
///
/// # Errors
/// When a socket cannot be reached.
pub fn silence(manifest: &persist_mem::manifest::Manifest) -> Result<(), FreezerError> {
    for description in &manifest.descriptions {
        let DescriptionKind::Socket(socket) = &description.kind else {
            continue;
        };
        if !matches!(&socket.state, SocketState::Inet(state) if state.connection.is_some()) {
            continue;
        }
        let Some((table, fd)) = manifest.holder(description.id) else {
            continue;
        };
        let pid = table.shown_as();
        let closing = matches!(&socket.state, SocketState::Inet(state) if is_closing(state));
        let set = || {
            let pidfd = crate::proc::pidfd(pid)?;
            let copy = sys::process::pidfd_getfd(pidfd.as_fd(), fd)?;
            if closing {
                // Nobody else ends what is left of the other end (struct linger: on, no seconds).
                let linger = [1i32, 0].map(i32::to_ne_bytes).concat();
                return socket::set_option(copy.as_fd(), c::SOL_SOCKET, c::SO_LINGER, &linger);
            }
            match socket::set_int_option(copy.as_fd(), c::SOL_TCP, c::TCP_REPAIR, 1) {
                // It ended meanwhile.
                Err(Errno::EPERM) => Ok(()),
                done => done,
            }
        };
        set().map_err(FreezerError::call(pid, format!("fd {fd}: silencing it")))?;
    }
    Ok(())
}

/// Whether the other end was closed and has still to send.
fn is_closing(state: &InetSocket) -> bool {
    let connection = state.connection.as_ref();
    connection.is_some_and(|connection| connection.closing.is_some())
}
