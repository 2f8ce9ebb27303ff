//! Both sides of a pty.

use anyhow::Result;
use libc::{O_NOCTTY, O_NONBLOCK, O_RDWR};

use super::pty::{get, make_raw, number, pty, receive, set, set_size, set_termios, size, termios};
use crate::kit::files::{F_SETSIG, close, fcntl, open, read, ready, seen, write};
use crate::kit::{SOON, Setting, Watch, args, fork_with, raw, same, sys, until};

/// `TIOCGDEV` (asm-generic/ioctls.h): the number of the device.
const TIOCGDEV: u64 = 0x8004_5432;

/// A slave opened with `O_ASYNC`, which asks for no signals (open(2), BUGS), and one that signals somebody no more.
pub(crate) fn opened_async(_: &Setting) -> Result<Watch> {
    let [master, slave] = pty()?;
    let name = format!("/dev/pts/{}", number(master)?);
    let quiet = open(name, O_RDWR | O_NOCTTY | O_NONBLOCK | libc::O_ASYNC)?;
    let taken = open(format!("/dev/pts/{}", number(master)?), O_RDWR | O_NOCTTY)?;
    fcntl(taken, libc::F_SETOWN, std::process::id() as i32)?;
    fcntl(taken, F_SETSIG, 43)?;
    fcntl(taken, libc::F_SETFL, libc::O_ASYNC | O_NONBLOCK)?;
    fcntl(taken, libc::F_SETOWN, 0)?;
    let owners = move || Ok([quiet, taken].map(|fd| fcntl(fd, libc::F_GETOWN, 0).ok()));
    let seen = move || Ok([quiet, taken].map(|fd| seen(fd).ok()));
    Ok(Watch::keep(owners)?
        .and(Watch::keep(seen)?)
        .spoiled_by(move || fcntl(quiet, libc::F_SETOWN, std::process::id() as i32).map(drop))
        .and(Watch::new(move || {
            // A signal for it would end this process.
            write(master, b"line\n")?;
            same("a line", b"line\n".as_slice(), &read(slave, 9)?)
        })))
}

/// Two pairs with numbers, settings and sizes of their own; a free number between them.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let (first, between, second) = (pty()?, pty()?, pty()?);
    between.into_iter().for_each(close);
    make_raw(second[1])?;
    let mut odd = termios(first[1])?;
    odd.c_iflag ^= libc::IXANY | libc::INLCR;
    odd.c_lflag ^= libc::ECHO | libc::NOFLSH;
    odd.c_cc[libc::VINTR] = 7;
    odd.c_cc[libc::VEOL2] = b'~';
    set_termios(first[1], &odd)?;
    set_size(first[0], [33, 101, 640, 480])?;
    let observe = move || {
        let mut all = Vec::new();
        for [master, slave] in [first, second] {
            let now = termios(slave)?;
            all.push(format!(
                "{} {:x} {:x} {:x} {:x} {:?} {:?} {:?} {:?}",
                number(master)?,
                now.c_iflag,
                now.c_oflag,
                now.c_cflag,
                now.c_lflag,
                now.c_cc,
                size(slave)?,
                seen(master)?,
                seen(slave)?,
            ));
        }
        Ok(all)
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || set_size(first[1], [24, 80, 0, 0]))
        .and(Watch::new(move || {
            write(second[0], b"down")?;
            receive(second[1], b"down")?;
            write(second[1], b"up")?;
            receive(second[0], b"up")
        })))
}

/// Pairs whose numbers take more than a byte, with data on both sides, and a slave of one whose master is closed.
pub(crate) fn numbered_high(_: &Setting) -> Result<Watch> {
    let mut lower = Vec::new();
    let pair = loop {
        let pair = pty()?;
        if number(pair[0])? > 0xff {
            break pair;
        }
        lower.extend(pair);
    };
    let [gone, widow] = pty()?;
    close(gone);
    lower.into_iter().for_each(close);
    let [master, slave] = pair;
    make_raw(slave)?;
    set_size(master, [5, 6, 7, 8])?;
    let observe = move || {
        Ok((
            number(master)?,
            get(slave, TIOCGDEV)?,
            size(slave)?,
            seen(slave)?,
        ))
    };
    let fill = move || {
        write(master, b"typed ahead")?;
        write(slave, b"not yet shown").map(drop)
    };
    fill()?;
    Ok(Watch::keep(observe)?
        .spoiled_by(move || set_size(master, [24, 80, 0, 0]))
        .and(Watch::new(move || {
            receive(slave, b"typed ahead")?;
            receive(master, b"not yet shown")?;
            same("it is hung up", &0, &read(widow, 1)?.len())?;
            fill()
        })))
}

