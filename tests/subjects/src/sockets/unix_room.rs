//! How much a unix stream has room for, and urgent data in it.

use std::os::fd::RawFd;

use anyhow::Result;
use libc::{MSG_OOB, POLLOUT, SO_OOBINLINE, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET};

use crate::kit::files::{read, ready, write};
use crate::kit::net::{pair, set_option};
use crate::kit::{Setting, Watch, not_here, same, sys};

/// Memory of what one end has sent and the other has not read, bytes to read there, and whether more fits in.
fn room([from, to]: [RawFd; 2]) -> Result<(i32, i32, bool)> {
    let number = |fd, request| {
        let mut value = 0_i32;
        // SAFETY: both requests write one number.
        sys("ioctl", unsafe { libc::ioctl(fd, request, &raw mut value) })?;
        anyhow::Ok(value)
    };
    let fits = ready(from, POLLOUT)? & POLLOUT != 0;
    Ok((
        number(from, libc::TIOCOUTQ)?,
        number(to, libc::FIONREAD)?,
        fits,
    ))
}

/// One is full of ten bytes at a time and has then been read a little, one has a large piece that has been read
/// in part.
pub(crate) fn small_pieces(_: &Setting) -> Result<Watch> {
    let kind = SOCK_STREAM | SOCK_NONBLOCK;
    let (small, large) = (pair(kind)?, pair(kind)?);
    let fill = move || {
        let mut count = 0_u32;
        while write(small[0], format!("{count:10}").as_bytes()).is_ok() {
            count += 1;
        }
        same("the first", &15, &read(small[1], 15)?.len())?;
        write(large[0], &[7; 20_000])?;
        same("a part of it", &12_000, &read(large[1], 12_000)?.len())?;
        anyhow::Ok(count)
    };
    let count = fill()?;
    let rooms = Watch::keep(move || Ok([room(small)?, room(large)?]))?;
    Ok(rooms.and(
        Watch::new(move || {
            for number in 1..count {
                let text = format!("{number:10}");
                let start = if number == 1 { 5 } else { 0 };
                let came = read(small[1], 10 - start)?;
                same("a piece", &text[start..], &String::from_utf8_lossy(&came))?;
            }
            same("the rest", &vec![7; 8_000], &read(large[1], 20_000)?)?;
            same("nothing more", &true, &read(large[1], 1).is_err())?;
            same("as many as before", &count, &fill()?)
        })
        .spoiled_by(move || read(small[1], 10).map(drop)),
    ))
}

fn send_urgent(fd: RawFd, byte: u8) -> Result<()> {
    // SAFETY: one byte is read.
    let sent = unsafe { libc::send(fd, (&raw const byte).cast(), 1, MSG_OOB) };
    sys("send", sent).map(drop)
}

fn urgent_byte(fd: RawFd, flags: i32) -> Option<u8> {
    let mut byte = 0_u8;
    // SAFETY: one byte is written.
    let got = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, MSG_OOB | flags) };
    (got == 1).then_some(byte)
}

/// What the receiving end shows: the urgent byte, and how far a read goes.
fn show(fd: RawFd) -> Result<(Option<u8>, i16)> {
    Ok((
        urgent_byte(fd, libc::MSG_PEEK),
        ready(fd, libc::POLLIN | libc::POLLPRI)?,
    ))
}

/// The urgent byte is unread, read, or in line with the rest; one that a later one has replaced is in line.
pub(crate) fn urgent(_: &Setting) -> Result<Watch> {
    let kind = SOCK_STREAM | SOCK_NONBLOCK;
    let (unread, taken, inline) = (pair(kind)?, pair(kind)?, pair(kind)?);
    if send_urgent(pair(kind)?[0], b'?').is_err() {
        return not_here("no urgent data of unix sockets");
    }
    set_option(inline[1], SOL_SOCKET, SO_OOBINLINE, 1)?;
    let all = [unread, taken, inline];
    let fill = move || {
        for [from, _] in all {
            write(from, b"before")?;
            send_urgent(from, b'1')?;
            write(from, b"between")?;
            send_urgent(from, b'2')?;
            write(from, b"after")?;
        }
        same("the byte", &Some(b'2'), &urgent_byte(taken[1], 0))
    };
    fill()?;
    let shown = Watch::keep(move || {
        let mut shown = Vec::new();
        for [from, to] in all {
            shown.push((room([from, to])?, show(to)?));
        }
        Ok(shown)
    })?;
    let mut expected: Option<Vec<Vec<Vec<u8>>>> = None;
    let mut drain = move || {
        let mut parts = Vec::new();
        for [_, to] in all {
            // Newer kernels count an urgent byte for ever that a read has skipped.
            let mut some: Vec<Vec<u8>> = urgent_byte(to, 0).map(|b| vec![b]).into_iter().collect();
            while let Ok(part) = read(to, 100) {
                some.push(part);
            }
            parts.push(some);
        }
        let first = expected.get_or_insert_with(|| parts.clone()).clone();
        same("what is read, and how far each time", &first, &parts)
    };
    // As this kernel gives it.
    drain()?;
    fill()?;
    Ok(shown.and(
        Watch::new(move || {
            drain()?;
            fill()
        })
        .spoiled_by(move || {
            urgent_byte(unread[1], 0);
            Ok(())
        }),
    ))
}
