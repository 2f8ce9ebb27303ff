//! Output that is stopped, and input that there is no more room for.

use anyhow::Result;

use super::pty::{get, make_raw, pty, receive};
use crate::kit::files::{read, ready, write};
use crate::kit::{SOON, Setting, Watch, same, sys, until};

/// Output that was stopped by the key, which the other key starts, and by a call, which a call starts; in
/// front of both some that has got through, and one pair whose output fills all buffers.
pub(crate) fn stopped(_: &Setting) -> Result<Watch> {
    const TCOOFF: i32 = 0;
    const TCOON: i32 = 1;
    let [by_key, by_call, full] = [pty()?, pty()?, pty()?];
    let flow = |slave: i32, action: i32| {
        // SAFETY: takes numbers.
        sys("tcflow", unsafe { libc::tcflow(slave, action) }).map(drop)
    };
    let stop = move || {
        for [_, slave] in [by_key, by_call] {
            write(slave, b"before")?;
        }
        write(by_key[0], b"\x13")?;
        flow(by_call[1], TCOOFF)?;
        until("both are stopped", SOON, || {
            let full = |slave: i32| ready(slave, libc::POLLOUT).is_ok_and(|found| found == 0);
            full(by_key[1]) && full(by_call[1])
        })
    };
    stop()?;
    make_raw(full[1])?;
    let mut count = 0;
    until("no more fits", SOON, || {
        let piece = [b'0' + (count % 10) as u8; 800];
        let fits = write(full[1], &piece).is_ok();
        count += usize::from(fits);
        !fits
    })?;
    Ok(Watch::new(move || {
        for [master, slave] in [by_key, by_call] {
            same("it is stopped", &true, &write(slave, b"x").is_err())?;
            until("what was before comes", SOON, || {
                read(master, 100).is_ok_and(|bytes| bytes.ends_with(b"before"))
            })?;
        }
        write(by_key[0], b"\x11")?;
        flow(by_call[1], TCOON)?;
        until("both are started", SOON, || {
            write(by_key[1], b"y").is_ok() && write(by_call[1], b"y").is_ok()
        })?;
        for [master, _] in [by_key, by_call] {
            until("it comes", SOON, || {
                read(master, 9).is_ok_and(|b| b == b"y")
            })?;
        }
        stop()?;
        same("what fills", &true, &(get(full[0], libc::FIONREAD)? > 4000))?;
        same("the first of it", b"0".as_slice(), &read(full[0], 1)?)
    })
    .spoiled_by(move || flow(by_call[1], TCOON)))
}

/// Input outside of canonical mode that the slave has no more room for.
pub(crate) fn full_input(_: &Setting) -> Result<Watch> {
    let [master, slave] = pty()?;
    make_raw(slave)?;
    let text = |from: usize, len: usize| -> Vec<u8> {
        (from..from + len)
            .map(|at| (at * 7 + at / 251) as u8)
            .collect()
    };
    // Pieces that differ, until nothing is taken for a while.
    let mut written = 0;
    let mut idle = 0;
    while idle < 20 {
        match write(master, &text(written, 100)) {
            Ok(()) => (written, idle) = (written + 100, 0),
            Err(_) => idle += 1,
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let mut gone = 0;
    Ok(Watch::new(move || {
        same("it is full", &4095, &get(slave, libc::FIONREAD)?)?;
        // A little is read, and as much comes from behind.
        let got = read(slave, 50)?;
        same("the first of it", &text(gone, got.len()), &got)?;
        gone += got.len();
        until("it is full again", SOON, || {
            ready(slave, libc::POLLIN).is_ok()
                && get(slave, libc::FIONREAD).is_ok_and(|n| n == 4095)
        })?;
        same("more is behind", &true, &(written > gone + 8000))
    })
    .and(Watch::new(|| Ok(())).spoiled_by(move || read(slave, 1).map(drop))))
}

/// Lines, one of them not finished, that the slave has no more room for, and more behind them: nothing of that has
/// been echoed yet.
pub(crate) fn full_lines(_: &Setting) -> Result<Watch> {
    const ROOM: usize = 4095;
    let [master, slave] = pty()?;
    // What is written, of which the last line is not finished; what is echoed goes at once, until there is no room.
    let fill = move || {
        let lines = (0..).map(|number| format!("line {number} {}\n", "x".repeat(number % 70)));
        let lines = lines.flat_map(String::into_bytes).take(16_000 + 13);
        let text: Vec<u8> = lines.collect();
        for piece in text.chunks(64) {
            write(master, piece)?;
            std::thread::sleep(std::time::Duration::from_millis(1));
            let _ = read(master, 4096);
        }
        Ok::<_, anyhow::Error>(text)
    };
    let lines_of = |text: &[u8]| {
        text.iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1)
    };
    let mut text = fill()?;
    Ok(Watch::new(move || {
        let taken = lines_of(&text[..ROOM]);
        same(
            "complete lines",
            &(taken as i32),
            &get(slave, libc::FIONREAD)?,
        )?;
        same("no echo", &true, &read(master, 1).is_err())?;
        let (whole, mut got, mut echo) = (lines_of(&text), Vec::new(), Vec::new());
        until("all lines come", SOON, || {
            got.extend(read(slave, ROOM).unwrap_or_default());
            echo.extend(read(master, ROOM).unwrap_or_default());
            got.len() >= whole
        })?;
        same("what came", &text[..whole], &got[..])?;
        write(master, b"\n")?;
        receive(slave, &[&text[whole..], b"\n"].concat())?;
        until("the last line is echoed", SOON / 4, || {
            echo.extend(read(master, ROOM).unwrap_or_default());
            echo.ends_with(b"\r\n")
        })?;
        let lines = |bytes: &[u8]| bytes.iter().filter(|b| **b == b'\n').count();
        let expected = lines(&text[ROOM..]) + 1;
        same("lines echoed", &expected, &lines(&echo))?;
        text = fill()?;
        Ok(())
    })
    .spoiled_by(move || read(slave, 100).map(drop)))
}