/// The master of a session's terminal is closed: it is hung up for those who have it open, also by `/dev/tty`. Another
/// pair has a number below.
pub(crate) fn left(_: &Setting) -> Result<Watch> {
    let [beside, _] = pty()?;
    let [master, slave] = pty()?;
    let own = 70;
    let leader = fork_with(libc::CLONE_FILES, move || {
        // SAFETY: takes numbers, and a path that is there.
        unsafe {
            libc::setsid();
            libc::ioctl(slave, libc::TIOCSCTTY, 0);
            let opened = libc::open(c"/dev/tty".as_ptr(), O_RDWR | O_NONBLOCK);
            libc::dup2(opened, own);
            libc::close(opened);
        }
    })?;
    // SAFETY: reaps it.
    sys("wait", unsafe {
        libc::waitpid(leader, std::ptr::null_mut(), 0)
    })?;
    close(master);
    let hung_up = |fd: i32| {
        same("the end", &0, &read(fd, 1)?.len())?;
        same("a write", &true, &write(fd, b"x").is_err())?;
        anyhow::Ok((get(fd, TIOCGDEV).is_err(), seen(fd)?))
    };
    let observe = move || {
        let path = std::fs::read_link(format!("/proc/self/fd/{own}"))?;
        Ok((hung_up(own)?, hung_up(slave)?, path, number(beside)?))
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || {
        close(own);
        Ok(())
    }))
}

/// Bytes wait on both sides.
pub(crate) fn queues(_: &Setting) -> Result<Watch> {
    let [master, slave] = pty()?;
    make_raw(slave)?;
    let fill = move || {
        write(master, b"typed ahead")?;
        write(slave, b"not yet shown")?;
        until("it waits", SOON, || {
            get(slave, libc::FIONREAD).is_ok_and(|count| count == 11)
                && get(master, libc::FIONREAD).is_ok_and(|count| count == 13)
        })
    };
    fill()?;
    Ok(Watch::new(move || {
        receive(slave, b"typed ahead")?;
        receive(master, b"not yet shown")?;
        same(
            "nothing more",
            &(true, true),
            &(read(slave, 1).is_err(), read(master, 1).is_err()),
        )?;
        fill()
    })
    .spoiled_by(move || read(slave, 1).map(drop)))
}

/// A line that is finished and one that is not: only the first can be read.
pub(crate) fn line(_: &Setting) -> Result<Watch> {
    let [master, slave] = pty()?;
    let mut quiet = termios(slave)?;
    quiet.c_lflag &= !libc::ECHO;
    set_termios(slave, &quiet)?;
    let fill = move || {
        write(master, b"whole line\nhalf a l")?;
        until("the line can be read", SOON, || {
            get(slave, libc::FIONREAD).is_ok_and(|count| count >= 11)
        })
    };
    fill()?;
    Ok(Watch::new(move || {
        receive(slave, b"whole line\n")?;
        same("half a line", &true, &read(slave, 100).is_err())?;
        // Erased by one character, then finished.
        write(master, b"\x7fline\n")?;
        receive(slave, b"half a line\n")?;
        fill()
    })
    .spoiled_by(move || read(slave, 100).map(drop)))
}

