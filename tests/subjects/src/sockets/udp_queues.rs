//! Datagrams that nobody has read, and what is known of them.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::rc::Rc;

use anyhow::Result;
use libc::{
    AF_INET, AF_INET6, IP_BIND_ADDRESS_NO_PORT, IP_OPTIONS, IP_RECVOPTS, IP_RECVTOS, IP_RECVTTL,
    IP_TOS, IP_TTL, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_UDP, IPV6_RECVPKTINFO, SO_REUSEPORT,
    SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET, UDP_GRO, UDP_SEGMENT,
};

use crate::kit::files::{read, ready};
use crate::kit::net::{name, option, set_option, set_option_bytes, socket};
use crate::kit::{SOON, Setting, Watch, args, loopback, not_here, raw, same, sys, until};

const IP_RECVORIGDSTADDR: i32 = 20;

/// `struct sockaddr_in`.
fn v4(host: [u8; 4], port: u16) -> Vec<u8> {
    let port = port.to_be_bytes();
    [&[2, 0], &port[..], &host, &[0; 8]].concat()
}

fn bind(fd: i32, address: &[u8]) -> Result<()> {
    let arguments = args([fd as u64, address.as_ptr() as u64, address.len() as u64]);
    sys("bind", raw(libc::SYS_bind, arguments)).map(drop)
}

fn connect(fd: i32, address: &[u8]) -> Result<()> {
    let arguments = args([fd as u64, address.as_ptr() as u64, address.len() as u64]);
    sys("connect", raw(libc::SYS_connect, arguments)).map(drop)
}

fn comes(fd: i32) -> Result<()> {
    until("a datagram", SOON, || {
        ready(fd, libc::POLLIN).is_ok_and(|events| events != 0)
    })
}

/// A message and what came with it, one after the other, by level and kind.
fn receive(fd: i32) -> Result<(Vec<u8>, Vec<u8>)> {
    #[repr(C, align(8))]
    struct Control([u8; 256]);
    let (mut bytes, mut control) = ([0_u8; 100], Control([0; 256]));
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: zeros are a valid message; what it points to is alive.
    let (done, used) = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = 256;
        let done = libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT);
        (done, message.msg_controllen)
    };
    let len = sys("recvmsg", done)?;
    Ok((
        bytes[..len as usize].to_vec(),
        control.0[..used.min(256)].to_vec(),
    ))
}

/// Three sockets of one port: each keeps what came for it.
pub(crate) fn of_a_group(_: &Setting) -> Result<Watch> {
    loopback()?;
    let mut members = Vec::new();
    let mut address = v4([127, 0, 0, 1], 0);
    for _ in 0..3 {
        let one = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)?;
        set_option(one, SOL_SOCKET, SO_REUSEPORT, 1)?;
        bind(one, &address)?;
        address = name(one, false)?;
        members.push(one);
    }
    let to = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes([address[2], address[3]])));
    let bind_one = |_| UdpSocket::bind("127.0.0.1:0");
    let senders = (0..24).map(bind_one).collect::<Result<Vec<_>, _>>()?;
    let one = members[0];
    let all = move || -> Vec<Vec<u8>> {
        let of = |fd: &i32| std::iter::from_fn(|| read(*fd, 9).ok()).flatten().collect();
        members.iter().map(of).collect()
    };
    // Whom the kernel chooses depends on the sender's port: the second time it is the same one.
    let fill = {
        let all = all.clone();
        move || {
            let send = || {
                (0_u8..)
                    .zip(&senders)
                    .try_for_each(|(number, sender)| sender.send_to(&[number], to).map(drop))
            };
            send()?;
            // They come a little later where the kernel has much to do.
            let mut expected = vec![Vec::new(); 3];
            until("every datagram has come", SOON, || {
                let new = expected.iter_mut().zip(all());
                new.for_each(|(before, new)| before.extend(new));
                expected.iter().map(Vec::len).sum::<usize>() == senders.len()
            })?;
            send()?;
            anyhow::Ok(expected)
        }
    };
    let mut expected = fill()?;
    Ok(Watch::new(move || {
        same("what each has", &expected, &all())?;
        expected = fill()?;
        Ok(())
    })
    .spoiled_by(move || {
        while read(one, 9).is_ok() {}
        let other = UdpSocket::bind("127.0.0.1:0")?;
        other.set_nonblocking(true)?;
        // SAFETY: both are open.
        sys("dup2", unsafe { libc::dup2(other.as_raw_fd(), one) }).map(drop)
    }))
}

