//! Unix sockets with names.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use libc::{
    AF_UNIX, SO_ACCEPTCONN, SO_PASSCRED, SO_PEERCRED, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_SEQPACKET,
    SOCK_STREAM, SOL_SOCKET,
};

use crate::kit::files::{close, read, write};
use crate::kit::net::{name, option, pair, receive_with_sender, set_option, socket};
use crate::kit::{SOON, Setting, Watch, args, fd, fork, raw, same, sys, until};

/// An address and its length; abstract if it begins with a zero.
fn address(path: &[u8]) -> ([u8; 110], u64) {
    let mut bytes = [0; 110];
    bytes[..2].copy_from_slice(&(AF_UNIX as u16).to_ne_bytes());
    bytes[2..2 + path.len()].copy_from_slice(path);
    let end = usize::from(path.first() != Some(&0));
    (bytes, (2 + path.len() + end) as u64)
}

pub(super) fn bind(socket: i32, path: &[u8]) -> Result<()> {
    let (bytes, len) = address(path);
    sys(
        "bind",
        raw(
            libc::SYS_bind,
            args([socket as u64, bytes.as_ptr() as u64, len]),
        ),
    )
    .map(drop)
}

pub(super) fn connect(kind: i32, path: &[u8]) -> Result<i32> {
    let socket = socket(AF_UNIX, kind | SOCK_NONBLOCK, 0)?;
    if let Err(error) = connect_to(socket, path) {
        close(socket);
        return Err(error);
    }
    Ok(socket)
}

fn connect_to(socket: i32, path: &[u8]) -> Result<()> {
    let (bytes, len) = address(path);
    let done = raw(
        libc::SYS_connect,
        args([socket as u64, bytes.as_ptr() as u64, len]),
    );
    anyhow::ensure!(done >= 0, "connect: error {}", -done);
    Ok(())
}

pub(super) fn listen(kind: i32, path: &[u8], backlog: i32) -> Result<i32> {
    let listener = socket(AF_UNIX, kind | SOCK_NONBLOCK, 0)?;
    bind(listener, path)?;
    // SAFETY: takes numbers.
    sys("listen", unsafe { libc::listen(listener, backlog) })?;
    Ok(listener)
}

pub(super) fn accept(listener: i32) -> Result<i32> {
    let accepted = raw(
        libc::SYS_accept4,
        args([listener as u64, 0, 0, SOCK_NONBLOCK as u64]),
    );
    Ok(i32::try_from(sys("accept", accepted)?)?)
}

pub(super) fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

/// A connection can be made and used.
fn works(kind: i32, listener: i32, path: &[u8]) -> Result<()> {
    let client = connect(kind, path).context("a new connection")?;
    let server = accept(listener)?;
    write(client, b"hello")?;
    let got = read(server, 100)?;
    let own = name(server, false)?;
    close(client);
    close(server);
    same("what came", b"hello".as_slice(), &got)?;
    same("the accepted one's name", &name(listener, false)?, &own)
}

/// The listener's name and state, and that it works.
fn serving(kind: i32, listener: i32, path: Vec<u8>) -> Result<Watch> {
    let observe = move || {
        Ok((
            name(listener, false)?,
            option(listener, SOL_SOCKET, SO_ACCEPTCONN)?,
        ))
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || {
            let other = socket(AF_UNIX, kind, 0)?;
            // SAFETY: both are descriptors of ours.
            fd("dup2", unsafe { libc::dup2(other, listener) }).map(drop)
        })
        .and(Watch::new(move || works(kind, listener, &path))))
}

/// Stream and seqpacket.
pub(crate) fn listening(setting: &Setting) -> Result<Watch> {
    let (one, two) = (bytes(&setting.fresh("one")), bytes(&setting.fresh("two")));
    let first = serving(SOCK_STREAM, listen(SOCK_STREAM, &one, 5)?, one)?;
    let second = serving(SOCK_SEQPACKET, listen(SOCK_SEQPACKET, &two, 5)?, two)?;
    Ok(first.and(second))
}