/// Both sides signal what comes (`O_ASYNC`), each by a signal of its own.
pub(crate) fn signals(_: &Setting) -> Result<Watch> {
    let mask = 1_u64 << 41 | 1 << 42;
    raw(
        libc::SYS_rt_sigprocmask,
        args([0, &raw const mask as u64, 0, 8]),
    );
    let sides = pty()?;
    make_raw(sides[1])?;
    for (side, signal) in sides.into_iter().zip([42, 43]) {
        fcntl(side, libc::F_SETOWN, std::process::id() as i32)?;
        fcntl(side, F_SETSIG, signal)?;
        fcntl(side, libc::F_SETFL, libc::O_ASYNC | O_NONBLOCK)?;
    }
    let [master, slave] = sides;
    Ok(Watch::new(move || {
        for (from, to, signal) in [(slave, master, 42_i64), (master, slave, 43)] {
            write(from, b"x")?;
            receive(to, b"x")?;
            let (wait, mut info) = ([5_u64, 0], [0_u64; 16]);
            let arguments = [
                &raw const mask as u64,
                info.as_mut_ptr() as u64,
                wait.as_ptr() as u64,
                8,
            ];
            let came = raw(libc::SYS_rt_sigtimedwait, args(arguments));
            same("the signal", &signal, &came)?;
        }
        Ok(())
    })
    .spoiled_by(move || fcntl(master, libc::F_SETFL, O_NONBLOCK).map(drop)))
}

/// Lines that end otherwise than by a newline, one that holds such ends, and one with newlines inside, which were
/// there when canonical mode was switched on.
pub(crate) fn ends(_: &Setting) -> Result<Watch> {
    let [master, slave] = pty()?;
    let mut canonical = termios(slave)?;
    canonical.c_lflag &= !libc::ECHO;
    canonical.c_cc[libc::VEOL] = b';';
    canonical.c_cc[libc::VEOL2] = b'!';
    let raw = {
        let mut raw = canonical;
        raw.c_lflag &= !libc::ICANON;
        raw.c_cc[libc::VMIN] = 1;
        raw
    };
    let wait = move |count| {
        until("it has come", SOON, || {
            get(slave, libc::FIONREAD).is_ok_and(|found| found == count)
        })
    };
    let fill = move || {
        let mut without = canonical;
        set_termios(slave, &raw)?;
        write(master, b"a\nb;c")?;
        wait(5)?;
        without.c_cc[libc::VEOL] = 0;
        set_termios(slave, &without)?;
        write(master, b"d;e\n")?;
        wait(9)?;
        set_termios(slave, &canonical)?;
        // A line end after `^V` ends no line.
        write(master, b"f;g!h\x04i!\x04j\x16\nk\nl\x16\n\x04re\x16\nst")?;
        wait(22)
    };
    fill()?;
    Ok(Watch::new(move || {
        let ended = [&b"a\nb;c"[..], b"d;e\n", b"f;", b"g!", b"h", b"i!", b""];
        for line in ended.into_iter().chain([&b"j\nk\n"[..], b"l\n"]) {
            same("a line", line, &read(slave, 100)?)?;
        }
        same("the rest", &true, &read(slave, 100).is_err())?;
        write(master, b"!")?;
        receive(slave, b"re\nst!")?;
        fill()
    })
    .spoiled_by(move || read(slave, 100).map(drop)))
}

/// The mark that ends a line without a newline is read as a zero when canonical mode is switched off.
pub(crate) fn end_mark(_: &Setting) -> Result<Watch> {
    let [master, slave] = pty()?;
    let mut canonical = termios(slave)?;
    canonical.c_lflag &= !libc::ECHO;
    let mut raw = canonical;
    raw.c_lflag &= !libc::ICANON;
    raw.c_cc[libc::VMIN] = 1;
    let fill = move || {
        set_termios(slave, &canonical)?;
        write(master, b"one\x04two")?;
        until("the line has come", SOON, || {
            get(slave, libc::FIONREAD).is_ok_and(|found| found == 3)
        })
    };
    fill()?;
    Ok(Watch::new(move || {
        set_termios(slave, &raw)?;
        receive(slave, b"one\0two")?;
        fill()
    })
    .spoiled_by(move || read(slave, 100).map(drop)))
}