/// A socket of both protocols that asks for the destination, with datagrams of IPv4 and of IPv6.
pub(crate) fn of_both_protocols(_: &Setting) -> Result<Watch> {
    loopback()?;
    let Ok(server) = socket(AF_INET6, SOCK_DGRAM | SOCK_NONBLOCK, 0) else {
        return not_here("no IPv6");
    };
    set_option(server, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)?;
    let mut any = vec![10, 0];
    any.resize(28, 0);
    bind(server, &any)?;
    let own = name(server, false)?;
    let port = u16::from_be_bytes([own[2], own[3]]);
    let senders = (
        UdpSocket::bind("127.0.0.3:0")?,
        UdpSocket::bind("[::1]:0").ok(),
    );
    let fill = move || {
        let (four, six) = &senders;
        four.send_to(b"four", SocketAddr::from(([127, 0, 0, 9], port)))?;
        comes(server)?;
        if let Some(six) = six {
            six.send_to(b"six", format!("[::1]:{port}"))?;
        }
        anyhow::Ok(())
    };
    let take = move || {
        let mut found = vec![receive(server)?];
        comes(server).ok();
        found.extend(receive(server).ok());
        anyhow::Ok(found)
    };
    fill()?;
    let before = take()?;
    fill()?;
    Ok(Watch::new(move || {
        same("what came, and where to", &before, &take()?)?;
        fill()
    })
    .spoiled_by(move || read(server, 9).map(drop)))
}

/// A socket of both protocols has sent to one of IPv4, which sees an address of IPv4.
pub(crate) fn from_both_protocols(_: &Setting) -> Result<Watch> {
    loopback()?;
    let server = UdpSocket::bind("127.0.0.1:0")?;
    server.set_nonblocking(true)?;
    let Ok(client) = UdpSocket::bind("[::]:0") else {
        return not_here("no IPv6");
    };
    let to = format!("[::ffff:127.0.0.1]:{}", server.local_addr()?.port());
    let from = SocketAddr::from(([127, 0, 0, 1], client.local_addr()?.port()));
    let fd = server.as_raw_fd();
    let fill = move || {
        client.send_to(b"four", &to)?;
        comes(fd)
    };
    fill()?;
    Ok(Watch::new(move || {
        let mut bytes = [0; 9];
        let (len, sender) = server.recv_from(&mut bytes)?;
        same("what came", b"four".as_slice(), &bytes[..len])?;
        same("who sent it", &from, &sender)?;
        fill()
    })
    .spoiled_by(move || read(fd, 9).map(drop)))
}

/// One of any host has a datagram, and another one has bound the host that it was sent to since.
pub(crate) fn nearer_since(_: &Setting) -> Result<Watch> {
    loopback()?;
    let open = |address: &[u8]| {
        let one = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)?;
        set_option(one, SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        bind(one, address)?;
        anyhow::Ok(one)
    };
    let any = open(&v4([0; 4], 0))?;
    let own = name(any, false)?;
    let port = u16::from_be_bytes([own[2], own[3]]);
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    let fill = move || {
        sender.send_to(b"any", SocketAddr::from(([127, 0, 0, 1], port)))?;
        comes(any)?;
        let near = open(&v4([127, 0, 0, 1], port))?;
        sender.send_to(b"near", SocketAddr::from(([127, 0, 0, 1], port)))?;
        comes(near)?;
        anyhow::Ok(near)
    };
    let mut near = fill()?;
    Ok(Watch::new(move || {
        same("of any host", b"any".as_slice(), &read(any, 9)?)?;
        same("of the nearer one", b"near".as_slice(), &read(near, 9)?)?;
        same(
            "more",
            &(true, true),
            &(read(any, 9).is_err(), read(near, 9).is_err()),
        )?;
        crate::kit::files::close(near);
        near = fill()?;
        Ok(())
    })
    .spoiled_by(move || read(any, 9).map(drop)))
}