/// A name that is no path.
pub(crate) fn abstract_name(_: &Setting) -> Result<Watch> {
    let path = format!("\0kupgrade-{}", std::process::id()).into_bytes();
    serving(SOCK_STREAM, listen(SOCK_STREAM, &path, 5)?, path)
}

/// Two clients wait, one has sent something; their order is kept.
pub(crate) fn pending(setting: &Setting) -> Result<Watch> {
    let path = bytes(&setting.fresh("socket"));
    let listener = listen(SOCK_STREAM, &path, 5)?;
    let queue = move || {
        let clients = [connect(SOCK_STREAM, &path)?, connect(SOCK_STREAM, &path)?];
        write(clients[0], b"early")?;
        anyhow::Ok(clients)
    };
    let mut clients = queue()?;
    Ok(Watch::new(move || {
        let servers = [accept(listener)?, accept(listener)?];
        same("a third", &true, &accept(listener).is_err())?;
        // Who sends to a socket that nobody has yet is noted with what it sends.
        set_option(servers[0], SOL_SOCKET, SO_PASSCRED, 1)?;
        let (data, sender) = receive_with_sender(servers[0])?;
        same("what was sent before", b"early".as_slice(), &data)?;
        same("who sent it", &std::process::id().cast_signed(), &sender)?;
        write(servers[1], b"answer")?;
        same("the answer", b"answer".as_slice(), &read(clients[1], 100)?)?;
        servers.into_iter().chain(clients).for_each(close);
        clients = queue()?;
        Ok(())
    })
    .spoiled_by(move || accept(listener).map(drop)))
}

/// Clients wait who have come to two processes that listened, one after the other.
pub(crate) fn inherited(setting: &Setting) -> Result<Watch> {
    let path = bytes(&setting.fresh("socket"));
    let listener = listen(SOCK_STREAM, &path, 5)?;
    let first = connect(SOCK_STREAM, &path)?;
    let heir = fork(move || {
        // SAFETY: takes numbers.
        unsafe { libc::listen(listener, 5) };
        loop {
            std::thread::park();
        }
    })?;
    let sees = move |end| {
        let seen = option(end, SOL_SOCKET, SO_PEERCRED)?;
        anyhow::Ok(i32::from_ne_bytes([0, 1, 2, 3].map(|at| seen[at])))
    };
    let heir_listens = move || sees(listener).is_ok_and(|pid| pid == heir);
    until("the child listens", SOON, heir_listens)?;
    let second = connect(SOCK_STREAM, &path)?;
    let observe = move || Ok([sees(first)?, sees(second)?, sees(listener)?]);
    Ok(Watch::keep(observe)?.spoiled_by(move || {
        // SAFETY: both are descriptors of ours.
        fd("dup2", unsafe { libc::dup2(second, first) }).map(drop)
    }))
}

/// The listener is closed, the connection lives; names and peers are known.
pub(crate) fn connected(setting: &Setting) -> Result<Watch> {
    let path = bytes(&setting.fresh("socket"));
    let listener = listen(SOCK_STREAM, &path, 5)?;
    let client = connect(SOCK_STREAM, &path)?;
    let server = accept(listener)?;
    close(listener);
    let exchange = move || {
        write(client, b"question")?;
        write(server, b"answer")
    };
    exchange()?;
    let observe = move || {
        let mut all = Vec::new();
        for end in [client, server] {
            all.extend([
                name(end, false)?,
                name(end, true)?,
                option(end, SOL_SOCKET, SO_PEERCRED)?,
            ]);
        }
        Ok(all)
    };
    Ok(Watch::keep(observe)?.and(
        Watch::new(move || {
            same("the question", b"question".as_slice(), &read(server, 100)?)?;
            same("the answer", b"answer".as_slice(), &read(client, 100)?)?;
            exchange()
        })
        .spoiled_by(move || read(server, 1).map(drop)),
    ))
}

