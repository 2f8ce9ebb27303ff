//! Datagrams that were refused, and of which a socket of UDP was not told (`MSG_ERRQUEUE`): they are sent again to
//! where nobody is.

use super::Making;
use super::inet::REFUSED_WITHIN;
use crate::ResurrectError;
use nix::libc as c;
use persist_mem::manifest::{InetSocket, RefusedDatagram};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;
use sys::socket::{self, Outgoing};
use sys::{Errno, Result};

/// Has everything refused again that was refused, in the same order, before it is connected: a connected socket is not
/// told of what others refuse.
pub(super) fn send_again(
    making: &Making<'_>,
    state: &InetSocket,
    fd: BorrowedFd<'_>,
) -> core::result::Result<(), ResurrectError> {
    let last = state.refused.len().saturating_sub(1);
    for (number, one) in state.refused.iter().enumerate() {
        let tells = number == last && state.error != 0;
        must_be_free(making, &one.to)?;
        send(making, fd, one, tells).map_err(making.failed("having a datagram refused"))?;
    }
    Ok(())
}

/// Nobody may be there, who would get it.
fn must_be_free(making: &Making<'_>, to: &[u8]) -> core::result::Result<(), ResurrectError> {
    let domain = i32::from(to.first().copied().unwrap_or(0));
    socket::socket(domain, c::SOCK_DGRAM, 0)
        .and_then(|probe| socket::bind(probe.as_fd(), to))
        .map_err(making.failed("looking whether nobody is where a datagram of it was refused"))
}

/// Sends one. `tells` when the next call shall be told of the error: else it is taken off, which leaves the report.
fn send(making: &Making<'_>, fd: BorrowedFd<'_>, one: &RefusedDatagram, tells: bool) -> Result<()> {
    let mut data = one.data.clone();
    data.resize(data.len().max(one.len as usize), 0);
    let message = Outgoing {
        data: &data,
        to: &in_domain(making.socket.domain, &one.to),
        ..Outgoing::default()
    };
    let before = room_taken(fd)?;
    socket::send(fd, &message, c::MSG_DONTWAIT)?;
    let begun = Instant::now();
    // Reports that wait already hide from poll(2) whether this one has come.
    let come = || match tells {
        true => room_taken(fd).map(|now| now != before),
        false => socket::int_option(fd, c::SOL_SOCKET, c::SO_ERROR).map(|error| error != 0),
    };
    while !come()? {
        if begun.elapsed() > REFUSED_WITHIN {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(())
}

/// Bytes that what waits on a socket takes (`SK_MEMINFO_RMEM_ALLOC`).
fn room_taken(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    socket::option(fd, c::SOL_SOCKET, c::SO_MEMINFO, 4)
}

/// An address as a socket of a domain takes it: one of IPv4 is inside one of IPv6 there.
fn in_domain(domain: i32, address: &[u8]) -> Vec<u8> {
    let v4 = address
        .first()
        .is_some_and(|family| i32::from(*family) == c::AF_INET);
    if domain != c::AF_INET6 || !v4 {
        return address.to_vec();
    }
    let family = (c::AF_INET6 as u16).to_ne_bytes();
    let (port, host) = (address.get(2..4), address.get(4..8));
    let (port, host) = (port.unwrap_or(&[0; 2]), host.unwrap_or(&[0; 4]));
    [&family[..], port, &[0; 14], &[0xff; 2], host, &[0; 4]].concat()
}
