//! Queues of raw and ICMP sockets: packets are received again from the loopback interface.
//!
//! Every such socket gets a copy of what comes for its protocol, also of what the rebuilding of other sockets sends,
//! and the kernel answers some. So all have a filter meanwhile that takes nothing, but for the one that a packet is
//! for.

use super::{Making, Sockets};
use crate::ResurrectError;
use nix::libc as c;
use persist_mem::manifest::{SocketMessage, SocketState};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use sys::Errno;
use sys::socket::{self, Outgoing};

/// How long a packet may take from the loopback interface.
const RECEIVED_WITHIN: Duration = Duration::from_secs(5);

/// A classic BPF program that takes nothing: `ret #0`.
const NOTHING: [u64; 1] = [0x06];
const SO_DETACH_FILTER: i32 = 27;
const IPV6_HDRINCL: i32 = 36;

/// Has a new socket take nothing, and forget what has come already.
pub(super) fn begin(making: &Making<'_>, fd: BorrowedFd<'_>) -> Result<(), ResurrectError> {
    let begin = || {
        socket::attach_filter(fd, &NOTHING)?;
        while socket::events(fd)? & c::POLLIN != 0 {
            socket::receive(fd, c::MSG_DONTWAIT | c::MSG_TRUNC, 1)?;
        }
        Ok(())
    };
    begin().map_err(making.failed("filtering what comes while it is made"))
}

/// Has it take everything; its own filter comes with the last of its options.
pub(super) fn end(making: &Making<'_>, fd: BorrowedFd<'_>) -> Result<(), ResurrectError> {
    if !making.socket.filter.is_empty() {
        return Ok(());
    }
    socket::set_int_option(fd, c::SOL_SOCKET, SO_DETACH_FILTER, 0)
        .map_err(making.failed("taking its filter away"))
}

/// Fills the queues.
pub(super) fn fill(all: &[Making<'_>], sockets: &Sockets) -> Result<(), ResurrectError> {
    let of_packets: Vec<&Making<'_>> = all.iter().filter(|making| gets_packets(making)).collect();
    let doing = "filtering what comes while queues are filled";
    for making in &of_packets {
        let fd = sockets.get(making)?;
        for message in queue(making) {
            socket::attach_filter(fd, &only(making, message)).map_err(making.failed(doing))?;
            receive_again(fd, message).map_err(making.failed("filling its queue"))?;
            socket::attach_filter(fd, &NOTHING).map_err(making.failed(doing))?;
        }
    }
    Ok(())
}

/// Whether it is a raw or an ICMP socket.
pub(super) fn gets_packets(making: &Making<'_>) -> bool {
    let socket = making.socket;
    let icmp = [c::IPPROTO_ICMP, c::IPPROTO_ICMPV6].contains(&socket.protocol);
    [c::AF_INET, c::AF_INET6].contains(&socket.domain)
        && (socket.kind == c::SOCK_RAW || socket.kind == c::SOCK_DGRAM && icmp)
}

fn queue<'a>(making: &Making<'a>) -> &'a [SocketMessage] {
    match &making.socket.state {
        SocketState::Inet(state) => &state.queue,
        _ => &[],
    }
}

/// A classic BPF program that takes everything, or of ICMP only messages of the type of this one: the answer to
/// it was received for itself.
fn only(making: &Making<'_>, message: &SocketMessage) -> Vec<u64> {
    let instruction = |code: u64, jumps: u64, number: u64| code | jumps << 16 | number << 32;
    let icmp = [c::IPPROTO_ICMP, c::IPPROTO_ICMPV6].contains(&making.socket.protocol);
    let kind = match message.data.first() {
        Some(kind) if icmp => u64::from(*kind),
        _ => return vec![instruction(0x06, 0, u64::from(u32::MAX))],
    };
    let with_header = making.socket.domain == c::AF_INET && making.socket.kind == c::SOCK_RAW;
    let mut program = if with_header {
        // ldxb 4*([0]&0xf); ldb [x]
        vec![instruction(0xb1, 0, 0), instruction(0x50, 0, 0)]
    } else {
        vec![instruction(0x30, 0, 0)]
    };
    program.extend([
        // jeq #kind, next, over it
        instruction(0x15, 1 << 8, kind),
        instruction(0x06, 0, u64::from(u32::MAX)),
        instruction(0x06, 0, 0),
    ]);
    program
}

/// Sends a packet with its header to this host.
fn receive_again(receiver: BorrowedFd<'_>, message: &SocketMessage) -> sys::Result<()> {
    let v6 = message.header.first().is_some_and(|byte| byte >> 4 == 6);
    let (domain, place) = if v6 {
        (c::AF_INET6, 24..40)
    } else {
        (c::AF_INET, 16..20)
    };
    let host = message.header.get(place).ok_or(Errno::EINVAL)?;
    let to = if v6 {
        [&[10, 0, 0, 0, 0, 0, 0, 0], host, &[0; 4]].concat()
    } else {
        [&[2, 0, 0, 0], host, &[0; 8]].concat()
    };
    let sender = socket::socket(domain, c::SOCK_RAW, c::IPPROTO_RAW)?;
    if v6 {
        socket::set_int_option(sender.as_fd(), c::SOL_IPV6, IPV6_HDRINCL, 1)?;
    }
    let data = [&message.header[..], &message.data].concat();
    let outgoing = Outgoing {
        data: &data,
        to: &to,
        ..Outgoing::default()
    };
    socket::send(sender.as_fd(), &outgoing, c::MSG_DONTWAIT)?;
    let begun = Instant::now();
    while socket::events(receiver)? & c::POLLIN == 0 {
        if begun.elapsed() > RECEIVED_WITHIN {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