/// Two names lead to it; the one it was bound to is gone.
pub(crate) fn linked(setting: &Setting) -> Result<Watch> {
    let [bound, one, two] = ["bound", "one", "two"].map(|name| setting.fresh(name));
    let listener = listen(SOCK_STREAM, &bytes(&bound), 5)?;
    fs::rename(&bound, &one)?;
    fs::hard_link(&one, &two)?;
    let mode = |path: &Path| anyhow::Ok(fs::metadata(path)?.permissions());
    fs::set_permissions(&two, std::os::unix::fs::PermissionsExt::from_mode(0o640))?;
    let paths = [one.clone(), two];
    Ok(
        Watch::keep(move || Ok([mode(&paths[0])?, mode(&paths[1])?]))?
            .and(Watch::new(move || {
                for path in [one.clone(), one.with_file_name(second(&one))] {
                    works(SOCK_STREAM, listener, &bytes(&path))?;
                }
                Ok(())
            }))
            .spoiled_by({
                let path = setting.path("two");
                move || Ok(fs::remove_file(&path)?)
            }),
    )
}

/// Bound to a name of the moment that is gone; another one leads to it, as supervisord makes its socket.
pub(crate) fn relinked(setting: &Setting) -> Result<Watch> {
    let [bound, kept] = ["moment", "kept"].map(|name| setting.fresh(name));
    let listener = listen(SOCK_STREAM, &bytes(&bound), 5)?;
    fs::hard_link(&bound, &kept)?;
    fs::remove_file(&bound)?;
    let dir = kept.parent().context("a directory")?.to_owned();
    let own = [&bound, &kept].map(|path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    });
    let entries = move || {
        let here = fs::read_dir(&dir)?.map(|entry| Ok(entry?.file_name()));
        let mut names = here.collect::<Result<Vec<_>>>()?;
        // Others have files there, too.
        names.retain(|name| own.iter().any(|own| has(name, own)));
        names.sort();
        Ok(names)
    };
    let path = bytes(&kept);
    Ok(Watch::keep(entries)?
        .and(Watch::new(move || works(SOCK_STREAM, listener, &path)))
        .spoiled_by(move || Ok(fs::remove_file(&kept)?)))
}

/// Whether `part` is in a name.
fn has(name: &std::ffi::OsStr, part: &str) -> bool {
    name.to_string_lossy().contains(part)
}

/// The name of the second path.
fn second(one: &Path) -> String {
    let name = one.file_name().unwrap_or_default().to_string_lossy();
    name.replace("one", "two")
}

/// The connections have the listener's options, also of those who wait when they are changed.
pub(crate) fn passed_on(setting: &Setting) -> Result<Watch> {
    let path = bytes(&setting.fresh("socket"));
    let listener = listen(SOCK_STREAM, &path, 5)?;
    let queue = move || {
        set_option(listener, SOL_SOCKET, SO_PASSCRED, 1)?;
        let one = connect(SOCK_STREAM, &path)?;
        set_option(listener, SOL_SOCKET, SO_PASSCRED, 0)?;
        let two = connect(SOCK_STREAM, &path)?;
        anyhow::Ok([one, two])
    };
    let take = move || {
        let mut found = Vec::new();
        for _ in 0..2 {
            let server = accept(listener)?;
            found.push(option(server, SOL_SOCKET, SO_PASSCRED)?);
            close(server);
        }
        anyhow::Ok(found)
    };
    // Which kernels do that when they accept, and which when they connect, is their own affair.
    queue()?.into_iter().for_each(close);
    let expected = take()?;
    let mut clients = queue()?;
    Ok(Watch::new(move || {
        same("the options", &expected, &take()?)?;
        clients.into_iter().for_each(close);
        clients = queue()?;
        Ok(())
    })
    .spoiled_by(move || accept(listener).map(drop)))
}