/// What is typed while output is stopped is echoed when it goes on.
pub(crate) fn echo(_: &Setting) -> Result<Watch> {
    let [master, slave] = pty()?;
    let fill = move || {
        write(slave, b"before")?;
        write(master, b"\x13ab\x01\tc\x7f\x7fd\xff\n")?;
        until("the line can be read", SOON, || {
            get(slave, libc::FIONREAD).is_ok_and(|count| count == 6)
        })
    };
    fill()?;
    Ok(Watch::new(move || {
        receive(master, b"before")?;
        same("it is stopped", &true, &write(slave, b"x").is_err())?;
        same("no echo yet", &true, &read(master, 1).is_err())?;
        write(master, b"\x11")?;
        // The tab went from column 10 to 16: one letter is erased, then that.
        let echo = b"ab^A\tc\x08 \x08\x08\x08\x08\x08\x08\x08d\xff\r\n";
        receive(master, echo)?;
        receive(slave, b"ab\x01d\xff\n")?;
        fill()
    })
    .spoiled_by(move || {
        // SAFETY: takes numbers.
        sys("tcflush", unsafe { libc::tcflush(slave, libc::TCIFLUSH) }).map(drop)
    }))
}

/// After `^V` the next byte means itself.
pub(crate) fn literal(_: &Setting) -> Result<Watch> {
    let [master, slave] = pty()?;
    let mut quiet = termios(slave)?;
    quiet.c_lflag &= !libc::ECHO;
    set_termios(slave, &quiet)?;
    let fill = move || {
        write(master, b"line\nx\x16")?;
        until("the line can be read", SOON, || {
            get(slave, libc::FIONREAD).is_ok_and(|count| count == 5)
        })
    };
    fill()?;
    Ok(Watch::new(move || {
        receive(slave, b"line\n")?;
        // It would flush the line.
        write(master, b"\x03y\n")?;
        receive(slave, b"x\x03y\n")?;
        fill()
    })
    .spoiled_by(move || write(master, b"z")))
}

/// A master whose slave nobody may open, a slave that nobody else may, and masters in the same mode.
pub(crate) fn exclusive(_: &Setting) -> Result<Watch> {
    let locked = open("/dev/ptmx", O_RDWR | O_NOCTTY)?;
    let [_, slave] = pty()?;
    // SAFETY: takes no argument.
    sys("TIOCEXCL", unsafe { libc::ioctl(slave, libc::TIOCEXCL) })?;
    let [master, apart] = pty()?;
    let [alone, closed] = pty()?;
    close(closed);
    for master in [master, alone] {
        // SAFETY: takes no argument.
        sys("TIOCEXCL", unsafe { libc::ioctl(master, libc::TIOCEXCL) })?;
    }
    let observe = move || {
        let exclusive = [slave, master, apart, alone].map(|side| get(side, 0x8004_5440)); // TIOCGEXCL
        let exclusive = exclusive.into_iter().collect::<Result<Vec<_>>>()?;
        Ok((get(locked, 0x8004_5439)?, exclusive)) // TIOCGPTLCK
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || set(locked, libc::TIOCSPTLCK, 0)))
}

/// Settings that nobody may change but root (`TIOCSLCKTRMIOS`), of a pair and of one whose slave nobody has opened.
pub(crate) fn locked(_: &Setting) -> Result<Watch> {
    const TIOCGLCKTRMIOS: u64 = 0x5456;
    const TIOCSLCKTRMIOS: u64 = 0x5457;
    let [_, slave] = pty()?;
    let master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK)?;
    let lock = |side, local| {
        // SAFETY: zeros are a valid structure, the kernel reads less of it.
        sys("TIOCSLCKTRMIOS", unsafe {
            let mut bits: libc::termios = std::mem::zeroed();
            bits.c_lflag = local;
            bits.c_cc[libc::VEOF] = 0xff;
            libc::ioctl(side, TIOCSLCKTRMIOS, &raw const bits)
        })
        .map(drop)
    };
    lock(slave, libc::ICANON | libc::ECHO)?;
    lock(master, libc::ISIG)?;
    let observe = move || {
        let locked = [slave, master].map(|side| {
            // SAFETY: zeros are a valid structure, the kernel fills less of it.
            unsafe {
                let mut bits: libc::termios = std::mem::zeroed();
                sys(
                    "TIOCGLCKTRMIOS",
                    libc::ioctl(side, TIOCGLCKTRMIOS, &raw mut bits),
                )?;
                anyhow::Ok((bits.c_lflag, bits.c_cc))
            }
        });
        let [one, other] = locked;
        let mut settings = termios(slave)?;
        settings.c_lflag = 0;
        set_termios(slave, &settings)?;
        Ok((one?, other?, termios(slave)?.c_lflag))
    };
    Ok(Watch::keep(observe)?.spoiled_by(move || lock(slave, 0)))
}

