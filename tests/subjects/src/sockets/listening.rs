//! TCP sockets without a connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};
use libc::{
    AF_INET, AF_INET6, IPPROTO_IPV6, IPPROTO_TCP, IPV6_V6ONLY, SO_ACCEPTCONN, SO_KEEPALIVE,
    SO_RCVBUF, SO_REUSEADDR, SO_REUSEPORT, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET,
};

use crate::kit::files::{close, read, write};
use crate::kit::net::{name, option, set_option, socket};
use crate::kit::{SOON, Setting, Watch, args, fd, loopback, not_here, raw, same, sys, until};

/// A sockaddr of the loopback address, or of any address, with a port.
pub(super) fn address(family: i32, any: bool, port: u16) -> Vec<u8> {
    let mut bytes = vec![0; if family == AF_INET { 16 } else { 28 }];
    bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    bytes[2..4].copy_from_slice(&port.to_be_bytes());
    match (family, any) {
        (_, true) => {}
        (AF_INET, _) => bytes[4..8].copy_from_slice(&[127, 0, 0, 1]),
        _ => bytes[23] = 1,
    }
    bytes
}

pub(super) fn bind(socket: i32, to: &[u8]) -> Result<()> {
    sys(
        "bind",
        raw(
            libc::SYS_bind,
            args([socket as u64, to.as_ptr() as u64, to.len() as u64]),
        ),
    )
    .map(drop)
}

pub(super) fn listen(socket: i32, backlog: i32) -> Result<()> {
    // SAFETY: takes numbers.
    sys("listen", unsafe { libc::listen(socket, backlog) }).map(drop)
}

fn port(socket: i32) -> Result<u16> {
    let name = name(socket, false)?;
    Ok(u16::from_be_bytes([name[2], name[3]]))
}

fn accept(listener: i32) -> Result<i32> {
    let mut accepted = -1;
    until("a connection comes", SOON / 4, || {
        accepted = raw(libc::SYS_accept4, args([listener as u64])).max(-1) as i32;
        accepted >= 0
    })?;
    fd("accept", accepted)
}

/// A connection can be made and used.
fn works(listener: i32, to: SocketAddr) -> Result<()> {
    let mut client = TcpStream::connect(to).context("a new connection")?;
    let server = accept(listener)?;
    client.write_all(b"hello")?;
    let got = read(server, 100);
    let answered = write(server, b"bye");
    close(server);
    answered?;
    let mut rest = Vec::new();
    client.read_to_end(&mut rest)?;
    same(
        "both directions",
        &(b"hello".to_vec(), b"bye".to_vec()),
        &(got?, rest),
    )
}

fn serving(listener: i32, to: SocketAddr) -> Result<Watch> {
    let observe = move || {
        Ok((
            name(listener, false)?,
            option(listener, SOL_SOCKET, SO_ACCEPTCONN)?,
        ))
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || {
            let other = socket(AF_INET, SOCK_STREAM, 0)?;
            // SAFETY: both are descriptors of ours.
            fd("dup2", unsafe { libc::dup2(other, listener) }).map(drop)
        })
        .and(Watch::new(move || works(listener, to))))
}

/// Multipath TCP, as programs in Go listen by default: whoever speaks TCP only is served, too.
pub(crate) fn multipath(_: &Setting) -> Result<Watch> {
    loopback()?;
    let Ok(listener) = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, libc::IPPROTO_MPTCP) else {
        return not_here("the kernel has no multipath TCP");
    };
    set_option(listener, SOL_SOCKET, SO_REUSEADDR, 1)?;
    bind(listener, &address(AF_INET, false, 0))?;
    listen(listener, 9)?;
    let protocol = Watch::keep(move || option(listener, SOL_SOCKET, libc::SO_PROTOCOL))?;
    let to = SocketAddr::from(([127, 0, 0, 1], port(listener)?));
    Ok(serving(listener, to)?.and(protocol))
}

/// IPv4, on one address and on any.
pub(crate) fn v4(_: &Setting) -> Result<Watch> {
    loopback()?;
    let mut watches = Vec::new();
    for any in [false, true] {
        let listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)?;
        bind(listener, &address(AF_INET, any, 0))?;
        listen(listener, 9)?;
        watches.push(serving(
            listener,
            SocketAddr::from(([127, 0, 0, 1], port(listener)?)),
        )?);
    }
    watches
        .into_iter()
        .reduce(Watch::and)
        .context("no listener")
}

/// IPv6: for itself, and for both.
pub(crate) fn v6(_: &Setting) -> Result<Watch> {
    loopback()?;
    let mut watches = Vec::new();
    for only in [1, 0] {
        let Ok(listener) = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0) else {
            return not_here("no IPv6");
        };
        set_option(listener, IPPROTO_IPV6, IPV6_V6ONLY, only)?;
        bind(listener, &address(AF_INET6, true, 0))?;
        listen(listener, 9)?;
        let to = match only {
            0 => SocketAddr::from(([127, 0, 0, 1], port(listener)?)),
            _ => SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port(listener)?)),
        };
        let option = Watch::keep(move || option(listener, IPPROTO_IPV6, IPV6_V6ONLY))?;
        watches.push(serving(listener, to)?.and(option));
    }
    watches
        .into_iter()
        .reduce(Watch::and)
        .context("no listener")
}

