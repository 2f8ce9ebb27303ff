//! UDP.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use libc::{
    IPPROTO_IP, SO_BROADCAST, SO_PRIORITY, SO_RCVBUF, SO_REUSEADDR, SO_REUSEPORT, SOL_SOCKET,
};

use crate::kit::files::ready;
use crate::kit::net::{self, option, set_option, set_option_bytes};
use crate::kit::{SOON, Setting, Watch, args, loopback, not_here, raw, same, sys, until};

fn bound(to: &str) -> Result<Rc<UdpSocket>> {
    loopback()?;
    let socket = UdpSocket::bind(to)?;
    socket.set_nonblocking(true)?;
    Ok(Rc::new(socket))
}

/// Waits for a datagram: on a busy machine the loopback device takes a moment.
fn comes(socket: &UdpSocket) -> Result<()> {
    let patience = Duration::from_secs(3);
    until("a datagram", patience, || {
        ready(socket.as_raw_fd(), libc::POLLIN).is_ok_and(|events| events != 0)
    })
}

/// Its own address, its peer's.
fn addresses(socket: &UdpSocket) -> Result<String> {
    Ok(format!(
        "{} {:?}",
        socket.local_addr()?,
        socket.peer_addr().ok()
    ))
}

/// Bound to addresses that the host does not have (any more): a datagram socket, a listener, and a datagram socket
/// that is connected to where no route leads.
pub(crate) fn address_gone(_: &Setting) -> Result<Watch> {
    loopback()?;
    let mut all = Vec::new();
    for kind in [libc::SOCK_DGRAM, libc::SOCK_STREAM, libc::SOCK_DGRAM] {
        let fd = net::socket(libc::AF_INET, kind, 0)?;
        let mut address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr {
                s_addr: u32::from(Ipv4Addr::new(203, 0, 113, 7)).to_be(),
            },
            sin_zero: [0; 8],
        };
        let size = size_of_val(&address) as u32;
        set_option(fd, IPPROTO_IP, libc::IP_FREEBIND, 1)?;
        // SAFETY: an address of that size.
        sys("bind", unsafe {
            libc::bind(fd, (&raw const address).cast(), size)
        })?;
        set_option(fd, IPPROTO_IP, libc::IP_FREEBIND, 0)?;
        if kind == libc::SOCK_STREAM {
            // SAFETY: no memory is involved.
            sys("listen", unsafe { libc::listen(fd, 5) })?;
        }
        if all.len() == 2 {
            address.sin_port = 9u16.to_be();
            set_option(fd, IPPROTO_IP, libc::IP_TRANSPARENT, 1)?;
            set_option_bytes(fd, SOL_SOCKET, libc::SO_BINDTODEVICE, b"lo\0")?;
            // SAFETY: an address of that size.
            sys("connect", unsafe {
                libc::connect(fd, (&raw const address).cast(), size)
            })?;
            set_option_bytes(fd, SOL_SOCKET, libc::SO_BINDTODEVICE, b"\0")?;
            set_option(fd, IPPROTO_IP, libc::IP_TRANSPARENT, 0)?;
        }
        all.push(fd);
    }
    let peer = all[2];
    let kept = Watch::keep(move || {
        let mut seen = Vec::new();
        for fd in &all {
            let free = option(*fd, IPPROTO_IP, libc::IP_FREEBIND)?;
            let clear = option(*fd, IPPROTO_IP, libc::IP_TRANSPARENT)?;
            let device = option(*fd, SOL_SOCKET, libc::SO_BINDTODEVICE)?;
            seen.push((net::name(*fd, false)?, free, clear, device));
        }
        Ok((seen, net::name(peer, true)?))
    })?;
    Ok(kept.spoiled_by(move || {
        let nobody = [0u8; 16];
        // SAFETY: an address of that size.
        let done = unsafe { libc::connect(peer, nobody.as_ptr().cast(), 16) };
        sys("disconnecting", done).map(drop)
    }))
}

