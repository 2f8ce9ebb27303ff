//! TCP connections: urgent data, more than fits, errors that nobody was told.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, Result};
use libc::{
    AF_INET, ECONNREFUSED, ECONNRESET, EPIPE, MSG_OOB, POLLERR, POLLHUP, POLLIN, POLLOUT, POLLPRI,
    SO_LINGER, SO_OOBINLINE, SO_RCVBUF, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET,
};

use crate::kit::files::{read, ready};
use crate::kit::net::{option, set_option, set_option_bytes, socket};
use crate::kit::{SOON, Setting, Watch, loopback, same, sys, until};

/// Both ends of a connection, which do not block.
pub(super) fn pair() -> Result<[TcpStream; 2]> {
    pair_at(|_| Ok(()))
}

/// The same; the listening socket is prepared before anybody connects.
fn pair_at(prepare: impl FnOnce(RawFd) -> Result<()>) -> Result<[TcpStream; 2]> {
    loopback()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    prepare(listener.as_raw_fd())?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_nonblocking(true)?;
        end.set_nodelay(true)?;
    }
    Ok([client, server])
}

fn send_urgent(to: &TcpStream, byte: u8) -> Result<()> {
    // SAFETY: one byte is read.
    let sent = unsafe { libc::send(to.as_raw_fd(), (&raw const byte).cast(), 1, MSG_OOB) };
    sys("send", sent).map(drop)
}

fn urgent_byte(fd: RawFd) -> Option<u8> {
    let mut byte = 0_u8;
    // SAFETY: one byte is written.
    let got = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, MSG_OOB) };
    (got == 1).then_some(byte)
}

/// Everything, read by read.
fn parts(fd: RawFd) -> Vec<String> {
    let mut parts = Vec::new();
    while let Ok(part) = read(fd, 100) {
        parts.push(String::from_utf8_lossy(&part).into_owned());
    }
    parts
}

/// Bytes that a read gets, what poll(2) says, and whether it is at the mark.
fn shown(fd: RawFd) -> Result<(i32, i16, i32)> {
    let number = |request| {
        let mut value = 0_i32;
        // SAFETY: both requests write one number.
        sys("ioctl", unsafe { libc::ioctl(fd, request, &raw mut value) })?;
        anyhow::Ok(value)
    };
    const SIOCATMARK: u64 = 0x8905;
    Ok((
        number(libc::FIONREAD)?,
        ready(fd, POLLIN | POLLPRI)?,
        number(SIOCATMARK)?,
    ))
}

/// The urgent byte is unread, read, at the front, or in line.
pub(crate) fn urgent(_: &Setting) -> Result<Watch> {
    let pairs = [pair()?, pair()?, pair()?, pair()?];
    let ends = pairs.each_ref().map(|[_, to]| to.as_raw_fd());
    let [unread, taken, front, inline] = ends;
    set_option(inline, SOL_SOCKET, SO_OOBINLINE, 1)?;
    let fill = move || {
        for (at, [from, to]) in pairs.iter().enumerate() {
            if at != 2 {
                (&*from).write_all(b"before")?;
            }
            send_urgent(from, b'0' + at as u8)?;
            (&*from).write_all(b"after")?;
            let all = || {
                let urgent = ready(to.as_raw_fd(), POLLPRI).is_ok_and(|events| events != 0);
                let mut bytes = [0; 100];
                // SAFETY: the buffer has the length that is given.
                let got = unsafe {
                    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
                    libc::recv(to.as_raw_fd(), bytes.as_mut_ptr().cast(), 100, flags)
                };
                urgent && got > 0
            };
            until("urgent data", SOON, all)?;
        }
        same("a byte that is read", &Some(b'1'), &urgent_byte(taken))
    };
    fill()?;
    let look = Watch::keep(move || ends.into_iter().map(shown).collect::<Result<Vec<_>>>())?;
    Ok(look.and(
        Watch::new(move || {
            same("unread", &Some(b'0'), &urgent_byte(unread))?;
            same("at the front", &Some(b'2'), &urgent_byte(front))?;
            let found = ends.map(parts);
            let want = [
                vec!["before", "after"],
                vec!["before", "after"],
                vec!["after"],
            ];
            same(
                "what is read",
                want.as_slice(),
                &found
                    .each_ref()
                    .map(|all| all.iter().map(String::as_str).collect::<Vec<_>>())[..3],
            )?;
            same("in line", "before3after", &found[3].concat())?;
            fill()
        })
        .spoiled_by(move || {
            urgent_byte(unread);
            Ok(())
        }),
    ))
}

/// Numbers until no more fit; how many bytes that were.
fn numbers(to: &TcpStream) -> usize {
    numbers_from(to, 0)
}

