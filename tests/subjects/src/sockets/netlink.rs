//! netlink(7)

use std::time::Duration;

use anyhow::{Result, bail};
use libc::{
    AF_NETLINK, NETLINK_KOBJECT_UEVENT, NETLINK_ROUTE, SOCK_NONBLOCK, SOCK_RAW, SOL_NETLINK,
};

use crate::kit::files::{close, read, write};
use crate::kit::net::{name, option, set_option, socket};
use crate::kit::{SOON, Setting, Watch, args, loopback, not_here, raw, same, sys, until};

/// struct sockaddr_nl
fn at(port: u32, groups: u32) -> [u8; 12] {
    let mut address = [0_u8; 12];
    address[..2].copy_from_slice(&(AF_NETLINK as u16).to_ne_bytes());
    address[4..8].copy_from_slice(&port.to_ne_bytes());
    address[8..].copy_from_slice(&groups.to_ne_bytes());
    address
}

/// Bound to a port and groups.
fn bound(protocol: i32, port: u32, groups: u32) -> Result<i32> {
    let socket = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, protocol)?;
    let address = at(port, groups);
    sys(
        "bind",
        raw(
            libc::SYS_bind,
            args([socket as u64, address.as_ptr() as u64, 12]),
        ),
    )?;
    Ok(socket)
}

/// Routing: answers questions, and has joined a group that has no bit in the address.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    loopback()?;
    let port = std::process::id();
    let socket = bound(NETLINK_ROUTE, port, 1 | 1 << 4)?;
    // NETLINK_ADD_MEMBERSHIP of group 36, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK.
    set_option(socket, SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, 36)?;
    for name in [11, 12] {
        set_option(socket, SOL_NETLINK, name, 1)?;
    }
    let observe = move || {
        Ok((
            name(socket, false)?,
            // NETLINK_LIST_MEMBERSHIPS
            option(socket, SOL_NETLINK, 9)?,
            option(socket, SOL_NETLINK, 11)?,
            option(socket, SOL_NETLINK, 12)?,
        ))
    };
    while read(socket, 65536).is_ok() {}
    Ok(Watch::keep(observe)?
        .spoiled_by(move || set_option(socket, SOL_NETLINK, libc::NETLINK_DROP_MEMBERSHIP, 36))
        .and(Watch::new(move || {
            while read(socket, 65536).is_ok() {}
            ask(socket)?;
            hear(socket)
        })))
}

/// One that has asked for a port that another one has shows that, and has none.
pub(crate) fn bound_in_vain(_: &Setting) -> Result<Watch> {
    loopback()?;
    let port = std::process::id() + 7;
    let fresh = || socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_ROUTE);
    let ask_for = move |socket: i32| {
        let address = at(port, 0);
        raw(
            libc::SYS_bind,
            args([socket as u64, address.as_ptr() as u64, 12]),
        )
    };
    let (early, owner, late) = (fresh()?, fresh()?, fresh()?);
    for (socket, result) in [
        (owner, 0),
        (early, -libc::EADDRINUSE),
        (late, -libc::EADDRINUSE),
    ] {
        same("bind", &i64::from(result), &ask_for(socket))?;
    }
    let observe = move || {
        let names = [early, owner, late].map(|socket| name(socket, false));
        let names: Result<Vec<_>> = names.into_iter().collect();
        let other = fresh()?;
        let taken = ask_for(other);
        close(other);
        Ok((names?, taken))
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || {
        close(owner);
        Ok(())
    }))
}

/// RTM_GETLINK, a dump, of struct ifinfomsg.
fn ask(socket: i32) -> Result<()> {
    let mut question = [0_u8; 32];
    question[0] = 32;
    question[4..8].copy_from_slice(&[18, 0, 1, 3]);
    question[8] = 42;
    write(socket, &question)
}

/// What comes next.
fn answer(socket: i32) -> Result<Vec<u8>> {
    let mut answer = Vec::new();
    until("an answer", SOON / 4, || {
        read(socket, 65536).is_ok_and(|got| {
            answer = got;
            true
        })
    })?;
    Ok(answer)
}

