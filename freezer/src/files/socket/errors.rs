//! Errors that wait on a socket to be told to the next call (`SO_ERROR`, socket(7)): to ask takes them off, so
//! they are read from the kernel's memory.

use super::{Common, refused};
use crate::FreezerError;
use crate::files::Open;
use crate::kernel::{self, Unreadable};
use nix::libc as c;
use persist_mem::manifest::RefusedDatagram;
use std::os::fd::AsFd;

/// The error that waits on a socket of IP, 0 for none, and the datagrams of which it was not told that they were
/// refused.
pub(super) fn examine(
    open: &Open<'_>,
    common: &Common,
) -> Result<(i32, Vec<RefusedDatagram>), FreezerError> {
    if !common.has(c::POLLERR) {
        return Ok((0, Vec::new()));
    }
    let udp = super::inet::is_udp(common) && common.protocol == c::IPPROTO_UDP;
    let found = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        let found = kernel.fields(sk, "sock", &["sk_err", "sk_error_queue.qlen"])?;
        let [error, reports] = found[..] else {
            return Err(Unreadable::Inconsistent("a socket's error"));
        };
        let refused = match reports {
            0 => Some(Vec::new()),
            _ if udp => refused::waiting(kernel, sk)?,
            _ => None,
        };
        Ok((error as i32, refused))
    });
    let refuse =
        |why: &str| Err(open.refuse(format!("an error waits on it that was not read yet{why}")));
    let (error, refused) = match found {
        Ok((error, Some(refused))) => (error, refused),
        Ok((_, None)) => return refuse(", with reports (MSG_ERRQUEUE)"),
        Err(why) => return refuse(&format!(" ({why})")),
    };
    let carried = if common.kind == c::SOCK_STREAM {
        [c::ECONNRESET, c::EPIPE, c::ECONNREFUSED].contains(&error)
    } else {
        // To look at its queue would take the error off.
        error == c::ECONNREFUSED && super::inet::is_udp(common) && !common.has(c::POLLIN)
    };
    if carried || error == 0 {
        Ok((error, refused))
    } else {
        refuse(&format!(" (error {error})"))
    }
}