/// One is bound, one connected to it: both can be used.
fn connected(to: &str) -> Result<Watch> {
    let (server, client) = (bound(to)?, bound(to)?);
    client.connect(server.local_addr()?)?;
    let (seen, also) = (server.clone(), client.clone());
    let names = Watch::keep(move || Ok([addresses(&seen)?, addresses(&also)?]))?;
    let other = client.clone();
    Ok(names
        .spoiled_by(move || {
            Ok(other
                .connect("127.0.0.1:9")
                .or_else(|_| other.connect("[::1]:9"))?)
        })
        .and(Watch::new(move || {
            client.send(b"question")?;
            let mut bytes = [0; 100];
            comes(&server)?;
            let (len, from) = server.recv_from(&mut bytes)?;
            same("the question", b"question".as_slice(), &bytes[..len])?;
            server.send_to(b"answer", from)?;
            comes(&client)?;
            let len = client.recv(&mut bytes)?;
            same("the answer", b"answer".as_slice(), &bytes[..len])?;
            // Others are not heard by one that is connected.
            let stranger = UdpSocket::bind((server.local_addr()?.ip(), 0))?;
            stranger.send_to(b"x", client.local_addr()?)?;
            same("a stranger", &true, &client.recv(&mut bytes).is_err())
        })))
}

/// One may not send any more.
pub(crate) fn shutdown(_: &Setting) -> Result<Watch> {
    // SAFETY: a signal that would end the subject is ignored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let (server, client) = (bound("127.0.0.1:0")?, bound("127.0.0.1:0")?);
    client.connect(server.local_addr()?)?;
    let fd = client.as_raw_fd();
    // SAFETY: takes numbers.
    sys("shutdown", unsafe { libc::shutdown(fd, libc::SHUT_WR) })?;
    Ok(Watch::new(move || {
        let error = client.send(b"x").err().and_then(|e| e.raw_os_error());
        same("sending", &Some(libc::EPIPE), &error)?;
        server.send_to(b"still heard", client.local_addr()?)?;
        comes(&client)?;
        same("receiving", &11, &client.recv(&mut [0; 100])?)
    })
    .spoiled_by(move || {
        // SAFETY: takes numbers.
        sys("shutdown", unsafe { libc::shutdown(fd, libc::SHUT_RD) })?;
        let fresh = UdpSocket::bind("127.0.0.1:0")?;
        // SAFETY: both are open.
        sys("dup2", unsafe { libc::dup2(fresh.as_raw_fd(), fd) }).map(drop)
    }))
}

/// IPv4
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    connected("127.0.0.1:0")
}

/// IPv6
pub(crate) fn v6(_: &Setting) -> Result<Watch> {
    loopback()?;
    if UdpSocket::bind("[::1]:0").is_err() {
        return not_here("no IPv6");
    }
    connected("[::1]:0")
}

/// Three datagrams from two senders.
pub(crate) fn queue(_: &Setting) -> Result<Watch> {
    let (server, one, two) = (
        bound("127.0.0.1:0")?,
        bound("127.0.0.1:0")?,
        bound("127.0.0.1:0")?,
    );
    let receiver = server.clone();
    let (first, second) = (one.local_addr()?, two.local_addr()?);
    let to = server.local_addr()?;
    let fill = move || {
        one.send_to(b"first", to)?;
        two.send_to(&[7; 5000], to)?;
        one.send_to(b"", to)?;
        anyhow::Ok(())
    };
    fill()?;
    Ok(Watch::new(move || {
        let mut bytes = [0; 10_000];
        for (text, sender) in [
            (b"first".as_slice(), first),
            (&[7; 5000], second),
            (b"", first),
        ] {
            let (len, from) = server.recv_from(&mut bytes)?;
            same("a datagram", text, &bytes[..len])?;
            same("its sender", &sender, &from)?;
        }
        same("a fourth", &true, &server.recv(&mut bytes).is_err())?;
        fill()
    })
    .spoiled_by(move || {
        receiver.recv(&mut [0; 9])?;
        Ok(())
    }))
}

