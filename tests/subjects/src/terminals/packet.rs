//! Packet mode (ioctl_tty(2), `TIOCPKT`).

use anyhow::Result;

use super::pty::{get, make_raw, pty, receive, set, set_termios, termios};
use crate::kit::files::{read, ready, write};
use crate::kit::{SOON, Setting, Watch, same, sys, until};

/// Packet mode with a state change that nobody has read.
pub(crate) fn packet(_: &Setting) -> Result<Watch> {
    let [master, slave] = pty()?;
    make_raw(slave)?;
    set(master, libc::TIOCPKT, 1)?;
    Ok(Watch::new(move || {
        same("the mode", &1, &get(master, 0x8004_5438)?)?; // TIOCGPKT
        write(slave, b"data")?;
        receive(master, b"\0data")?;
        // SAFETY: takes numbers.
        sys("tcflush", unsafe { libc::tcflush(slave, libc::TCIFLUSH) })?;
        // TIOCPKT_FLUSHREAD
        receive(master, &[1])
    })
    .spoiled_by(move || set(master, libc::TIOCPKT, 0)))
}

/// Settings changed, queues flushed, output stopped: each with something that waits beside it.
pub(crate) fn packet_status(_: &Setting) -> Result<Watch> {
    // TIOCPKT_*
    const FLUSHREAD: u8 = 1;
    const FLUSHWRITE: u8 = 2;
    const STOP: u8 = 4;
    const START: u8 = 8;
    const NOSTOP: u8 = 16;
    const DOSTOP: u8 = 32;
    const TCOOFF: i32 = 0;
    const TCOON: i32 = 1;
    let [changed, flushed, stopped] = [pty()?, pty()?, pty()?];
    for [master, _] in [changed, flushed, stopped] {
        set(master, libc::TIOCPKT, 1)?;
    }
    let flush = |slave: i32, queue: i32| {
        // SAFETY: takes numbers.
        sys("tcflush", unsafe { libc::tcflush(slave, queue) }).map(drop)
    };
    let flow = |slave: i32, action: i32| {
        // SAFETY: takes numbers.
        sys("tcflow", unsafe { libc::tcflow(slave, action) }).map(drop)
    };
    let waits = |side: i32| {
        until("it waits", SOON, || {
            get(side, libc::FIONREAD).is_ok_and(|n| n > 0)
        })
    };
    let cooked = termios(changed[1])?;
    let tell = move || {
        let [master, slave] = changed;
        set_termios(slave, &cooked)?;
        // It is told of, but for the first time.
        let _ = read(master, 10);
        make_raw(slave)?;
        flush(slave, libc::TCIFLUSH)?;
        write(slave, b"output")?;
        waits(master)?;
        let [master, slave] = flushed;
        let mut quiet = termios(slave)?;
        quiet.c_lflag &= !libc::ECHO;
        set_termios(slave, &quiet)?;
        flush(slave, libc::TCIOFLUSH)?;
        write(master, b"a line\n")?;
        waits(slave)?;
        flow(stopped[1], TCOOFF)
    };
    tell()?;
    let status =
        |master: i32| Ok::<_, anyhow::Error>(ready(master, libc::POLLPRI)? & libc::POLLPRI);
    Ok(Watch::new(move || {
        let all = [changed, flushed, stopped].map(|[master, _]| status(master));
        for found in all {
            same("status waits", &libc::POLLPRI, &found?)?;
        }
        let bits = FLUSHREAD | NOSTOP;
        same("the first status", &vec![bits], &read(changed[0], 10)?)?;
        same("the output", b"\0output".as_slice(), &read(changed[0], 10)?)?;
        let bits = FLUSHREAD | FLUSHWRITE;
        let found = read(flushed[0], 10)?;
        // That the usual keys stop output is told too when it comes back beside what waits.
        let found = found.first().copied().unwrap_or(0) & !(DOSTOP);
        same("the second status", &(bits), &found)?;
        same("the input", b"a line\n".as_slice(), &read(flushed[1], 10)?)?;
        same("the third status", &vec![STOP], &read(stopped[0], 10)?)?;
        same("it is stopped", &true, &write(stopped[1], b"x").is_err())?;
        flow(stopped[1], TCOON)?;
        same("it starts", &vec![START], &read(stopped[0], 10)?)?;
        tell()
    })
    .spoiled_by(move || read(stopped[0], 10).map(drop)))
}