/// Hops, type of service and destination as senders chose them who are gone.
pub(crate) fn as_they_were_sent(_: &Setting) -> Result<Watch> {
    loopback()?;
    let server = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)?;
    for name in [IP_RECVTTL, IP_RECVTOS, IP_RECVORIGDSTADDR] {
        set_option(server, IPPROTO_IP, name, 1)?;
    }
    bind(server, &v4([0; 4], 0))?;
    let own = name(server, false)?;
    let port = u16::from_be_bytes([own[2], own[3]]);
    let fill = move || {
        for (host, ttl, tos) in [(7, 33, 0x28), (8, 255, 0), (9, 1, 0x10)] {
            let sender = UdpSocket::bind("127.0.0.5:0")?;
            let fd = sender.as_raw_fd();
            set_option(fd, IPPROTO_IP, IP_TTL, ttl)?;
            set_option(fd, IPPROTO_IP, IP_TOS, tos)?;
            sender.send_to(&[host], SocketAddr::from(([127, 0, 0, host], port)))?;
        }
        anyhow::Ok(())
    };
    let take = move || {
        let all = [receive(server)?, receive(server)?, receive(server)?];
        anyhow::Ok(all)
    };
    fill()?;
    let before = take()?;
    fill()?;
    Ok(Watch::new(move || {
        same("what came, and how", &before, &take()?)?;
        fill()
    })
    .spoiled_by(move || read(server, 9).map(drop)))
}

/// Options of IP that a sender has by now, and had not when it sent the first, and had others then.
pub(crate) fn with_options(_: &Setting) -> Result<Watch> {
    loopback()?;
    let server = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)?;
    set_option(server, IPPROTO_IP, IP_RECVOPTS, 1)?;
    bind(server, &v4([127, 0, 0, 1], 0))?;
    let to = name(server, false)?;
    let to = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes([to[2], to[3]])));
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    let fill = move || {
        for options in [&b""[..], &[1, 1, 1, 0], &[1; 8]] {
            set_option_bytes(sender.as_raw_fd(), IPPROTO_IP, IP_OPTIONS, options)?;
            sender.send_to(b"x", to)?;
        }
        comes(server)
    };
    let take = move || {
        let all = [receive(server)?, receive(server)?, receive(server)?];
        anyhow::Ok(all)
    };
    fill()?;
    let before = take()?;
    same("options of the first", &0, &before[0].1.len())?;
    fill()?;
    Ok(Watch::new(move || {
        same("what came, and how", &before, &take()?)?;
        fill()
    })
    .spoiled_by(move || read(server, 9).map(drop)))
}

/// Datagrams that were sent together and come together (`UDP_SEGMENT`, `UDP_GRO`), between others.
pub(crate) fn together(_: &Setting) -> Result<Watch> {
    loopback()?;
    let server = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)?;
    bind(server, &v4([127, 0, 0, 1], 0))?;
    let to = name(server, false)?;
    let to = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes([to[2], to[3]])));
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    let set = |fd, option, value| set_option(fd, IPPROTO_UDP, option, value);
    if set(server, UDP_GRO, 1).is_err() || set(sender.as_raw_fd(), UDP_SEGMENT, 0).is_err() {
        return not_here("no datagrams that come together");
    }
    let fill = move || {
        for (size, len) in [(0, 30), (20, 90), (10, 10), (40, 80), (0, 5)] {
            set(sender.as_raw_fd(), UDP_SEGMENT, size)?;
            sender.send_to(&[len; 100][..len.into()], to)?;
        }
        comes(server)
    };
    let take = move || (0..5).map(|_| receive(server)).collect::<Result<Vec<_>>>();
    fill()?;
    let before = take()?;
    let lens: Vec<usize> = before.iter().map(|(data, _)| data.len()).collect();
    same("what comes together", &vec![30, 90, 10, 80, 5], &lens)?;
    fill()?;
    Ok(Watch::new(move || {
        same("what came, and how", &before, &take()?)?;
        fill()
    })
    .spoiled_by(move || read(server, 9).map(drop)))
}