/// Nobody can connect any more, but those who wait are served.
pub(crate) fn unlinked(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("socket");
    let listener = listen(SOCK_STREAM, &bytes(&path), 50)?;
    // As many as checks there may be.
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(connect(SOCK_STREAM, &bytes(&path))?);
    }
    clients.reverse();
    fs::remove_file(&path)?;
    let own = name(listener, false)?;
    Ok(Watch::new(move || {
        same("its name", &own, &name(listener, false)?)?;
        same("the path", &false, &fs::exists(&path)?)?;
        let client = clients.pop().context("no client is left")?;
        let server = accept(listener)?;
        write(client, b"hello")?;
        same("what came", b"hello".as_slice(), &read(server, 100)?)?;
        close(client);
        close(server);
        Ok(())
    })
    .spoiled_by(move || accept(listener).map(drop)))
}

/// More clients wait than the listener would take by now.
pub(crate) fn lowered(setting: &Setting) -> Result<Watch> {
    const CLIENTS: usize = 6;
    let path = bytes(&setting.fresh("lowered"));
    let listener = listen(SOCK_STREAM, &path, 8)?;
    let come = {
        let path = path.clone();
        move || {
            // SAFETY: takes numbers.
            sys("listen", unsafe { libc::listen(listener, 8) })?;
            let clients = (0..CLIENTS).map(|_| connect(SOCK_STREAM, &path));
            let clients = clients.collect::<Result<Vec<_>>>()?;
            // SAFETY: takes numbers.
            sys("listen", unsafe { libc::listen(listener, 1) })?;
            anyhow::Ok(clients)
        }
    };
    let mut clients = come()?;
    Ok(Watch::new(move || {
        same(
            "it takes no more",
            &true,
            &connect(SOCK_STREAM, &path).is_err(),
        )?;
        for client in clients.drain(..) {
            let server = accept(listener)?;
            write(client, b"hello")?;
            same("what came", b"hello".as_slice(), &read(server, 100)?)?;
            close(client);
            close(server);
        }
        clients = come()?;
        Ok(())
    })
    .spoiled_by(move || {
        for _ in 0..CLIENTS {
            close(accept(listener)?);
        }
        Ok(())
    }))
}

/// Two with names, each the other's peer: their queues take more than those of others.
pub(crate) fn full_datagrams(setting: &Setting) -> Result<Watch> {
    let names = ["one", "two"].map(|name| bytes(&setting.fresh(name)));
    let kind = SOCK_DGRAM | SOCK_NONBLOCK;
    let ends = [socket(AF_UNIX, kind, 0)?, socket(AF_UNIX, kind, 0)?];
    for (end, name) in ends.iter().zip(&names) {
        bind(*end, name)?;
    }
    connect_to(ends[0], &names[1])?;
    connect_to(ends[1], &names[0])?;
    let mut count = 0_u32;
    while write(ends[0], &count.to_ne_bytes()).is_ok() {
        count += 1;
    }
    same("more than others may send", &true, &(count > 50))?;
    let mut next = 0_u32;
    Ok(Watch::new(move || {
        same("it is full", &true, &write(ends[0], b"more").is_err())?;
        for _ in 0..3 {
            same("in order", &next.to_ne_bytes().to_vec(), &read(ends[1], 9)?)?;
            next += 1;
        }
        while write(ends[0], &count.to_ne_bytes()).is_ok() {
            count += 1;
        }
        Ok(())
    })
    .spoiled_by(move || read(ends[1], 9).map(drop)))
}