/// Options of the socket and of IP.
pub(crate) fn options(_: &Setting) -> Result<Watch> {
    let socket = bound("127.0.0.1:0")?;
    let fd = socket.as_raw_fd();
    let names = [
        (SOL_SOCKET, SO_BROADCAST, 1),
        (SOL_SOCKET, SO_PRIORITY, 4),
        (SOL_SOCKET, SO_RCVBUF, 50_000),
        (SOL_SOCKET, libc::SO_TIMESTAMP, 1),
        (SOL_SOCKET, libc::SO_MARK, 99),
        (IPPROTO_IP, libc::IP_TTL, 33),
        (IPPROTO_IP, libc::IP_TOS, 0x10),
        (IPPROTO_IP, libc::IP_PKTINFO, 1),
        (IPPROTO_IP, libc::IP_RECVTTL, 1),
        (IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        (IPPROTO_IP, libc::IP_FREEBIND, 1),
    ];
    for (level, name, value) in names {
        set_option(fd, level, name, value)?;
    }
    let observe = move || {
        let _held = &socket;
        names
            .iter()
            .map(|(level, name, _)| option(fd, *level, *name))
            .collect::<Result<Vec<_>>>()
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || set_option(fd, IPPROTO_IP, libc::IP_TTL, 34)))
}

/// IPv6 extension headers that every datagram gets (RFC 3542).
pub(crate) fn extension_headers(_: &Setting) -> Result<Watch> {
    loopback()?;
    let Ok(socket) = UdpSocket::bind("[::1]:0") else {
        return not_here("no IPv6");
    };
    let fd = socket.as_raw_fd();
    // Next header, length beyond 8 bytes, padding of six bytes.
    let padding = [0, 0, 1, 4, 0, 0, 0, 0];
    let names = [libc::IPV6_HOPOPTS, libc::IPV6_DSTOPTS];
    for name in names {
        set_option_bytes(fd, libc::IPPROTO_IPV6, name, &padding)?;
    }
    let observe = move || {
        let _held = &socket;
        names
            .map(|name| option(fd, libc::IPPROTO_IPV6, name))
            .into_iter()
            .collect::<Result<Vec<_>>>()
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || set_option_bytes(fd, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &[])))
}

/// Two sockets of one port that have joined a group on the loopback interface.
pub(crate) fn multicast(_: &Setting) -> Result<Watch> {
    let group = Ipv4Addr::new(239, 1, 2, 3);
    loopback()?;
    let receiver = UdpSocket::bind("0.0.0.0:0")?;
    receiver.set_nonblocking(true)?;
    for name in [SO_REUSEADDR, SO_REUSEPORT] {
        set_option(receiver.as_raw_fd(), SOL_SOCKET, name, 1)?;
    }
    if receiver
        .join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)
        .is_err()
    {
        return not_here("no multicast on the loopback interface");
    }
    let port = receiver.local_addr()?.port();
    let receiver = Rc::new(receiver);
    let other = receiver.clone();
    Ok(Watch::new(move || {
        let sender = UdpSocket::bind("127.0.0.1:0")?;
        let interface = u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets()) as i32;
        set_option(
            sender.as_raw_fd(),
            IPPROTO_IP,
            libc::IP_MULTICAST_IF,
            interface,
        )?;
        sender.send_to(b"to all", (group, port))?;
        let mut bytes = [0; 100];
        comes(&receiver)?;
        let len = receiver.recv(&mut bytes)?;
        same("what came", b"to all".as_slice(), &bytes[..len])
    })
    .spoiled_by(move || Ok(other.leave_multicast_v4(&group, &Ipv4Addr::LOCALHOST)?)))
}

