//! Packets that nobody has read, and packet sockets that share theirs.

use std::os::fd::RawFd;

use anyhow::Result;
use libc::{
    AF_INET, AF_INET6, AF_PACKET, IPPROTO_ICMP, IPPROTO_ICMPV6, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_RAW,
};

use crate::kit::files::{close, read, ready};
use crate::kit::net::{option, set_option, set_option_bytes, socket};
use crate::kit::{SOON, Setting, Watch, args, loopback, not_here, raw, same, sys, until};

const SOL_PACKET: i32 = 263;
const PACKET_FANOUT: i32 = 18;
/// Protocols that no other subject has: raw sockets get what anybody sends.
const OF_NOBODY: i32 = 251;
const OF_NOBODY_ELSE: i32 = 250;

fn here(v6: bool) -> Vec<u8> {
    if v6 {
        let mut address = vec![AF_INET6 as u8, 0, 0, 0, 0, 0, 0, 0];
        address.extend([0; 15]);
        address.extend([1, 0, 0, 0, 0]);
        address
    } else {
        let mut address = vec![AF_INET as u8, 0, 0, 0, 127, 0, 0, 1];
        address.resize(16, 0);
        address
    }
}

fn send(from: i32, bytes: &[u8], v6: bool) -> Result<()> {
    send_to(from, bytes, &here(v6))
}

fn send_to(from: i32, bytes: &[u8], to: &[u8]) -> Result<()> {
    let arguments = [
        from as u64,
        bytes.as_ptr() as u64,
        bytes.len() as u64,
        0,
        to.as_ptr() as u64,
        to.len() as u64,
    ];
    sys("sendto", raw(libc::SYS_sendto, arguments)).map(drop)
}

/// Everything in a queue.
fn all(from: i32) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| read(from, 4000).ok()).collect()
}

/// Three sockets for one protocol, each of which gets everything, one for ICMP with a question and its answer,
/// and one of IPv6.
pub(crate) fn raw_sockets(_: &Setting) -> Result<Watch> {
    loopback()?;
    let new = |domain, protocol| socket(domain, SOCK_RAW | SOCK_NONBLOCK, protocol);
    let (one, two, icmp) = (
        new(AF_INET, OF_NOBODY_ELSE)?,
        new(AF_INET, OF_NOBODY_ELSE)?,
        new(AF_INET, IPPROTO_ICMP)?,
    );
    let v6 = new(AF_INET6, OF_NOBODY).ok();
    // What others ask and are answered does not come there.
    let mut own = here(false);
    own[4..8].copy_from_slice(&[127, 77, 0, 1]);
    let address = own.clone();
    let arguments = args([icmp as u64, address.as_ptr() as u64, 16]);
    sys("bind", raw(libc::SYS_bind, arguments))?;
    let fill = move || {
        send(one, b"first", false)?;
        send(two, &[7; 2000], false)?;
        // An echo request: its answer comes as well.
        send_to(icmp, b"\x08\0\xf7\xf9\0\x05\0\x01", &own)?;
        if let Some(v6) = v6 {
            send(v6, b"over IPv6", true)?;
        }
        let last = v6.unwrap_or(icmp);
        until("packets", SOON, || {
            ready(last, libc::POLLIN).is_ok_and(|events| events != 0)
        })
    };
    fill()?;
    let mut expected: Option<Vec<Vec<Vec<u8>>>> = None;
    let mut first = true;
    Ok(Watch::new(move || {
        let found: Vec<_> = [Some(one), Some(two), Some(icmp), v6]
            .into_iter()
            .flatten()
            .map(all)
            .collect();
        let counts: Vec<_> = found.iter().map(Vec::len).collect();
        let want = [vec![2, 2, 2], vec![1; v6.iter().len()]].concat();
        same("packets of each", &want, &counts)?;
        // The number of a packet (its bytes 4 and 5) and so its sum differ each time it is sent.
        let mut found = found;
        for packet in found[..3].iter_mut().flatten() {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        if std::mem::take(&mut first) {
            expected = Some(found.clone());
        }
        same("the packets", &expected.as_ref(), &Some(&found))?;
        fill()
    })
    .spoiled_by(move || read(one, 4000).map(drop)))
}

/// A raw socket of UDP, which hears every datagram to its address, beside a socket whose datagram is unread since
/// before it was made.
pub(crate) fn raw_beside_udp(_: &Setting) -> Result<Watch> {
    loopback()?;
    let udp = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)?;
    let mut own = here(false);
    own[2..8].copy_from_slice(&[0x1a, 0x0b, 127, 78, 0, 1]);
    let bind = |socket: i32, address: &[u8]| {
        let arguments = args([socket as u64, address.as_ptr() as u64, 16]);
        sys("bind", raw(libc::SYS_bind, arguments)).map(drop)
    };
    bind(udp, &own)?;
    send_to(udp, b"unread", &own)?;
    until("a datagram", SOON, || {
        ready(udp, libc::POLLIN).is_ok_and(|events| events != 0)
    })?;
    let hears = socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK, libc::IPPROTO_UDP)?;
    let mut host = own.clone();
    host[2..4].fill(0);
    bind(hears, &host)?;
    Ok(Watch::new(move || {
        same("what it has heard", &0, &all(hears).len())?;
        same("the datagram", &libc::POLLIN, &ready(udp, libc::POLLIN)?)
    })
    .spoiled_by(move || send_to(udp, b"another", &own)))
}

