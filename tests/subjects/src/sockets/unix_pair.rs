//! Pairs of unix sockets.

use anyhow::{Result, bail};
use libc::{
    AF_UNIX, POLLERR, POLLHUP, POLLIN, POLLRDHUP, SO_PASSCRED, SO_RCVLOWAT, SO_RCVTIMEO, SO_SNDBUF,
    SO_SNDTIMEO, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET,
};

use crate::kit::files::{close, read, ready, seen, write};
use crate::kit::net::{name, option, pair, set_option, set_option_bytes};
use crate::kit::{Kin, Setting, Watch, same, sys};

/// Bytes in both directions, more than one buffer of the kernel's.
pub(crate) fn stream(_: &Setting) -> Result<Watch> {
    let [one, two] = pair(SOCK_STREAM | SOCK_NONBLOCK)?;
    let long: Vec<u8> = (0..50_000_u32).map(|at| (at * 31) as u8).collect();
    let fill = {
        let long = long.clone();
        move || {
            write(one, &long)?;
            write(two, b"back")
        }
    };
    fill()?;
    let flags =
        Watch::keep(move || Ok([one, two].map(|end| seen(end).ok().map(|seen| (seen.0, seen.1)))))?;
    Ok(flags.and(
        Watch::new(move || {
            let mut all = Vec::new();
            while let Ok(more) = read(two, 7_000) {
                all.extend(more);
            }
            if all != long {
                bail!("{} bytes came, or others", all.len());
            }
            same("the other direction", b"back".as_slice(), &read(one, 100)?)?;
            fill()
        })
        .spoiled_by(move || read(two, 1).map(drop)),
    ))
}

/// Messages with their boundaries, an empty one too.
fn messages(kind: i32) -> Result<Watch> {
    let [one, two] = pair(kind | SOCK_NONBLOCK)?;
    let sent: [&[u8]; 4] = [b"first", b"", b"third message", &[7; 3000]];
    let fill = move || {
        sent.iter().try_for_each(|message| write(one, message))?;
        write(two, b"back")
    };
    fill()?;
    Ok(Watch::new(move || {
        for message in sent {
            same("a message", message, &read(two, 10_000)?)?;
        }
        same("one more", &true, &read(two, 1).is_err())?;
        same("the other direction", b"back".as_slice(), &read(one, 100)?)?;
        fill()
    })
    .spoiled_by(move || read(two, 1).map(drop)))
}

/// Datagrams.
pub(crate) fn datagram(_: &Setting) -> Result<Watch> {
    messages(SOCK_DGRAM)
}

/// Connected, with boundaries.
pub(crate) fn seqpacket(_: &Setting) -> Result<Watch> {
    messages(SOCK_SEQPACKET)
}

fn shut(socket: i32, how: i32) -> Result<()> {
    // SAFETY: takes numbers.
    sys("shutdown", unsafe { libc::shutdown(socket, how) }).map(drop)
}

/// One direction closed, data still in it.
pub(crate) fn shutdown(_: &Setting) -> Result<Watch> {
    // SAFETY: a signal that would end the subject is ignored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let [one, two] = pair(SOCK_STREAM | SOCK_NONBLOCK)?;
    let [reader, writer] = pair(SOCK_STREAM | SOCK_NONBLOCK)?;
    write(one, &[b'x'; 1000])?;
    shut(one, libc::SHUT_WR)?;
    shut(reader, libc::SHUT_RD)?;
    let mut left = 1000;
    Ok(Watch::new(move || {
        same("writing is over", &true, &write(one, b"x").is_err())?;
        same(
            "the peer knows",
            &POLLRDHUP,
            &(ready(two, POLLRDHUP)? & POLLRDHUP),
        )?;
        left -= read(two, 10)?.len();
        let mut waiting = 0;
        // SAFETY: the kernel writes one int.
        sys("FIONREAD", unsafe {
            libc::ioctl(two, libc::FIONREAD, &raw mut waiting)
        })?;
        same("data before the end", &left, &(waiting as usize))?;
        write(two, b"still open")?;
        same(
            "the other direction",
            b"still open".as_slice(),
            &read(one, 100)?,
        )?;
        same("reading is over", &0, &read(reader, 1)?.len())?;
        same("nobody reads", &true, &write(writer, b"x").is_err())
    })
    .spoiled_by(move || shut(two, libc::SHUT_WR)))
}