/// Groups of two sockets that were joined in turn, as `/proc/net/igmp` and `igmp6` list them.
pub(crate) fn multicast_order(_: &Setting) -> Result<Watch> {
    loopback()?;
    let sockets = [bound("127.0.0.1:0")?, bound("127.0.0.1:0")?];
    for at in 0..5_u8 {
        let group = Ipv4Addr::new(239, 7, 7, 100 - at * 7 % 5);
        let joined = sockets[usize::from(at % 2)].join_multicast_v4(&group, &Ipv4Addr::LOCALHOST);
        if joined.is_err() && at == 0 {
            return not_here("no multicast on the loopback interface");
        }
    }
    let v6 = bound("[::1]:0").ok();
    if let Some(v6) = &v6 {
        for group in ["ff15::7", "ff15::9", "ff15::8"] {
            v6.join_multicast_v6(&group.parse()?, 1)?;
        }
    }
    let last = sockets[0].clone();
    let look = move || {
        let _held = (&sockets, &v6);
        let mut groups = Vec::new();
        for table in ["igmp", "igmp6"] {
            let text = std::fs::read_to_string(format!("/proc/self/net/{table}"))?;
            let ours = text.split_whitespace().map(str::to_lowercase);
            groups.extend(ours.filter(|w| w.ends_with("0707ef") || w.starts_with("ff15")));
        }
        anyhow::Ok(groups)
    };
    // Where others join and leave meanwhile, a list that is read in pieces has some of it twice, or not.
    let observe = move || {
        let mut last = look()?;
        until("the lists stand still", SOON / 4, || {
            look().is_ok_and(|now| {
                let same = now == last;
                last = now;
                same
            })
        })?;
        Ok(last)
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || {
        let group = Ipv4Addr::new(239, 7, 7, 100);
        last.leave_multicast_v4(&group, &Ipv4Addr::LOCALHOST)?;
        Ok(last.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)?)
    }))
}

/// A datagram was refused: the next call will be told.
pub(crate) fn refused(_: &Setting) -> Result<Watch> {
    loopback()?;
    let mut sockets = Vec::new();
    for host in ["127.0.0.1:0", "[::1]:0"] {
        if UdpSocket::bind(host).is_err() {
            continue;
        }
        let socket = bound(host)?;
        let nobody = UdpSocket::bind(host)?.local_addr()?;
        socket.connect(nobody)?;
        socket.send(b"is anybody there?")?;
        let told = || {
            ready(socket.as_raw_fd(), libc::POLLIN).is_ok_and(|events| events & libc::POLLERR != 0)
        };
        until("a refusal", Duration::from_secs(3), told)?;
        sockets.push(socket);
    }
    let other = sockets[0].clone();
    let observe = move || {
        let one = |socket: &Rc<UdpSocket>| {
            let events = ready(socket.as_raw_fd(), libc::POLLIN | libc::POLLOUT)?;
            Ok((events, addresses(socket)?))
        };
        sockets.iter().map(one).collect::<Result<Vec<_>>>()
    };
    // A call is told: so it is the last thing that is done.
    Ok(Watch::keep(observe)?.spoiled_by(move || {
        let error = other.send(b"x").err().and_then(|e| e.raw_os_error());
        same("the error", &Some(libc::ECONNREFUSED), &error)
    }))
}

/// Begins a datagram, or goes on with it.
fn send_part(from: &UdpSocket, text: &[u8], flags: i32) -> Result<()> {
    // SAFETY: the buffer has the length that is given.
    let sent = unsafe { libc::send(from.as_raw_fd(), text.as_ptr().cast(), text.len(), flags) };
    sys("send", sent).map(drop)
}

