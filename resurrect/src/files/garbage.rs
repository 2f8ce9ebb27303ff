//! Sockets that are in flight in each other and that nobody holds.
//!
//! The kernel looks for them only when a unix socket is closed (net/unix/af_unix.c, `unix_release_sock`), which the end
//! of a tree need not do: those that are in flight go on, with all that is in flight in them (terminals with their
//! numbers, locks, names).

use crate::ResurrectError;
use crate::restore::Restore;
use nix::libc;
use sys::socket;

/// Closes a socket, so that what a tree has left is gone before it is made again.
pub(crate) fn collect(_: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let pair = socket::pair(libc::AF_UNIX, libc::SOCK_STREAM, 0);
    drop(pair.map_err(ResurrectError::own("making a pair"))?);
    Ok(())
}