/// Empty datagrams between others, some of which were peeked at before.
pub(crate) fn empty(_: &Setting) -> Result<Watch> {
    loopback()?;
    let server = Rc::new(UdpSocket::bind("127.0.0.1:0")?);
    server.set_nonblocking(true)?;
    let to = server.local_addr()?;
    let senders = [
        UdpSocket::bind("127.0.0.1:0")?,
        UdpSocket::bind("127.0.0.2:0")?,
    ];
    let from = [senders[0].local_addr()?, senders[1].local_addr()?];
    let receiver = server.clone();
    let fill = move || {
        senders[0].send_to(b"", to)?;
        senders[1].send_to(b"one", to)?;
        senders[1].send_to(b"", to)?;
        senders[0].send_to(b"", to)?;
        comes(receiver.as_raw_fd())?;
        // The kernel notes it of empty ones.
        receiver.peek_from(&mut [0; 9])?;
        anyhow::Ok(())
    };
    fill()?;
    let other = server.clone();
    Ok(Watch::new(move || {
        let mut bytes = [0; 9];
        let expected = [(0, 0), (3, 1), (0, 1), (0, 0)];
        for (len, sender) in expected {
            let found = server.recv_from(&mut bytes)?;
            same("length and sender", &(len, from[sender]), &found)?;
        }
        same("another", &true, &server.recv_from(&mut bytes).is_err())?;
        fill()
    })
    .spoiled_by(move || Ok(other.recv(&mut [0; 9]).map(drop)?)))
}

/// Bound to a host, connected and disconnected since: it has the host and no port.
pub(crate) fn without_port(_: &Setting) -> Result<Watch> {
    loopback()?;
    let server = UdpSocket::bind("127.0.0.1:0")?;
    let to = v4([127, 0, 0, 1], server.local_addr()?.port());
    let one = socket(AF_INET, SOCK_DGRAM, 0)?;
    bind(one, &v4([127, 0, 0, 4], 0))?;
    connect(one, &to)?;
    connect(one, &[0; 16])?;
    let observe = move || {
        let _ = &server;
        let no_port = option(one, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT)?;
        Ok((name(one, false)?, no_port))
    };
    same("its port", &[0; 2][..], &observe()?.0[2..4])?;
    let peer = to.clone();
    Ok(Watch::keep(observe)?
        .spoiled_by(move || connect(one, &peer))
        .and(Watch::new(move || {
            connect(one, &to)?;
            same("its host", &[127, 0, 0, 4][..], &name(one, false)?[4..8])?;
            connect(one, &[0; 16])
        })))
}

/// Connected to a host and no port, as programs do who ask which way datagrams would go: getpeername(2) does not tell.
pub(crate) fn connected_without_port(_: &Setting) -> Result<Watch> {
    loopback()?;
    let one = socket(AF_INET, SOCK_DGRAM, 0)?;
    connect(one, &v4([127, 0, 0, 1], 0))?;
    let other = socket(libc::AF_INET6, SOCK_DGRAM, 0)?;
    connect(other, &super::listening::address(libc::AF_INET6, false, 0))?;
    let both = [one, other];
    let observe = move || {
        let each = both.map(|fd| {
            let peer = name(fd, true).is_ok();
            // How wide the way is may be changed by others.
            let way = option(fd, IPPROTO_IP, libc::IP_MTU);
            anyhow::Ok((name(fd, false)?, peer, way.is_ok()))
        });
        let [one, other] = each;
        Ok((one?, other?))
    };
    let found = observe()?;
    same("ways", &(true, true), &(found.0.2, found.1.2))?;
    Ok(Watch::keep(observe)?.spoiled_by(move || connect(one, &[0; 16])))
}