/// Two sockets with answers of their own.
pub(crate) fn icmp(_: &Setting) -> Result<Watch> {
    loopback()?;
    let _ = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    let kind = SOCK_DGRAM | SOCK_NONBLOCK;
    let (Ok(one), Ok(two)) = (
        socket(AF_INET, kind, IPPROTO_ICMP),
        socket(AF_INET, kind, IPPROTO_ICMP),
    ) else {
        return not_here("no ICMP sockets");
    };
    let v6 = socket(AF_INET6, kind, IPPROTO_ICMPV6).ok();
    let fill = move || {
        send(one, b"\x08\0\0\0\0\0\0\x07to one", false)?;
        send(two, b"\x08\0\0\0\0\0\0\x07to two", false)?;
        send(one, b"\x08\0\0\0\0\0\0\x08again", false)?;
        if let Some(v6) = v6 {
            send(v6, b"\x80\0\0\0\0\0\0\x08six", true)?;
        }
        let last = v6.unwrap_or(one);
        until("an answer", SOON, || {
            ready(last, libc::POLLIN).is_ok_and(|events| events != 0)
        })
    };
    fill()?;
    Ok(Watch::new(move || {
        let texts = |from| -> Vec<String> {
            let text = |packet: Vec<u8>| String::from_utf8_lossy(&packet[8..]).into_owned();
            all(from).into_iter().map(text).collect()
        };
        same(
            "of the one",
            &["to one", "again"].map(String::from)[..],
            &texts(one),
        )?;
        same(
            "of the other",
            &["to two"].map(String::from)[..],
            &texts(two),
        )?;
        if let Some(v6) = v6 {
            same("of IPv6", &["six"].map(String::from)[..], &texts(v6))?;
        }
        fill()
    })
    .spoiled_by(move || read(two, 4000).map(drop)))
}

/// `struct sockaddr_ll` of the loopback interface.
fn on_loopback(protocol: u16) -> [u8; 20] {
    let mut address = [0_u8; 20];
    address[..2].copy_from_slice(&(AF_PACKET as u16).to_ne_bytes());
    address[2..4].copy_from_slice(&protocol.to_be_bytes());
    address[4] = 1;
    address
}

const KIND: i32 = SOCK_RAW | SOCK_NONBLOCK;

/// Two sockets that share what passes the loopback interface with an EtherType, as a fan-out group of that number.
fn members(ether_type: u16, mode: i32) -> Result<[RawFd; 2]> {
    loopback()?;
    let member = || {
        let one = socket(AF_PACKET, KIND, 0)?;
        let address = on_loopback(ether_type);
        let arguments = args([one as u64, address.as_ptr() as u64, 20]);
        sys("bind", raw(libc::SYS_bind, arguments))?;
        let group = i32::from(ether_type) | mode << 16;
        set_option(one, SOL_PACKET, PACKET_FANOUT, group)?;
        anyhow::Ok(one)
    };
    Ok([member()?, member()?])
}

/// Sends packets, each filled with one of these bytes. How many does each of the two get?
fn shares([one, two]: [RawFd; 2], ether_type: u16, bytes: &[u8]) -> Result<(usize, usize)> {
    for fd in [one, two] {
        all(fd);
    }
    let sender = socket(AF_PACKET, KIND, 0)?;
    let mut frame = [0; 60];
    frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
    for byte in bytes {
        frame[14..].fill(*byte);
        let (at, to) = (frame.as_ptr() as u64, on_loopback(ether_type));
        let arguments = [sender as u64, at, 60, 0, to.as_ptr() as u64, 20];
        sys("sendto", raw(libc::SYS_sendto, arguments))?;
    }
    close(sender);
    Ok((all(one).len(), all(two).len()))
}

/// Another socket takes the place of a member.
fn replace(member: RawFd) -> Result<()> {
    let fresh = socket(AF_PACKET, KIND, 0)?;
    // SAFETY: both are open.
    sys("dup2", unsafe { libc::dup2(fresh, member) }).map(drop)
}