/// As [`numbers`], from a byte of them on.
fn numbers_from(to: &TcpStream, first: usize) -> usize {
    let numbers = (0..200_000_u32).flat_map(u32::to_ne_bytes);
    let bytes: Vec<u8> = numbers.collect();
    let mut sent = first;
    // Small packets take more room than was promised: the rest is thrown away, and sent ever more slowly.
    while let Ok(some) = (&*to).write(&bytes[sent..bytes.len().min(sent + 50_000)]) {
        sent += some;
    }
    sent - first
}

/// Everything that was sent, in order.
fn all_numbers(from: &TcpStream, count: usize) -> Result<()> {
    from.set_nonblocking(false)?;
    from.set_read_timeout(Some(SOON / 2))?;
    let mut bytes = vec![0; count];
    (&*from).read_exact(&mut bytes)?;
    let wrong = (0_u32..)
        .zip(bytes.chunks(4))
        .find(|(number, bytes)| !number.to_ne_bytes().starts_with(bytes));
    same("a number that is wrong", &None, &wrong)?;
    from.set_nonblocking(true)?;
    Ok(())
}

/// One end has written until nothing fits any more; the same with its last byte sent. A little more may fit
/// afterwards: how much room bytes take depends on the packets that they came in.
pub(crate) fn full(_: &Setting) -> Result<Watch> {
    // A window that was once larger than the buffer would have the kernel throw away what came, and send it again
    // ever more slowly.
    let small = || {
        let [from, to] = pair_at(|listener| set_option(listener, SOL_SOCKET, SO_RCVBUF, 100_000))?;
        set_option(from.as_raw_fd(), SOL_SOCKET, libc::SO_SNDBUF, 100_000)?;
        anyhow::Ok([from, to])
    };
    let pairs = [small()?, small()?];
    let fill = |[from, _]: &[TcpStream; 2]| {
        let sent = numbers(from);
        // The kernel needs a moment until nothing moves any more.
        std::thread::sleep(std::time::Duration::from_millis(500));
        sent + numbers_from(from, sent)
    };
    let sent = pairs.each_ref().map(fill);
    pairs[1][0].shutdown(Shutdown::Write)?;
    let first = pairs[0][1].try_clone()?;
    let mut pairs = Some(pairs);
    let mut count = sent[0];
    let mut kept = None;
    Ok(Watch::new(move || {
        if let Some([one, ended]) = pairs.take() {
            all_numbers(&ended[1], sent[1])?;
            same("the end", &0, &(&ended[1]).read(&mut [0])?)?;
            kept = Some(one);
        }
        let pair = kept.as_ref().context("a connection")?;
        all_numbers(&pair[1], count)?;
        same("nothing more", &true, &(&pair[1]).read(&mut [0]).is_err())?;
        count = fill(pair);
        Ok(())
    })
    .spoiled_by(move || {
        (&first).read_exact(&mut [0; 4])?;
        Ok(())
    }))
}

/// Much has come: as much is to be read as before.
pub(crate) fn large(_: &Setting) -> Result<Watch> {
    let [from, to] = pair()?;
    // More than net.core.rmem_max allows on many hosts.
    set_option(to.as_raw_fd(), SOL_SOCKET, libc::SO_RCVBUFFORCE, 4 << 20)?;
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    from.set_nonblocking(false)?;
    let fd = to.as_raw_fd();
    let fill = {
        let bytes = bytes.clone();
        move || {
            let sender = from.try_clone()?;
            let sent = bytes.clone();
            let thread = std::thread::spawn(move || (&sender).write_all(&sent));
            let mut got = 0;
            while got < 300_000 {
                got += read(fd, 300_000 - got).map_or(0, |part| part.len());
            }
            thread.join().map_err(|_| anyhow::anyhow!("a thread"))??;
            let want = 700_000;
            until("all of it", SOON, || {
                shown(fd).is_ok_and(|(count, ..)| count == want)
            })
        }
    };
    fill()?;
    let count = Watch::keep(move || Ok(shown(fd)?.0))?;
    Ok(count.and(
        Watch::new(move || {
            let mut got = vec![0; 700_000];
            to.set_nonblocking(false)?;
            (&to).read_exact(&mut got)?;
            to.set_nonblocking(true)?;
            same("the bytes", &true, &(got == bytes[300_000..]))?;
            fill()
        })
        .spoiled_by(move || read(fd, 1).map(drop)),
    ))
}

/// The error that waits.
fn error(fd: RawFd) -> Result<i32> {
    let value = option(fd, SOL_SOCKET, libc::SO_ERROR)?;
    Ok(i32::from_ne_bytes(value[..4].try_into()?))
}