/// Sockets that were bound to the host from which they would reach their peer anyway, with a port and without: they have
/// it still when they are disconnected.
pub(crate) fn bound_host(_: &Setting) -> Result<Watch> {
    const PORT: u16 = 40_405;
    loopback()?;
    let server = UdpSocket::bind("127.0.0.1:0")?;
    let to = v4([127, 0, 0, 1], server.local_addr()?.port());
    let all: [i32; 3] = [
        socket(AF_INET, SOCK_DGRAM, 0)?,
        socket(AF_INET, SOCK_DGRAM, 0)?,
        socket(AF_INET, SOCK_DGRAM, 0)?,
    ];
    bind(all[0], &v4([127, 0, 0, 1], 0))?;
    bind(all[1], &v4([127, 0, 0, 1], PORT))?;
    bind(all[2], &v4([0; 4], PORT + 1))?;
    let connect_all = move |to: &[u8]| all.iter().try_for_each(|one| connect(*one, to));
    connect_all(&to)?;
    let hosts = move || {
        let _ = &server;
        connect_all(&[0; 16])?;
        let hosts = all.map(|one| Ok(name(one, false)?[4..8].to_vec()));
        let hosts: Result<Vec<Vec<u8>>> = hosts.into_iter().collect();
        connect_all(&to)?;
        hosts
    };
    Ok(Watch::keep(hosts)?.spoiled_by(move || {
        connect(all[0], &[0; 16])?;
        bind(all[0], &v4([127, 0, 0, 2], 0))
    }))
}

/// Ports that the kernel has chosen, for a connected socket and for one that is bound to a host, go with the peer; one
/// that was asked for stays.
pub(crate) fn chosen_port(_: &Setting) -> Result<Watch> {
    /// include/uapi/linux/in.h
    const IP_LOCAL_PORT_RANGE: i32 = 51;
    loopback()?;
    let server = UdpSocket::bind("127.0.0.1:0")?;
    let to = v4([127, 0, 0, 1], server.local_addr()?.port());
    let all: Vec<i32> = (0..3)
        .map(|_| socket(AF_INET, SOCK_DGRAM, 0))
        .collect::<Result<_>>()?;
    if option(all[0], IPPROTO_IP, IP_LOCAL_PORT_RANGE).is_err() {
        return not_here("no way to have a port chosen");
    }
    bind(all[1], &v4([127, 0, 0, 4], 0))?;
    bind(all[2], &v4([127, 0, 0, 1], 40_404))?;
    let peer = to.clone();
    let names = move |all: &[i32]| -> Result<Vec<Vec<u8>>> {
        let _ = &server;
        all.iter().map(|one| name(*one, false)).collect()
    };
    let connect_all = |all: &[i32], to: &[u8]| all.iter().try_for_each(|one| connect(*one, to));
    connect_all(&all, &to)?;
    let mut before = names(&all)?;
    let spoiled = all[0];
    Ok(Watch::new(move || {
        same("their names", &before, &names(&all)?)?;
        connect_all(&all, &[0; 16])?;
        let ports: Vec<Vec<u8>> = names(&all)?
            .iter()
            .map(|name| name[2..4].to_vec())
            .collect();
        let asked_for = 40_404_u16.to_be_bytes().to_vec();
        same(
            "ports without a peer",
            &vec![vec![0; 2], vec![0; 2], asked_for],
            &ports,
        )?;
        connect_all(&all, &to)?;
        before = names(&all)?;
        Ok(())
    })
    .spoiled_by(move || {
        connect(spoiled, &[0; 16])?;
        connect(spoiled, &peer)
    }))
}
