//! Errors that wait on a socket to be told to the next call (`SO_ERROR`, socket(7)): to ask takes them off, so
//! they are read from the kernel's memory.

use super::Common;
use crate::FreezerError;
use crate::files::Open;
use crate::kernel::{self, Unreadable};
use nix::libc as c;
use std::os::fd::AsFd;

/// The error that waits on a socket of IP, 0 for none.
pub(super) fn examine(open: &Open<'_>, common: &Common) -> Result<i32, FreezerError> {
    if !common.has(c::POLLERR) {
        return Ok(0);
    }
    let found = kernel::look(|kernel| {
        let sk = kernel.own_sock(open.copy.as_fd())?;
        let found = kernel.fields(sk, "sock", &["sk_err", "sk_error_queue.qlen"])?;
        match found[..] {
            [error, reports] => Ok((error as i32, reports)),
            _ => Err(Unreadable::Inconsistent("a socket's error")),
        }
    });
    let refuse =
        |why: &str| Err(open.refuse(format!("an error waits on it that was not read yet{why}")));
    let (error, reports) = match found {
        Ok(found) => found,
        Err(why) => return refuse(&format!(" ({why})")),
    };
    if reports != 0 {
        return refuse(", with reports (MSG_ERRQUEUE)");
    }
    let carried = if common.kind == c::SOCK_STREAM {
        [c::ECONNRESET, c::EPIPE, c::ECONNREFUSED].contains(&error)
    } else {
        // To look at its queue would take the error off.
        error == c::ECONNREFUSED && super::inet::is_udp(common) && !common.has(c::POLLIN)
    };
    if carried || error == 0 {
        Ok(error)
    } else {
        refuse(&format!(" (error {error})"))
    }
}
