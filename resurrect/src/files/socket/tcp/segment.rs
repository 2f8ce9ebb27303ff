//! The segment size that a connection has come to use (`TCP_MAXSEG`).
//!
//! It is half of the largest window that the other end has ever announced, found when a larger one comes
//! (net/ipv4/tcp_output.c, tcp_sync_mss). A new connection has seen other windows. In repair mode that largest window can
//! be set, and options of IP that are set have the size found again. A connection of IPv6 that was accepted does not
//! do so, and keeps a new one's size.

use nix::libc as c;
use persist_mem::manifest::Connection;
use std::os::fd::BorrowedFd;
use sys::socket;

const TCP_REPAIR_ON: i32 = 1;
const TCP_REPAIR_OFF_NO_WP: i32 = -1;
/// `struct tcp_repair_window`: five words.
const TCP_REPAIR_WINDOW: i32 = 29;
const WINDOW_LEN: usize = 20;
/// Words of it: the window that the other end announces, and the largest one so far.
const SND_WND: usize = 1;
const MAX_WINDOW: usize = 2;
/// Longest options of an IP header.
const OPTIONS_LEN: usize = 40;

/// Has it use the size that it had. Where that cannot be, its size is that of a new connection.
pub(in crate::files::socket) fn set(connection: &Connection, fd: BorrowedFd<'_>) {
    if connection.segment == 0 || now(fd) == Ok(connection.segment) {
        return;
    }
    match force(fd, connection.segment) {
        Ok(()) if now(fd) == Ok(connection.segment) => {}
        done => {
            let (wanted, now) = (connection.segment, now(fd));
            log::debug!("segments of a connection were {wanted} bytes, and are {now:?}: {done:?}");
        }
    }
}

fn now(fd: BorrowedFd<'_>) -> sys::Result<u32> {
    socket::int_option(fd, c::SOL_TCP, c::TCP_MAXSEG).map(i32::cast_unsigned)
}

fn force(fd: BorrowedFd<'_>, size: u32) -> sys::Result<()> {
    // Repair mode changes it.
    let reuse = socket::int_option(fd, c::SOL_SOCKET, c::SO_REUSEADDR)?;
    socket::set_int_option(fd, c::SOL_TCP, c::TCP_REPAIR, TCP_REPAIR_ON)?;
    let done = in_repair(fd, size);
    socket::set_int_option(fd, c::SOL_TCP, c::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)?;
    socket::set_int_option(fd, c::SOL_SOCKET, c::SO_REUSEADDR, reuse)?;
    done
}

fn in_repair(fd: BorrowedFd<'_>, size: u32) -> sys::Result<()> {
    let wanted = size.saturating_mul(2);
    let mut window = window(fd)?;
    let announced = window[SND_WND];
    window[SND_WND] = announced.min(wanted);
    window[MAX_WINDOW] = wanted;
    set_window(fd, window)?;
    let options = socket::option(fd, c::SOL_IP, c::IP_OPTIONS, OPTIONS_LEN);
    let found = options.and_then(|now| socket::set_option(fd, c::SOL_IP, c::IP_OPTIONS, &now));
    window[SND_WND] = announced;
    window[MAX_WINDOW] = announced.max(wanted);
    set_window(fd, window)?;
    found
}

fn window(fd: BorrowedFd<'_>) -> sys::Result<[u32; 5]> {
    let bytes = socket::option(fd, c::SOL_TCP, TCP_REPAIR_WINDOW, WINDOW_LEN)?;
    let word = |at: usize| {
        let word = bytes.get(at * 4..).and_then(|rest| rest.first_chunk::<4>());
        word.map_or(0, |word| u32::from_ne_bytes(*word))
    };
    Ok(core::array::from_fn(word))
}

fn set_window(fd: BorrowedFd<'_>, window: [u32; 5]) -> sys::Result<()> {
    let bytes = window.map(u32::to_ne_bytes);
    socket::set_option(fd, c::SOL_TCP, TCP_REPAIR_WINDOW, bytes.as_flattened())
}
