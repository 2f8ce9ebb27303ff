//! Sockets of virtual machines (vsock(7)): those without a connection, as whoever waits for one from the host has.

use super::Common;
use crate::FreezerError;
use crate::files::Open;
use crate::kernel::{self, Unreadable};
use nix::libc as c;
use persist_mem::manifest::VsockSocket;
use std::os::fd::AsFd;
use sys::socket;

/// States of `struct sock` (include/net/tcp_states.h).
const CLOSE: u64 = 7;
const LISTEN: u64 = 10;
/// `VMADDR_PORT_ANY`: not bound.
const NO_PORT: [u8; 4] = [0xff; 4];

pub(super) fn examine(open: &Open<'_>, common: &Common) -> Result<VsockSocket, FreezerError> {
    let fd = open.copy.as_fd();
    if common.kind == c::SOCK_DGRAM {
        return Err(open.refuse("datagrams of vsock are not carried"));
    }
    let found = kernel::look(|kernel| {
        let sk = kernel.own_sock(fd)?;
        let state = kernel.fields(sk, "sock", &["__sk_common.skc_state"])?;
        let backlog = kernel.fields(sk, "sock", &["sk_max_ack_backlog"])?;
        match (&state[..], &backlog[..]) {
            ([state], [backlog]) => Ok((*state & 0xff, *backlog as u32)),
            _ => Err(Unreadable::Inconsistent("a vsock socket")),
        }
    });
    let (state, backlog) =
        found.map_err(|why| open.refuse(format!("a vsock socket is not carried ({why})")))?;
    let over = common.has(c::POLLERR) || common.has(c::POLLHUP) || common.has(c::POLLRDHUP);
    match state {
        LISTEN if common.has(c::POLLIN) => {
            return Err(open.refuse("clients of vsock wait to be accepted, which is not carried"));
        }
        LISTEN => {}
        CLOSE if !over && socket::peer_name(fd).is_err() => {}
        _ => return Err(open.refuse("connections of vsock are not carried")),
    }
    // struct sockaddr_vm: family u16, reserved u16, port u32, context id u32, flags u8, zeros.
    let name = socket::name(fd).map_err(open.call("asking for its address"))?;
    let bound = name.get(4..8).is_some_and(|port| port != NO_PORT);
    Ok(VsockSocket {
        name: if bound { name } else { Vec::new() },
        backlog: (state == LISTEN).then_some(backlog),
    })
}