/// Options that accepted connections inherit, two listeners of one port.
pub(crate) fn options(_: &Setting) -> Result<Watch> {
    loopback()?;
    let set = [
        (SOL_SOCKET, SO_REUSEADDR, 1),
        (SOL_SOCKET, SO_REUSEPORT, 1),
        (SOL_SOCKET, SO_KEEPALIVE, 1),
        (SOL_SOCKET, SO_RCVBUF, 60_000),
        (IPPROTO_TCP, libc::TCP_NODELAY, 1),
        (IPPROTO_TCP, libc::TCP_KEEPIDLE, 77),
        (IPPROTO_TCP, libc::TCP_KEEPINTVL, 11),
        (IPPROTO_TCP, libc::TCP_KEEPCNT, 5),
        (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 3),
        (IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 7000),
        (libc::IPPROTO_IP, libc::IP_TTL, 44),
    ];
    let mut listeners = Vec::new();
    let mut at = 0;
    for _ in 0..2 {
        let listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)?;
        for (level, name, value) in set {
            set_option(listener, level, name, value)?;
        }
        bind(listener, &address(AF_INET, false, at))?;
        listen(listener, 9)?;
        at = port(listener)?;
        listeners.push(listener);
    }
    let first = listeners[0];
    let observe = move || {
        let mut all = Vec::new();
        for listener in &listeners {
            all.push(name(*listener, false)?);
            for (level, name, _) in set {
                all.push(option(*listener, level, name)?);
            }
        }
        Ok(all)
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || set_option(first, IPPROTO_TCP, libc::TCP_KEEPIDLE, 78)))
}

/// Of listeners of one port, one may not share it any more.
pub(crate) fn shared_before(_: &Setting) -> Result<Watch> {
    loopback()?;
    let mut to = address(AF_INET, false, 0);
    let mut listeners = Vec::new();
    for _ in 0..3 {
        let listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)?;
        set_option(listener, SOL_SOCKET, SO_REUSEPORT, 1)?;
        bind(listener, &to)?;
        listen(listener, 4)?;
        to = name(listener, false)?;
        listeners.push(listener);
    }
    let (alone, last) = (listeners[1], listeners[2]);
    set_option(alone, SOL_SOCKET, SO_REUSEPORT, 0)?;
    let observe = move || {
        let seen = |listener: &i32| {
            let shares = option(*listener, SOL_SOCKET, SO_REUSEPORT)?;
            Ok((name(*listener, false)?, shares))
        };
        listeners.iter().map(seen).collect::<Result<Vec<_>>>()
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || set_option(last, SOL_SOCKET, SO_REUSEPORT, 0)))
}

/// Nothing was done with it but setting options.
pub(crate) fn unbound(_: &Setting) -> Result<Watch> {
    loopback()?;
    let fresh = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)?;
    set_option(fresh, SOL_SOCKET, SO_KEEPALIVE, 1)?;
    let observe = move || {
        let option = |level, name| option(fresh, level, name);
        Ok((
            name(fresh, false)?,
            name(fresh, true).is_ok(),
            option(SOL_SOCKET, SO_KEEPALIVE)?,
            option(SOL_SOCKET, SO_ACCEPTCONN)?,
        ))
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || bind(fresh, &address(AF_INET, false, 0))))
}

/// A port is taken, nobody listens.
pub(crate) fn bound(_: &Setting) -> Result<Watch> {
    loopback()?;
    let bound = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)?;
    bind(bound, &address(AF_INET, false, 0))?;
    let taken = address(AF_INET, false, port(bound)?);
    let observe = move || {
        Ok((
            name(bound, false)?,
            option(bound, SOL_SOCKET, SO_ACCEPTCONN)?,
        ))
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || listen(bound, 1))
        .and(Watch::new(move || {
            let other = socket(AF_INET, SOCK_STREAM, 0)?;
            let refused = bind(other, &taken).is_err();
            close(other);
            same("the port is taken", &true, &refused)
        })))
}

/// A listener with a port that a connection has which it has closed first (TIME_WAIT), and that a connection has which
/// is open; nobody allows to use it again (`SO_REUSEADDR`).
pub(crate) fn remembered(_: &Setting) -> Result<Watch> {
    loopback()?;
    let listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)?;
    bind(listener, &address(AF_INET, false, 0))?;
    listen(listener, 9)?;
    let to = SocketAddr::from(([127, 0, 0, 1], port(listener)?));
    let mut client = TcpStream::connect(to)?;
    let server = accept(listener)?;
    works(listener, to)?;
    let reusable = move || {
        let each = [listener, server].map(|fd| option(fd, SOL_SOCKET, SO_REUSEADDR));
        let [one, other] = each;
        Ok((one?, other?, name(server, true)?))
    };
    let watch = serving(listener, to)?.and(Watch::keep(reusable)?);
    Ok(watch.and(Watch::new(move || {
        client.write_all(b"still")?;
        same("an open connection", &b"still".to_vec(), &read(server, 9)?)
    })))
}