/// One is held back by an option, one waits for its rest.
pub(crate) fn corked(_: &Setting) -> Result<Watch> {
    let server = bound("127.0.0.1:0")?;
    let clients = [bound("127.0.0.1:0")?, bound("127.0.0.1:0")?];
    for client in &clients {
        client.connect(server.local_addr()?)?;
    }
    // The third one sends past its peer.
    let aside = bound("127.0.0.1:0")?;
    aside.connect(clients[0].local_addr()?)?;
    let port = server.local_addr()?.port().to_be_bytes();
    let to = [&[2, 0], &port[..], &[127, 0, 0, 1], &[0; 8]].concat();
    let [corked, more] = &clients;
    let (corked, more) = (corked.clone(), more.clone());
    let begin = {
        let (corked, more, aside) = (corked.clone(), more.clone(), aside.clone());
        move || {
            set_option(corked.as_raw_fd(), libc::SOL_UDP, libc::UDP_CORK, 1)?;
            send_part(&corked, b"held ", 0)?;
            send_part(&corked, &[7; 3000], 0)?;
            send_part(&more, b"begun ", libc::MSG_MORE)?;
            let text = b"past ";
            let [bytes, address] = [text.as_ptr() as u64, to.as_ptr() as u64];
            let fd = aside.as_raw_fd() as u64;
            let arguments = args([fd, bytes, 5, libc::MSG_MORE as u64, address, 16]);
            sys("sendto", raw(libc::SYS_sendto, arguments)).map(drop)
        }
    };
    begin()?;
    let fd = corked.as_raw_fd();
    Ok(Watch::new(move || {
        same(
            "nothing came yet",
            &true,
            &server.recv(&mut [0; 9]).is_err(),
        )?;
        send_part(&corked, b" back", 0)?;
        set_option(corked.as_raw_fd(), libc::SOL_UDP, libc::UDP_CORK, 0)?;
        let mut bytes = [0; 5000];
        comes(&server)?;
        let (len, from) = server.recv_from(&mut bytes)?;
        let whole = [&b"held "[..], &[7; 3000], b" back"].concat();
        same("the first", &whole[..], &bytes[..len])?;
        same("who sent it", &corked.local_addr()?, &from)?;
        send_part(&more, b"and ended", 0)?;
        comes(&server)?;
        let len = server.recv(&mut bytes)?;
        same("the second", b"begun and ended".as_slice(), &bytes[..len])?;
        send_part(&aside, b"its peer", 0)?;
        comes(&server)?;
        let len = server.recv(&mut bytes)?;
        same("the third", b"past its peer".as_slice(), &bytes[..len])?;
        begin()
    })
    .spoiled_by(move || {
        set_option(fd, libc::SOL_UDP, libc::UDP_CORK, 0)?;
        set_option(fd, libc::SOL_UDP, libc::UDP_CORK, 1)
    }))
}

/// Its own address is not the one that routing would choose.
pub(crate) fn own_address(_: &Setting) -> Result<Watch> {
    let (server, client) = (bound("127.0.0.7:0")?, bound("127.0.0.1:0")?);
    server.connect(client.local_addr()?)?;
    let to = server.local_addr()?;
    let (seen, receiver) = (server.clone(), server.clone());
    let fill = move || {
        client.send_to(b"one", to)?;
        client.send_to(b"two", to)?;
        anyhow::Ok(())
    };
    fill()?;
    Ok(Watch::keep(move || addresses(&seen))?.and(
        Watch::new(move || {
            for text in [b"one", b"two"] {
                let mut bytes = [0; 9];
                comes(&server)?;
                let len = server.recv(&mut bytes)?;
                same("a datagram", text.as_slice(), &bytes[..len])?;
            }
            fill()
        })
        .spoiled_by(move || Ok(receiver.recv(&mut [0; 9]).map(drop)?)),
    ))
}

