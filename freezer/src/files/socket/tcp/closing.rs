//! Ends of TCP connections that were closed with more to send than the other end has room for. No process has such
//! an end any more, but the kernel goes on sending for it: it is found in the kernel's table of connections.

use super::buffers::{self, Unsent};
use super::state::{CLOSING, FIN_WAIT1, LAST_ACK};
use crate::files::socket::addresses::plain;
use crate::files::socket::unaccepted;
use crate::kernel::{self, Unreadable};
use crate::nettcp::{self, Ends};
use nix::libc as c;
use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use sys::socket;

/// States of an end that has sent its last byte, or will when there is room, and has not been told that it came.
pub(super) const STATES: [u8; 3] = [FIN_WAIT1, CLOSING, LAST_ACK];

/// What some of the ends have still to send, by their own ends; those that are not there are left out.
pub(super) fn find(wanted: &HashSet<Ends>) -> Result<HashMap<Ends, Unsent>, Unreadable> {
    let mut found = HashMap::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    let own = socket::socket(c::AF_INET, c::SOCK_STREAM, 0).map_err(Unreadable::NotAllowed)?;
    kernel::look(|kernel| {
        let own = kernel.own_sock(own.as_fd())?;
        for sk in kernel.connections(own, &STATES)? {
            let (local, remote) = unaccepted::addresses(kernel, sk)?;
            let ends = (plain(&local), plain(&remote));
            if wanted.contains(&ends) {
                found.insert(ends, buffers::unsent(kernel, sk)?);
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// Whether the other end of a connection is such a one, where nobody tells what it has to send.
pub(super) fn is_there(local: &[u8], remote: &[u8]) -> bool {
    let ends = (plain(remote), plain(local));
    nettcp::Table::read().closed(&ends, &STATES)
}