/// What was written to masters, and its echo, wait for whoever opens the slaves first.
pub(crate) fn unopened(_: &Setting) -> Result<Watch> {
    let master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK)?;
    let write_line = move || {
        write(master, b"early\n")?;
        until("the echo is there", SOON, || {
            ready(master, libc::POLLIN).is_ok_and(|is| is != 0)
        })
    };
    write_line()?;
    // Lines, one that an end of file ends, and one that is not complete; read after its slave is opened, at the end.
    let last = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK)?;
    write(last, b"one\ntwo\x04th\x01ree")?;
    Ok(Watch::new(move || {
        receive(master, b"early\r\n")?;
        // SAFETY: reads whether anything hangs up.
        same(
            "nobody was there",
            &0,
            &(ready(last, libc::POLLHUP)? & libc::POLLHUP),
        )?;
        write_line()
    })
    .spoiled_by(move || {
        set(last, libc::TIOCSPTLCK, 0)?;
        let path = format!("/dev/pts/{}", number(last)?);
        let slave = open(&path, O_RDWR | O_NOCTTY | O_NONBLOCK)?;
        receive(last, b"one\r\ntwoth^Aree")?;
        same("a line", &b"one\n".to_vec(), &read(slave, 100)?)?;
        same("a file's end", &b"two".to_vec(), &read(slave, 100)?)?;
        write(last, b"!\n")?;
        until("the line is complete", SOON, || {
            ready(slave, libc::POLLIN).is_ok_and(|is| is != 0)
        })?;
        same("the rest", &b"th\x01ree!\n".to_vec(), &read(slave, 100)?)?;
        read(master, 100).map(drop)
    }))
}

/// Output is in some column: tabs that are shown as blanks lead on from there, and erasing one goes back to where the
/// line began.
pub(crate) fn column(_: &Setting) -> Result<Watch> {
    let [master, slave] = pty()?;
    let mut blanks = termios(slave)?;
    blanks.c_oflag |= libc::XTABS;
    set_termios(slave, &blanks)?;
    // Something was typed behind it.
    let begin = move || {
        write(slave, b"\rabc")?;
        receive(master, b"\rabc")?;
        write(master, b"\t")?;
        receive(master, b"     ")
    };
    begin()?;
    Ok(Watch::new(move || {
        write(slave, b"d\t|")?;
        receive(master, b"d       |")?;
        write(master, b"\x7f")?;
        receive(master, b"\x08\x08\x08\x08\x08")?;
        begin()
    })
    .spoiled_by(move || {
        write(slave, b"x")?;
        receive(master, b"x")
    }))
}

/// The slave was open once; reading tells that nobody is there.
pub(crate) fn widowed(_: &Setting) -> Result<Watch> {
    let [master, slave] = pty()?;
    set_size(master, [5, 6, 7, 8])?;
    close(slave);
    let path = format!("/dev/pts/{}", number(master)?);
    Ok(Watch::new(move || {
        same("the size", &[5, 6, 7, 8], &size(master)?)?;
        same(
            "nobody is there",
            &true,
            &read(master, 1).is_err_and(|error| error.to_string().contains("error 5")),
        )?;
        // The slave can be opened again.
        let slave = open(&path, O_RDWR | O_NOCTTY | O_NONBLOCK)?;
        make_raw(slave)?;
        write(slave, b"here again")?;
        let came = receive(master, b"here again");
        close(slave);
        came
    })
    .spoiled_by(move || set_size(master, [1, 2, 3, 4])))
}