/// Of sockets of one port, that it may be shared is switched off again by some.
pub(crate) fn shared_before(_: &Setting) -> Result<Watch> {
    loopback()?;
    let mut sockets = Vec::new();
    for option in [SO_REUSEADDR, SO_REUSEPORT] {
        let mut address = vec![2, 0, 0, 0, 127, 0, 0, 1];
        address.resize(16, 0);
        for _ in 0..3 {
            let socket = net::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
            set_option(socket, SOL_SOCKET, option, 1)?;
            // SAFETY: the address has the length that is given.
            let bound = unsafe { libc::bind(socket, address.as_ptr().cast(), 16) };
            sys("bind", bound)?;
            address = net::name(socket, false)?;
            sockets.push((socket, option));
        }
    }
    for place in [0, 1, 3, 4] {
        let (socket, option) = sockets[place];
        set_option(socket, SOL_SOCKET, option, 0)?;
    }
    let (last, shares) = sockets[5];
    let observe = move || {
        let seen = |(socket, shares): &(i32, i32)| {
            let value = option(*socket, SOL_SOCKET, *shares)?;
            anyhow::Ok((net::name(*socket, false)?, value))
        };
        sockets.iter().map(seen).collect::<Result<Vec<_>>>()
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || set_option(last, SOL_SOCKET, shares, 0)))
}

/// UDP-Lite with its coverage.
pub(crate) fn lite(_: &Setting) -> Result<Watch> {
    loopback()?;
    const RECV_CSCOV: i32 = 11;
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK;
    let new = || crate::kit::net::socket(libc::AF_INET, kind, libc::IPPROTO_UDPLITE);
    let Ok(server) = new() else {
        return not_here("no UDP-Lite");
    };
    let client = new()?;
    let mut address = vec![2, 0, 0, 0, 127, 0, 0, 1];
    address.resize(16, 0);
    // SAFETY: the addresses have the lengths that are given.
    unsafe {
        sys("bind", libc::bind(server, address.as_ptr().cast(), 16))?;
        let address = crate::kit::net::name(server, false)?;
        sys(
            "connect",
            libc::connect(client, address.as_ptr().cast(), 16),
        )?;
    }
    set_option(server, libc::IPPROTO_UDPLITE, RECV_CSCOV, 8)?;
    let fill = move || {
        for text in [b"one", b"two"] {
            crate::kit::files::write(client, text)?;
        }
        until("datagrams", Duration::from_secs(3), || {
            ready(server, libc::POLLIN).is_ok_and(|events| events != 0)
        })
    };
    fill()?;
    let names = Watch::keep(move || {
        let [a, b] = [server, client].map(|fd| crate::kit::net::name(fd, false));
        Ok((a?, b?, option(server, libc::IPPROTO_UDPLITE, RECV_CSCOV)?))
    })?;
    Ok(names.and(
        Watch::new(move || {
            for text in [b"one", b"two"] {
                same(
                    "a datagram",
                    text.as_slice(),
                    &crate::kit::files::read(server, 9)?,
                )?;
            }
            fill()
        })
        .spoiled_by(move || crate::kit::files::read(server, 9).map(drop)),
    ))
}

/// Bound to an interface, with a mark, and connected: the size of packets that its route takes is known.
pub(crate) fn on_interface(_: &Setting) -> Result<Watch> {
    let socket = bound("127.0.0.1:0")?;
    let fd = socket.as_raw_fd();
    set_option_bytes(fd, SOL_SOCKET, libc::SO_BINDTODEVICE, b"lo\0")?;
    set_option(fd, SOL_SOCKET, libc::SO_MARK, 7)?;
    socket.connect(bound("127.0.0.1:0")?.local_addr()?)?;
    // Another subject may change the size itself.
    let observe = move || {
        let size = option(socket.as_raw_fd(), IPPROTO_IP, libc::IP_MTU)?;
        anyhow::Ok(size.len())
    };
    // As setting it does it.
    let forget = move || set_option(fd, SOL_SOCKET, libc::SO_MARK, 8);
    Ok(Watch::keep(observe)?.spoiled_by(forget))
}