/// The peer is gone; what it has sent is not.
pub(crate) fn widowed(_: &Setting) -> Result<Watch> {
    // SAFETY: a signal that would end the subject is ignored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let [stream, gone] = pair(SOCK_STREAM | SOCK_NONBLOCK)?;
    write(gone, &[b'x'; 1000])?;
    close(gone);
    let [empty, gone] = pair(SOCK_SEQPACKET | SOCK_NONBLOCK)?;
    close(gone);
    // Closed with something unread: an error waits.
    let [reset, gone] = pair(SOCK_SEQPACKET | SOCK_NONBLOCK)?;
    write(reset, b"never read")?;
    close(gone);
    let mut left = 1000;
    Ok(Watch::new(move || {
        same("the error", &POLLERR, &(ready(reset, 0)? & POLLERR))?;
        same(
            "the peer is gone",
            &POLLHUP,
            &(ready(stream, POLLIN)? & POLLHUP),
        )?;
        left -= read(stream, 10)?.len();
        let mut waiting = 0;
        // SAFETY: the kernel writes one int.
        sys("FIONREAD", unsafe {
            libc::ioctl(stream, libc::FIONREAD, &raw mut waiting)
        })?;
        same("its last words", &left, &(waiting as usize))?;
        same("writing", &true, &write(stream, b"x").is_err())?;
        same(
            "the empty one",
            &(POLLHUP, 0),
            &(ready(empty, POLLIN)? & POLLHUP, read(empty, 1)?.len()),
        )
    })
    .spoiled_by(move || read(stream, 500).map(drop)))
}

/// The peer is gone, has not read everything, and has sent packets: the error is told first. What was told is told no
/// more, so each look takes another socket.
pub(crate) fn reset(_: &Setting) -> Result<Watch> {
    let make = || {
        let [one, gone] = pair(SOCK_SEQPACKET | SOCK_NONBLOCK)?;
        for packet in [&b"last"[..], b"", b"words"] {
            write(gone, packet)?;
        }
        write(one, b"never read")?;
        close(gone);
        anyhow::Ok(one)
    };
    let mut all = vec![make()?];
    let last = make()?;
    Ok(Watch::new(move || {
        for one in [all.pop().unwrap_or(-1), last] {
            same("the error", &POLLERR, &(ready(one, 0)? & POLLERR))?;
            let mut waiting = 0;
            // SAFETY: the kernel writes one int.
            sys("FIONREAD", unsafe {
                libc::ioctl(one, libc::FIONREAD, &raw mut waiting)
            })?;
            same("what waits", &9, &waiting)?;
            if one != last {
                let error = read(one, 9).err().map(|error| error.to_string());
                let told = error.is_some_and(|text| text.ends_with(&libc::ECONNRESET.to_string()));
                same("the error is told", &true, &told)?;
                let read = [read(one, 9)?, read(one, 9)?, read(one, 9)?, read(one, 9)?];
                let sent = [&b"last"[..], b"", b"words", b""].map(<[u8]>::to_vec);
                same("the packets", &sent, &read)?;
                close(one);
            }
        }
        all.push(make()?);
        Ok(())
    })
    .spoiled_by(move || {
        let _ = read(last, 9);
        Ok(())
    }))
}

/// One end in each process.
pub(crate) fn family(setting: &Setting) -> Result<Watch> {
    let [ours, theirs] = pair(SOCK_STREAM)?;
    write(ours, b"question")?;
    let mut child = Kin::start(setting, "child", move |_| {
        close(ours);
        Ok(Watch::new(move || {
            same(
                "what the child reads",
                b"question".as_slice(),
                &read(theirs, 8)?,
            )?;
            write(theirs, b"answer")
        }))
    })?;
    close(theirs);
    Ok(Watch::new(move || {
        child.check()?;
        same("the answer", b"answer".as_slice(), &read(ours, 100)?)?;
        write(ours, b"question")
    }))
}

/// Numbers and times that can be set and read.
pub(crate) fn options(_: &Setting) -> Result<Watch> {
    let [one, two] = pair(SOCK_STREAM)?;
    set_option(one, SOL_SOCKET, SO_PASSCRED, 1)?;
    set_option(one, SOL_SOCKET, SO_SNDBUF, 30_000)?;
    set_option(one, SOL_SOCKET, SO_RCVLOWAT, 5)?;
    for (name, seconds) in [(SO_RCVTIMEO, 7_i64), (SO_SNDTIMEO, 9)] {
        let mut time = [0_u8; 16];
        time[..8].copy_from_slice(&seconds.to_ne_bytes());
        set_option_bytes(one, SOL_SOCKET, name, &time)?;
    }
    let observe = move || {
        let mut all = Vec::new();
        for end in [one, two] {
            for name in [
                SO_PASSCRED,
                SO_SNDBUF,
                libc::SO_RCVBUF,
                SO_RCVLOWAT,
                SO_RCVTIMEO,
                SO_SNDTIMEO,
                libc::SO_TYPE,
                libc::SO_DOMAIN,
            ] {
                all.push(option(end, SOL_SOCKET, name)?);
            }
            all.push(name(end, false)?);
            all.push(name(end, true)?);
        }
        Ok(all)
    };
    same("the family", &(AF_UNIX as u8), &name(one, false)?[0])?;
    Ok(Watch::keep(observe)?.spoiled_by(move || set_option(one, SOL_SOCKET, SO_PASSCRED, 0)))
}