/// Two sockets share what passes the loopback interface, in turns.
pub(crate) fn fanout(_: &Setting) -> Result<Watch> {
    const ROUND_ROBIN: i32 = 1;
    /// An EtherType that nobody else has.
    const FOR_TRYING: u16 = 0x88b5;
    let members = members(FOR_TRYING, ROUND_ROBIN)?;
    let groups = Watch::keep(move || {
        members
            .iter()
            .map(|fd| option(*fd, SOL_PACKET, PACKET_FANOUT))
            .collect::<Result<Vec<_>>>()
    })?;
    Ok(groups
        .and(Watch::new(move || {
            let counts = shares(members, FOR_TRYING, &[0; 10])?;
            same("packets of each", &(5, 5), &counts)
        }))
        .spoiled_by(move || replace(members[1])))
}

/// The first byte behind the header chooses, and may choose either.
pub(crate) fn chosen(_: &Setting) -> Result<Watch> {
    const BY_PROGRAM: i32 = 6;
    const PACKET_FANOUT_DATA: i32 = 22;
    /// An EtherType that nobody else has.
    const FOR_TRYING: u16 = 0x88b4;
    let members = members(FOR_TRYING, BY_PROGRAM)?;
    // ldb [20]; ret a: on either side of the Ethernet header there is the same.
    let program: [u64; 2] = [0x30 | 20 << 32, 0x16];
    let mut value = [0_u8; 16];
    value[0] = 2;
    value[8..].copy_from_slice(&(program.as_ptr() as u64).to_ne_bytes());
    set_option_bytes(members[0], SOL_PACKET, PACKET_FANOUT_DATA, &value)?;
    let counts = move || shares(members, FOR_TRYING, &[0, 1, 1, 1, 0, 1]);
    same("packets of each", &(2, 4), &counts()?)?;
    let watch = Watch::new(move || same("packets of each", &(2, 4), &counts()?));
    Ok(watch.spoiled_by(move || replace(members[1])))
}

/// A packet, with what is told of its sender: protocol, kind of interface, kind of packet.
fn with_sender(from: i32) -> Option<(Vec<u8>, [u8; 5])> {
    let (mut bytes, mut sender, mut len) = ([0_u8; 2000], [0_u8; 20], 20_u32);
    // SAFETY: the buffers have the lengths given.
    let got = unsafe {
        libc::recvfrom(
            from,
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            0,
            sender.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    let got = usize::try_from(got).ok()?;
    let told = [sender[2], sender[3], sender[8], sender[9], sender[10]];
    Some((bytes[..got].to_vec(), told))
}

/// Packets of two protocols that nobody has read, with and without their headers, some peeked at; one that hears all of
/// its protocol as it goes out as well.
pub(crate) fn packets(_: &Setting) -> Result<Watch> {
    const OURS: u16 = 0x88b6;
    const PEEK: u64 = libc::MSG_PEEK as u64;
    loopback()?;
    let new = |kind: i32| {
        let one = socket(AF_PACKET, kind | SOCK_NONBLOCK, 0)?;
        let address = on_loopback(OURS);
        let arguments = args([one as u64, address.as_ptr() as u64, 20]);
        sys("bind", raw(libc::SYS_bind, arguments))?;
        anyhow::Ok(one)
    };
    let all = [new(SOCK_RAW)?, new(SOCK_DGRAM)?];
    let fill = move || {
        let sender = socket(AF_PACKET, SOCK_RAW, 0)?;
        for (number, len) in [(1_u8, 60), (2, 900), (3, 15)] {
            let mut frame = vec![number; len];
            frame[..12].fill(0);
            frame[12..14].copy_from_slice(&OURS.to_be_bytes());
            let (at, to) = (frame.as_ptr() as u64, on_loopback(OURS));
            let arguments = [sender as u64, at, len as u64, 0, to.as_ptr() as u64, 20];
            sys("sendto", raw(libc::SYS_sendto, arguments))?;
        }
        close(sender);
        // A look at the first of each.
        for one in all {
            let mut bytes = [0_u8; 2000];
            let arguments = [one as u64, bytes.as_mut_ptr() as u64, 2000, PEEK, 0, 0];
            sys("recvfrom", raw(libc::SYS_recvfrom, arguments))?;
        }
        anyhow::Ok(())
    };
    let take = move || all.map(|one| std::iter::from_fn(|| with_sender(one)).collect::<Vec<_>>());
    fill()?;
    let expected = take();
    same(
        "packets of each",
        &[3, 3],
        &expected.each_ref().map(Vec::len),
    )?;
    fill()?;
    Ok(Watch::new(move || {
        same("what each has", &expected, &take())?;
        fill()
    })
    .spoiled_by(move || read(all[1], 2000).map(drop)))
}