/// The whole answer.
fn hear(socket: i32) -> Result<()> {
    let mut part = answer(socket)?;
    // Notices of what others do with their interfaces have no number.
    while part[8] == 0 {
        part = answer(socket)?;
    }
    let found = (part[4], part[8]);
    same("RTM_NEWLINK with our number", &(16, 42), &found)?;
    while !is_last(&part) {
        part = answer(socket)?;
    }
    Ok(())
}

/// Whether NLMSG_DONE is among the messages.
fn is_last(messages: &[u8]) -> bool {
    let mut rest = messages;
    while let Some([l0, l1, l2, l3, kind, ..]) = rest.first_chunk::<16>() {
        if *kind == 3 {
            return true;
        }
        let len = u32::from_ne_bytes([*l0, *l1, *l2, *l3]) as usize;
        rest = rest.get(len.max(16).next_multiple_of(4)..).unwrap_or(&[]);
    }
    false
}

/// A request about the first interface, of this type and with these flags.
fn ask_of_first(socket: i32, kind: [u8; 4]) -> Result<()> {
    let mut question = [0_u8; 32];
    question[0] = 32;
    question[4..8].copy_from_slice(&kind);
    (question[8], question[20]) = (42, 1);
    write(socket, &question)
}

/// An answer about one interface that nobody reads.
pub(crate) fn single(_: &Setting) -> Result<Watch> {
    let socket = bound(NETLINK_ROUTE, 0, 0)?;
    // RTM_GETLINK.
    let ask_one = move || ask_of_first(socket, [18, 0, 1, 0]);
    ask_one()?;
    Ok(Watch::new(move || {
        same("RTM_NEWLINK", &16, &answer(socket)?[4])?;
        ask_one()
    })
    .spoiled_by(move || answer(socket).map(drop)))
}

/// The kernel says that it has done what it was asked, which it may not be asked twice; nobody reads that.
pub(crate) fn done(_: &Setting) -> Result<Watch> {
    loopback()?;
    let socket = bound(NETLINK_ROUTE, 0, 0)?;
    // RTM_NEWLINK with NLM_F_ACK, and nothing to change.
    let ask_one = move || ask_of_first(socket, [16, 0, 5, 0]);
    ask_one()?;
    Ok(Watch::new(move || {
        same("NLMSG_ERROR", &2, &answer(socket)?[4])?;
        ask_one()
    })
    .spoiled_by(move || answer(socket).map(drop)))
}

/// A list of interfaces that nobody reads.
pub(crate) fn queue(_: &Setting) -> Result<Watch> {
    let socket = bound(NETLINK_ROUTE, 0, 0)?;
    ask(socket)?;
    Ok(Watch::new(move || {
        hear(socket)?;
        ask(socket)
    })
    .spoiled_by(move || hear(socket)))
}

