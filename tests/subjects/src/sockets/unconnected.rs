//! Sockets that have no peer, or none any more.

use anyhow::Result;
use libc::{
    AF_INET, AF_INET6, AF_UNIX, AF_UNSPEC, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, SHUT_RD, SHUT_RDWR,
    SO_LINGER, SO_PEERCRED, SO_REUSEADDR, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_SEQPACKET, SOCK_STREAM,
    SOL_SOCKET,
};

use super::unix_named::{accept, bind, bytes, connect};
use crate::kit::files::{close, fcntl, read, ready, write};
use crate::kit::net::{name, option, pair, set_option, set_option_bytes, socket};
use crate::kit::{Setting, Watch, args, loopback, raw, same, sys};

/// shutdown(2) says that they are not connected, and does it all the same.
pub(crate) fn shut_down(_: &Setting) -> Result<Watch> {
    loopback()?;
    let mut all = Vec::new();
    for (family, kind) in [
        (AF_INET, SOCK_DGRAM),
        (AF_INET6, SOCK_DGRAM),
        (AF_INET, SOCK_STREAM),
        (AF_UNIX, SOCK_STREAM),
        (AF_UNIX, SOCK_SEQPACKET),
        (AF_UNIX, SOCK_DGRAM),
    ] {
        for how in [SHUT_RD, SHUT_RDWR] {
            let fd = socket(family, kind | SOCK_NONBLOCK, 0)?;
            // SAFETY: takes numbers.
            let done = unsafe { libc::shutdown(fd, how) };
            anyhow::ensure!(family == AF_UNIX || done == -1, "one is connected");
            all.push(fd);
        }
    }
    let first = all[0];
    let observe = move || {
        let events = POLLIN | POLLOUT | POLLHUP | POLLRDHUP;
        let found = all.iter().map(|fd| ready(*fd, events));
        found.collect::<Result<Vec<_>>>()
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || {
        let fresh = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)?;
        // SAFETY: both are open.
        sys("dup2", unsafe { libc::dup2(fresh, first) }).map(drop)
    }))
}

/// The time of `SO_LINGER` is kept when that is switched off.
pub(crate) fn lingered(_: &Setting) -> Result<Watch> {
    let all = [
        socket(AF_INET, SOCK_STREAM, 0)?,
        socket(AF_UNIX, SOCK_DGRAM, 0)?,
    ];
    let set = |fd, on: i32, time: i32| {
        let value = [on, time].map(i32::to_ne_bytes).concat();
        set_option_bytes(fd, SOL_SOCKET, SO_LINGER, &value)
    };
    for fd in all {
        set(fd, 1, 7)?;
        set(fd, 0, 7)?;
    }
    let observe = move || {
        let found = all.iter().map(|fd| option(*fd, SOL_SOCKET, SO_LINGER));
        found.collect::<Result<Vec<_>>>()
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || set(all[0], 1, 3)))
}

/// Takes the peer from a socket.
fn disconnect(fd: i32) -> Result<()> {
    let nobody = (AF_UNSPEC as u16).to_ne_bytes();
    let mut address = [0_u8; 16];
    address[..2].copy_from_slice(&nobody);
    let arguments = args([fd as u64, address.as_ptr() as u64, 16]);
    sys("connect", raw(libc::SYS_connect, arguments)).map(drop)
}

/// Pairs of datagram sockets: one end has let go of the other, which has sent before and has something unread, has sent
/// since, or has gone since.
pub(crate) fn turned_away(setting: &Setting) -> Result<Watch> {
    let path = bytes(&setting.fresh("turned-away"));
    let kind = SOCK_DGRAM | SOCK_NONBLOCK;
    let ([kept, named], [alone, speaker], [left, gone]) = (pair(kind)?, pair(kind)?, pair(kind)?);
    write(named, b"before")?;
    for fd in [named, alone, left] {
        disconnect(fd)?;
    }
    bind(named, &path)?;
    let stranger = connect(SOCK_DGRAM, &path)?;
    write(gone, b"last")?;
    close(gone);
    let fill = move || {
        write(stranger, b"to its name")?;
        write(speaker, b"since")?;
        write(kept, b"back")
    };
    fill()?;
    let mut first_time = true;
    Ok(Watch::new(move || {
        if first_time {
            same(
                "what was sent before",
                b"before".as_slice(),
                &read(kept, 100)?,
            )?;
            same("of who has gone", b"last".as_slice(), &read(left, 100)?)?;
            first_time = false;
        }
        same("to its name", b"to its name".as_slice(), &read(named, 100)?)?;
        same("of who is left", b"back".as_slice(), &read(named, 100)?)?;
        same("sent since", b"since".as_slice(), &read(alone, 100)?)?;
        for fd in [kept, named, alone, speaker, left] {
            let who = option(fd, SOL_SOCKET, SO_PEERCRED)?;
            same(
                "who made it",
                std::process::id().to_ne_bytes().as_slice(),
                &who[..4],
            )?;
            same(
                "an error",
                &Vec::from([0; 4]),
                &option(fd, SOL_SOCKET, libc::SO_ERROR)?,
            )?;
        }
        fill()
    })
    .spoiled_by(move || read(alone, 1).map(drop)))
}

/// A socket of TCP was bound to an address before another one listened there.
pub(crate) fn beside_a_listener(_: &Setting) -> Result<Watch> {
    loopback()?;
    let share = |fd| set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    let first = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)?;
    share(first)?;
    let mut address = vec![2, 0, 0, 0, 127, 0, 0, 1];
    address.resize(16, 0);
    let bind_to = |fd: i32, address: &[u8]| {
        let arguments = args([fd as u64, address.as_ptr() as u64, 16]);
        sys("bind", raw(libc::SYS_bind, arguments)).map(drop)
    };
    bind_to(first, &address)?;
    let address = name(first, false)?;
    // The other one gets the lower number.
    let bound = fcntl(first, libc::F_DUPFD, first + 50)?;
    close(first);
    let listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)?;
    share(listener)?;
    bind_to(listener, &address)?;
    // SAFETY: takes numbers.
    sys("listen", unsafe { libc::listen(listener, 3) })?;
    let port = u16::from_be_bytes([address[2], address[3]]);
    Ok(Watch::new(move || {
        same("the addresses", &address, &name(bound, false)?)?;
        let _client = std::net::TcpStream::connect(("127.0.0.1", port))?;
        close(accept(listener)?);
        Ok(())
    })
    .spoiled_by(move || {
        close(bound);
        Ok(())
    }))
}

/// It was connected to a host of IPv6, whose address it keeps, and then to one of IPv4.
pub(crate) fn turned_to_ipv4(_: &Setting) -> Result<Watch> {
    loopback()?;
    let (mapped, own) = ([0xff, 0xff, 127, 0, 0, 1], [0, 0, 0, 0, 0, 1]);
    let fd = socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK, 0)?;
    for end in [own, mapped] {
        let mut address = [0_u8; 28];
        address[..2].copy_from_slice(&(AF_INET6 as u16).to_ne_bytes());
        address[2..4].copy_from_slice(&4711_u16.to_be_bytes());
        address[18..24].copy_from_slice(&end);
        let args = args([fd as u64, address.as_ptr() as u64, 28]);
        sys("connect", raw(libc::SYS_connect, args))?;
    }
    let observe = move || Ok((name(fd, false)?, name(fd, true)?));
    Ok(Watch::keep(observe)?.spoiled_by(move || {
        close(fd);
        Ok(())
    }))
}