/// Breaks a connection from the other end.
fn broken_pair(text: &[u8], finished: bool) -> Result<TcpStream> {
    let [mut other, own] = pair()?;
    other.write_all(text)?;
    if finished {
        other.shutdown(Shutdown::Write)?;
    }
    let linger = [1_i32, 0].map(i32::to_ne_bytes).concat();
    set_option_bytes(other.as_raw_fd(), SOL_SOCKET, SO_LINGER, &linger)?;
    drop(other);
    let told = || ready(own.as_raw_fd(), POLLIN).is_ok_and(|events| events & POLLERR != 0);
    until("a broken connection", SOON, told)?;
    Ok(own)
}

/// A connection to where nobody listens.
fn refused() -> Result<RawFd> {
    loopback()?;
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)?;
    let family = (AF_INET as u16).to_ne_bytes();
    let port = nobody.port().to_be_bytes();
    let address = [&family[..], &port, &[127, 0, 0, 1], &[0; 8]].concat();
    // SAFETY: the address has the length that is given.
    unsafe { libc::connect(fd, address.as_ptr().cast(), 16) };
    let told = || ready(fd, POLLIN).is_ok_and(|events| events & POLLERR != 0);
    until("a refusal", SOON, told)?;
    Ok(fd)
}

/// Broken while it had sent more than was acknowledged: before the other end had finished, and after that.
pub(crate) fn broken_sending(_: &Setting) -> Result<Watch> {
    let listener = {
        loopback()?;
        TcpListener::bind("127.0.0.1:0")?
    };
    let mut all = Vec::new();
    for finished in [false, true] {
        let mut own = TcpStream::connect(listener.local_addr()?)?;
        let (mut other, _) = listener.accept()?;
        if !finished {
            // Closed with something unread: it is broken at once, and by what comes after that.
            own.write_all(b"unread")?;
            set_option(other.as_raw_fd(), SOL_SOCKET, libc::SO_RCVBUF, 4096)?;
            own.set_nonblocking(true)?;
            while own.write(&[7; 50_000]).is_ok() {}
        }
        other.write_all(b"last words")?;
        drop(other);
        if finished {
            own.write_all(b"to nobody")?;
        }
        let told = || ready(own.as_raw_fd(), POLLIN).is_ok_and(|events| events & POLLERR != 0);
        until("a broken connection", SOON, told)?;
        all.push(own);
    }
    let fds = [all[0].as_raw_fd(), all[1].as_raw_fd()];
    let events = Watch::keep(move || {
        let _held = &all;
        let asked = POLLIN | POLLERR | POLLHUP | POLLOUT;
        Ok([ready(fds[0], asked)?, ready(fds[1], asked)?])
    })?;
    let mut checks = 0;
    Ok(events.and(
        Watch::new(move || {
            checks += 1;
            // To look is to be told: so it is looked at once, when it was carried twice.
            if checks != 4 {
                return Ok(());
            }
            let errors = [error(fds[0])?, error(fds[1])?];
            same("errors", &[ECONNRESET, EPIPE], &errors)
        })
        .spoiled_by(move || error(fds[1]).map(drop)),
    ))
}

/// Broken with and without data before it, broken after it had finished, refused, and one whose error was told.
pub(crate) fn broken(_: &Setting) -> Result<Watch> {
    let streams = [
        broken_pair(b"", false)?,
        broken_pair(b"last words", false)?,
        broken_pair(b"last words", true)?,
    ];
    let (refusal, told) = (refused()?, refused()?);
    same("an error", &ECONNREFUSED, &error(told)?)?;
    let [reset, words, pipe] = streams.each_ref().map(AsRawFd::as_raw_fd);
    let all = [reset, words, pipe, refusal, told];
    let events = Watch::keep(move || {
        let _held = &streams;
        let asked = POLLIN | POLLERR | POLLHUP | POLLOUT;
        all.into_iter()
            .map(|fd| ready(fd, asked))
            .collect::<Result<Vec<_>>>()
    })?;
    // To look is to be told: so it is looked at once, when it was carried twice.
    let mut checks = 0;
    Ok(events.and(
        Watch::new(move || {
            checks += 1;
            if checks != 4 {
                return Ok(());
            }
            same(
                "what came before",
                b"last words".as_slice(),
                &read(words, 100)?,
            )?;
            same(
                "what came before",
                b"last words".as_slice(),
                &read(pipe, 100)?,
            )?;
            let errors = all.map(|fd| error(fd).unwrap_or(-1));
            same(
                "errors",
                &[ECONNRESET, ECONNRESET, EPIPE, ECONNREFUSED, 0],
                &errors,
            )
        })
        .spoiled_by(move || error(reset).map(drop)),
    ))
}