/// A bound receiver; one sender is bound and connected, one is connected only.
pub(crate) fn datagrams(setting: &Setting) -> Result<Watch> {
    let path = bytes(&setting.fresh("receiver"));
    let from = bytes(&setting.fresh("sender"));
    let receiver = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0)?;
    bind(receiver, &path)?;
    let named = connect(SOCK_DGRAM, &path)?;
    bind(named, &from)?;
    let nameless = connect(SOCK_DGRAM, &path)?;
    let fill = move || {
        write(named, b"from the named one")?;
        write(nameless, b"from the other")
    };
    fill()?;
    let names = Watch::keep(move || {
        Ok([
            name(receiver, false)?,
            name(named, false)?,
            name(named, true)?,
            name(nameless, true)?,
        ])
    })?;
    Ok(names.and(
        Watch::new(move || {
            for (text, sender) in [
                (b"from the named one".as_slice(), Some(&from)),
                (b"from the other", None),
            ] {
                let (mut bytes, mut address, mut len) = ([0_u8; 100], [0_u8; 110], 110_u32);
                let got = raw(
                    libc::SYS_recvfrom,
                    [
                        receiver as u64,
                        bytes.as_mut_ptr() as u64,
                        100,
                        0,
                        address.as_mut_ptr() as u64,
                        &raw mut len as u64,
                    ],
                );
                same("a datagram", text, &bytes[..got.max(0) as usize])?;
                // An address without a name has its family only, or nothing at all.
                let path = address
                    .get(2..(len as usize).max(2) - usize::from(len > 2))
                    .unwrap_or_default();
                same(
                    "its sender",
                    &sender.map_or(&[][..], |from| &from[..]),
                    &path,
                )?;
            }
            fill()
        })
        .spoiled_by(move || read(receiver, 1).map(drop)),
    ))
}

/// A pair of which one end is connected to a named socket since, that again to another one, which has it in turn.
pub(crate) fn turned(setting: &Setting) -> Result<Watch> {
    let paths = ["turned-first", "turned-second"].map(|name| bytes(&setting.fresh(name)));
    let [first, second] = [(); 2].map(|()| socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0));
    let (first, second) = (first?, second?);
    bind(first, &paths[0])?;
    bind(second, &paths[1])?;
    let [left, turned] = pair(SOCK_DGRAM | SOCK_NONBLOCK)?;
    write(turned, b"before")?;
    let reach = |socket: i32, path: &[u8]| {
        let (bytes, len) = address(path);
        let done = raw(
            libc::SYS_connect,
            args([socket as u64, bytes.as_ptr() as u64, len]),
        );
        sys("connect", done).map(drop)
    };
    reach(turned, &paths[0])?;
    write(turned, b"turned")?;
    reach(second, &paths[0])?;
    reach(first, &paths[1])?;
    let fill = move || {
        write(second, b"second")?;
        write(first, b"first")
    };
    fill()?;
    let mut first_time = true;
    Ok(Watch::new(move || {
        if first_time {
            same("what the pair had", b"before".as_slice(), &read(left, 100)?)?;
            same("the turned one's", b"turned".as_slice(), &read(first, 100)?)?;
            first_time = false;
        }
        let byte = b"x".as_ptr() as u64;
        let sent = raw(libc::SYS_write, args([left as u64, byte, 1]));
        same("sending from what is left", &-i64::from(libc::EPERM), &sent)?;
        for (socket, text) in [(first, &b"second"[..]), (second, b"first")] {
            same("a message", text, &read(socket, 100)?)?;
        }
        let third = connect(SOCK_DGRAM, &paths[0]).map(close);
        same("others may connect", &false, &third.is_ok())?;
        fill()
    })
    .spoiled_by(move || read(first, 1).map(drop)))
}

/// Fresh ones, and one that is bound and neither listens nor is connected.
pub(crate) fn unbound(setting: &Setting) -> Result<Watch> {
    let fresh = socket(AF_UNIX, SOCK_STREAM, 0)?;
    let bound = socket(AF_UNIX, SOCK_STREAM, 0)?;
    bind(bound, &bytes(&setting.fresh("bound")))?;
    let observe = move || {
        let listening = [fresh, bound].map(|socket| option(socket, SOL_SOCKET, SO_ACCEPTCONN).ok());
        let peers = [fresh, bound].map(|socket| name(socket, true).is_ok());
        Ok((name(fresh, false)?, name(bound, false)?, listening, peers))
    };
    let other = setting.fresh("other");
    Ok(Watch::keep(observe)?.spoiled_by(move || bind(fresh, &bytes(&other))))
}
