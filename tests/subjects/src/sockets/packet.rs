//! Raw, ICMP and packet sockets.

use anyhow::Result;
use libc::{
    AF_INET, AF_PACKET, IPPROTO_ICMP, SO_RCVBUF, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_RAW, SOL_SOCKET,
};

use crate::kit::files::read;
use crate::kit::net::{name, option, set_option, socket};
use crate::kit::{SOON, Setting, Watch, args, loopback, not_here, raw, sys, until};

/// 127.0.0.1 without a port.
const HERE: [u8; 16] = [AF_INET as u8, 0, 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];

fn send(socket: i32, bytes: &[u8]) -> Result<()> {
    let arguments = [
        socket as u64,
        bytes.as_ptr() as u64,
        bytes.len() as u64,
        0,
        HERE.as_ptr() as u64,
        16,
    ];
    sys("sendto", raw(libc::SYS_sendto, arguments)).map(drop)
}

/// What comes within a while and ends with these bytes.
fn receive(socket: i32, end: &[u8]) -> Result<()> {
    until("it comes", SOON / 4, || {
        read(socket, 1000).is_ok_and(|bytes| bytes.ends_with(end))
    })
}

/// A protocol of its own, bound to an address.
pub(crate) fn raw_socket(_: &Setting) -> Result<Watch> {
    loopback()?;
    let socket = socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK, 253)?;
    set_option(socket, libc::IPPROTO_IP, libc::IP_TTL, 55)?;
    sys(
        "bind",
        raw(
            libc::SYS_bind,
            args([socket as u64, HERE.as_ptr() as u64, 16]),
        ),
    )?;
    let connected = crate::kit::net::socket(AF_INET, SOCK_RAW, 252)?;
    sys(
        "connect",
        raw(
            libc::SYS_connect,
            args([connected as u64, HERE.as_ptr() as u64, 16]),
        ),
    )?;
    // Local and remote address and state, without the rest.
    let table = || -> Result<Vec<String>> {
        let text = std::fs::read_to_string("/proc/self/net/raw")?;
        let ours = text.lines().filter(|line| line.contains(":00FC "));
        let words = ours.map(|line| line.split_whitespace().skip(1).take(3).collect());
        Ok(words.collect())
    };
    let observe = move || {
        Ok((
            table()?,
            name(socket, false)?,
            option(socket, libc::IPPROTO_IP, libc::IP_TTL)?,
            option(socket, SOL_SOCKET, libc::SO_PROTOCOL)?,
        ))
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || set_option(socket, libc::IPPROTO_IP, libc::IP_TTL, 56))
        .and(Watch::new(move || {
            send(socket, b"to myself")?;
            receive(socket, b"to myself")
        })))
}

/// ping(8) without privileges.
pub(crate) fn icmp(_: &Setting) -> Result<Watch> {
    loopback()?;
    // Groups that may: in a network of its own nobody may by default.
    let _ = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    let Ok(socket) = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, IPPROTO_ICMP) else {
        return not_here("no ICMP sockets");
    };
    let ping = move || {
        send(socket, b"\x08\0\0\0\0\0\0\x07payload")?;
        receive(socket, b"payload")
    };
    ping()?;
    let other = socket;
    Ok(Watch::keep(move || name(socket, false))?
        .spoiled_by(move || {
            crate::kit::files::close(other);
            Ok(())
        })
        .and(Watch::new(ping)))
}

/// Bound to the loopback interface, sees what passes there.
pub(crate) fn packet(_: &Setting) -> Result<Watch> {
    loopback()?;
    let all = i32::from((libc::ETH_P_ALL as u16).to_be());
    let socket = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, all)?;
    // struct sockaddr_ll: family, protocol, interface 1.
    let mut address = [0_u8; 20];
    address[..2].copy_from_slice(&(AF_PACKET as u16).to_ne_bytes());
    address[2..4].copy_from_slice(&(libc::ETH_P_ALL as u16).to_be_bytes());
    address[4] = 1;
    sys(
        "bind",
        raw(
            libc::SYS_bind,
            args([socket as u64, address.as_ptr() as u64, 20]),
        ),
    )?;
    set_option(socket, SOL_SOCKET, SO_RCVBUF, 70_000)?;
    let observe = move || Ok((name(socket, false)?, option(socket, SOL_SOCKET, SO_RCVBUF)?));
    Ok(Watch::keep(observe)?
        .spoiled_by(move || set_option(socket, SOL_SOCKET, SO_RCVBUF, 80_000))
        .and(Watch::new(move || {
            while read(socket, 2000).is_ok() {}
            let sender = std::net::UdpSocket::bind("127.0.0.1:0")?;
            sender.send_to(b"passing by", "127.0.0.1:9")?;
            receive(socket, b"passing by")
        })))
}