/// Of devices: only its group can be seen.
pub(crate) fn uevent(_: &Setting) -> Result<Watch> {
    let socket = bound(NETLINK_KOBJECT_UEVENT, 0, 1)?;
    // As udevd does: what comes is read at once.
    std::thread::spawn(move || {
        loop {
            while read(socket, 8192).is_ok() {}
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let observe = move || Ok((name(socket, false)?, option(socket, SOL_NETLINK, 9)?));
    Ok(Watch::keep(observe)?
        .spoiled_by(move || set_option(socket, SOL_NETLINK, libc::NETLINK_DROP_MEMBERSHIP, 1)))
}

/// Of devices, and one has told of itself.
pub(crate) fn uevent_queue(_: &Setting) -> Result<Watch> {
    const DEVICE: &str = "/devices/virtual/mem/null";
    let socket = bound(NETLINK_KOBJECT_UEVENT, 0, 1)?;
    let tell = || std::fs::write(format!("/sys{DEVICE}/uevent"), "change");
    if tell().is_err() {
        return not_here("no device to be asked to tell of itself");
    }
    // What others tell of themselves does not matter. None when it is told that messages are lost.
    let heard = move || {
        let mut found = Some(Vec::new());
        loop {
            match receive(socket) {
                Ok(message) => {
                    let text = String::from_utf8_lossy(&message).into_owned();
                    let found = found.iter_mut().filter(|_| text.contains(DEVICE));
                    found.for_each(|found| found.push(text.clone()));
                }
                Err(libc::ENOBUFS) => found = None,
                Err(_) => return found,
            }
        }
    };
    Ok(Watch::new(move || {
        match heard().as_deref() {
            Some([message]) => complete(message, DEVICE)?,
            // On one kernel it is not told again.
            None => {}
            found => bail!("one message was sent, not {found:?}"),
        }
        Ok(tell()?)
    })
    .spoiled_by(move || {
        heard();
        Ok(())
    }))
}

/// The message about a device that was asked to tell of itself.
fn complete(message: &str, device: &str) -> Result<()> {
    let mut parts: Vec<&str> = message
        .split('\0')
        .filter(|part| !part.is_empty())
        .collect();
    // Every kernel counts from the start.
    let number = parts.pop().unwrap_or("");
    same("a number", &true, &number.starts_with("SEQNUM="))?;
    let head = format!("change@{device}");
    let expected = [
        head.as_str(),
        "ACTION=change",
        "SUBSYSTEM=mem",
        "DEVNAME=null",
    ];
    for part in expected {
        if !parts.contains(&part) {
            bail!("{part} is not in {parts:?}");
        }
    }
    Ok(())
}

/// The next message, or the error number.
fn receive(socket: i32) -> Result<Vec<u8>, i32> {
    let mut bytes = vec![0; 8192];
    let at = bytes.as_mut_ptr() as u64;
    let got = raw(libc::SYS_recvfrom, args([socket as u64, at, 8192]));
    bytes.truncate(usize::try_from(got).map_err(|_| -got as i32)?);
    Ok(bytes)
}

/// Of interfaces, and one has changed: whoever has not read it has it, or is told that it is lost.
pub(crate) fn group_queue(_: &Setting) -> Result<Watch> {
    loopback()?;
    let socket = bound(NETLINK_ROUTE, 0, 1)?;
    let mut size = 30_000;
    let mut change = move || -> Result<()> {
        size += 1;
        crate::kit::net::set_mtu("lo", size)
    };
    // RTM_NEWLINK
    let heard = move || match receive(socket) {
        Ok(message) => same("its type", &16, &message[4]),
        Err(error) => bail!("receiving: error {error}"),
    };
    let drain = move || while read(socket, 65536).is_ok() {};
    drain();
    change()?;
    Ok(Watch::new(move || {
        match receive(socket) {
            Ok(message) => same("its type", &16, &message[4])?,
            Err(libc::ENOBUFS) => {}
            Err(error) => bail!("receiving: error {error}"),
        }
        drain();
        change()?;
        heard()?;
        drain();
        change()
    })
    .spoiled_by(move || {
        // The error, if there is one, comes first.
        let _ = receive(socket);
        drain();
        Ok(())
    }))
}

/// A process has sent to it alone: from a socket that is still there, and from one that is not.
pub(crate) fn from_process(_: &Setting) -> Result<Watch> {
    const NETLINK_USERSOCK: i32 = 2;
    let (socket, sender) = (
        bound(NETLINK_USERSOCK, 0, 0)?,
        bound(NETLINK_USERSOCK, 0, 0)?,
    );
    let to = name(socket, false)?;
    let send = move |from: i32, text: &[u8]| {
        // SAFETY: the buffers have the lengths that are given.
        let sent = unsafe {
            let (at, len) = (to.as_ptr().cast(), to.len() as u32);
            libc::sendto(from, text.as_ptr().cast(), text.len(), 0, at, len)
        };
        sys("sendto", sent).map(drop)
    };
    let fill = move || {
        send(sender, b"one")?;
        let other = bound(NETLINK_USERSOCK, 0, 0)?;
        send(other, b"two")?;
        close(other);
        anyhow::Ok(())
    };
    fill()?;
    let ports = Watch::keep(move || Ok([name(socket, false)?, name(sender, false)?]))?;
    Ok(ports.and(
        Watch::new(move || {
            for text in [b"one", b"two"] {
                same("a message", text.as_slice(), &read(socket, 100)?)?;
            }
            fill()
        })
        .spoiled_by(move || read(socket, 100).map(drop)),
    ))
}
