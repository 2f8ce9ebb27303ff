//! Connections that are over, were broken, or were never made.

use super::{One, QUEUED_WITHIN, bind, is_v4_in_v6, meet, open};
use crate::ResurrectError;
use crate::files::socket::{Making, inet};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc as c;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::{Errno, socket};

/// A connection that is to be over, and its other end.
pub(super) fn over(one: &One<'_>) -> Result<(OwnedFd, OwnedFd), ResurrectError> {
    let making = &one.making;
    let doing = "making the other end of a connection that is over";
    let listener = making.new_socket()?;
    let address = on_this_host(one, doing)?;
    socket::bind(listener.as_fd(), &address).map_err(making.failed(doing))?;
    socket::listen(listener.as_fd(), 1).map_err(making.failed(doing))?;
    let address = socket::name(listener.as_fd()).map_err(making.failed(doing))?;
    meet(*one, &listener, &address)
}

/// The loopback address of its family, without a port.
fn on_this_host(one: &One<'_>, doing: &'static str) -> Result<Vec<u8>, ResurrectError> {
    let domain = one.making.socket.domain;
    let mut address = if domain == c::AF_INET {
        vec![0; 16]
    } else {
        vec![0; 28]
    };
    address[0] = u8::try_from(domain).unwrap_or(0);
    match (domain, is_v4_in_v6(&one.state.local)) {
        (c::AF_INET, _) => address[4..8].copy_from_slice(&[127, 0, 0, 1]),
        (c::AF_INET6, true) => address[18..24].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]),
        (c::AF_INET6, false) => address[23] = 1,
        _ => return Err(one.making.failed(doing)(Errno::EAFNOSUPPORT)),
    }
    Ok(address)
}

/// A connection that could not be made: nobody listens where it asks.
pub(super) fn failed(one: &One<'_>) -> Result<OwnedFd, ResurrectError> {
    let making = &one.making;
    let doing = "having a connection fail";
    let local = &one.state.local;
    let deaf = making.new_socket()?;
    let address = if local.is_empty() || inet::wildcard(local) == *local {
        on_this_host(one, doing)?
    } else {
        let mut address = local.clone();
        address[2..4].fill(0);
        address
    };
    socket::bind(deaf.as_fd(), &address).map_err(making.failed(doing))?;
    let address = socket::name(deaf.as_fd()).map_err(making.failed(doing))?;
    let fd = open(making)?;
    if local.get(2..4).is_some_and(|port| port != [0, 0]) {
        bind(making, fd.as_fd(), local)?;
    }
    // Whoever waits for the answer is told of it.
    let blocks = fcntl(&fd, FcntlArg::F_GETFL).map_err(making.failed(doing))?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(making.failed(doing))?;
    match socket::connect(fd.as_fd(), &address) {
        Err(Errno::EINPROGRESS) => told(making, fd.as_fd())?,
        other => return Err(making.failed(doing)(other.err().unwrap_or(Errno::EISCONN))),
    }
    let before = FcntlArg::F_SETFL(OFlag::from_bits_truncate(blocks));
    fcntl(&fd, before).map_err(making.failed(doing))?;
    if one.state.error == 0 {
        // To ask takes it off.
        let asked = socket::int_option(fd.as_fd(), c::SOL_SOCKET, c::SO_ERROR);
        asked.map_err(making.failed(doing))?;
    }
    Ok(fd)
}

/// Waits until an error waits on it.
fn told(making: &Making<'_>, fd: BorrowedFd<'_>) -> Result<(), ResurrectError> {
    let doing = "waiting for its error";
    let begun = Instant::now();
    while socket::events(fd).map_err(making.failed(doing))? & c::POLLERR == 0 {
        if begun.elapsed() > QUEUED_WITHIN {
            return Err(making.failed(doing)(Errno::ETIMEDOUT));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Has the other end break the connection: what it is told depends on whether that had finished.
pub(super) fn reset(
    one: &One<'_>,
    fd: BorrowedFd<'_>,
    other: OwnedFd,
) -> Result<(), ResurrectError> {
    let doing = "breaking a connection";
    if one.state.error == c::EPIPE {
        socket::shutdown(other.as_fd(), c::SHUT_WR).map_err(one.making.failed(doing))?;
    }
    // struct linger: on, no seconds.
    let linger = [1i32, 0].map(i32::to_ne_bytes).concat();
    socket::set_option(other.as_fd(), c::SOL_SOCKET, c::SO_LINGER, &linger)
        .map_err(one.making.failed(doing))?;
    drop(other);
    told(&one.making, fd)
}
