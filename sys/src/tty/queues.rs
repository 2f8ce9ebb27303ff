//! What a terminal holds that nobody has read yet.
//!
//! What a line discipline holds is put into it ([`put`]) as if it had been received. Who cannot look into the
//! kernel's memory reads it out before ([`take`]). Both take settings under which no byte means anything; the
//! terminal's own come back at the end. Whoever uses the terminal must be stopped meanwhile.

use super::{Termios, push, readable, set_termios, termios};
use crate::{Errno, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Room of a line discipline (`N_TTY_BUF_SIZE`, drivers/tty/n_tty.c), less the byte it keeps free.
pub const INPUT_MAX: usize = 4095;

/// How long the kernel may take to pass on what was put back.
const SETTLE: Duration = Duration::from_millis(500);

const XOFF: u8 = 0x13;

/// What is queued in both directions.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Queues {
    /// Complete lines of canonical mode, each with what ends it: a zero when that is the end-of-file character, which
    /// read(2) gives only when canonical mode is off by then. [`take`] cannot see it.
    pub lines: Vec<Vec<u8>>,
    /// The rest of the input: an unfinished line, or all of it outside of canonical mode.
    pub rest: Vec<u8>,
    /// What the master has written and a full line discipline has not taken yet.
    pub behind: Vec<u8>,
    /// What a slave has written and its master not read.
    pub output: Vec<u8>,
    /// Whether output of a pseudo terminal is stopped (Ctrl-S).
    pub stopped: bool,
    /// Whether it is stopped by a call (tcflow(3), `TCOOFF`), which only a call ends.
    pub held: bool,
    /// Echo that waits because output is stopped or full. [`take`] cannot see it.
    pub echo: Vec<Echo>,
    /// Whether the next byte means itself, since `^V` came before it. [`take`] cannot see it, and [`put`] leaves it
    /// to [`expect_literal`].
    pub literal: bool,
    /// The column that output of a pseudo terminal is in, and the one where the line began that is being typed. [`take`]
    /// cannot see them, and [`put`] leaves them to [`set_columns`].
    pub columns: (u32, u32),
}

/// A byte that is echoed when output goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// What was received.
    pub byte: u8,
    /// It is shown as `^` and a letter.
    pub as_control: bool,
}

/// Both ends, opened non-blocking for this purpose; no master for other terminals.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// The terminal.
    pub slave: &'a OwnedFd,
    /// Its master.
    pub master: Option<&'a OwnedFd>,
}

/// Whether input is read by lines. With `EXTPROC` another host edits them, and none are told apart here
/// (drivers/tty/n_tty.c, `n_tty_read`).
pub fn is_canonical(settings: &Termios) -> bool {
    settings.lflag & (libc::ICANON | libc::EXTPROC) == libc::ICANON
}

/// Takes everything out.
///
/// # Errors
/// `EIO` when the terminal was hung up.
pub fn take(ends: Ends<'_>) -> Result<Queues> {
    let own = termios(ends.slave)?;
    let mut queues = Queues::default();
    let canonical = is_canonical(&own);
    if canonical {
        while can(ends.slave, PollFlags::POLLIN)? {
            let mut line = vec![0; INPUT_MAX + 1];
            let read = nix::unistd::read(ends.slave, &mut line)?;
            line.truncate(read);
            queues.lines.push(line);
        }
    }
    // The line discipline takes no more while it is full; each read, and poll(2), waits until it has taken
    // what there is room for (drivers/tty/n_tty.c, `n_tty_poll`).
    let taken = readable(ends.slave)?;
    set_termios(ends.slave, &quiet(&own, false))?;
    let rest = read_all(ends.slave);
    set_termios(ends.slave, &own)?;
    queues.rest = rest?;
    if !canonical && taken < queues.rest.len() {
        queues.behind = queues.rest.split_off(taken);
    }
    if let Some(master) = ends.master {
        queues.output = read_all(master)?;
        queues.stopped = !can(ends.slave, PollFlags::POLLOUT)?;
        if queues.stopped {
            // Starts it only if a call has stopped it.
            flow(ends.slave, libc::TCOON)?;
            queues.held = can(ends.slave, PollFlags::POLLOUT)?;
            queues.stopped = !queues.held;
        }
    }
    Ok(queues)
}

/// Puts everything in, into empty queues.
///
/// # Errors
/// `EIO` or `EPERM` where input cannot be pushed ([`push`]), `EAGAIN` when it does not fit.
pub fn put(ends: Ends<'_>, queues: &Queues) -> Result<()> {
    let own = termios(ends.slave)?;
    let done = put_quietly(ends, queues, &own);
    set_termios(ends.slave, &own)?;
    done?;
    match ends.master {
        Some(master) => write_all(master, &queues.behind, WHOLE),
        None => Ok(()),
    }
}

fn put_quietly(ends: Ends<'_>, queues: &Queues, own: &Termios) -> Result<()> {
    let slave = ends.slave;
    if !queues.output.is_empty() {
        // Without IXON nothing is stopped.
        let mut settings = quiet(own, false);
        settings.iflag = 0;
        set_termios(slave, &settings)?;
        write_all(slave, &queues.output, PIECE)?;
    }
    if queues.stopped {
        let mut settings = quiet(own, false);
        settings.iflag |= libc::IXON;
        settings.cc[libc::VSTOP] = XOFF;
        set_termios(slave, &settings)?;
        push(slave, XOFF)?;
    }
    if queues.held {
        flow(slave, libc::TCOOFF)?;
    }
    put_echo(slave, &queues.echo, own, queues.stopped)?;
    let settings = kept_stopped(quiet(own, false), queues.stopped);
    let end_of_file = unused_byte(queues, &[]);
    put_lines(
        queues,
        (is_canonical(own), settings, end_of_file),
        |settings, bytes, _| {
            set_termios(slave, settings)?;
            bytes.iter().try_for_each(|byte| push(slave, *byte))
        },
    )
}

/// Puts all input in: `receive` does so with some under settings, and is told what of it is not echoed.
pub(super) fn put_lines(
    queues: &Queues,
    (canonical, mut settings, end_of_file): (bool, Termios, u8),
    mut receive: impl FnMut(&Termios, &[u8], Silent) -> Result<()>,
) -> Result<()> {
    let keys = Keys {
        end_of_file,
        literal: unused_byte(queues, &[end_of_file]),
    };
    if canonical {
        let mut lines = queues.lines.iter();
        if let Some(odd) = queues.lines.first().filter(|line| is_odd(line)) {
            lines.next();
            settings.lflag &= !libc::ICANON;
            receive(&settings, odd, Silent::default())?;
        }
        settings.lflag |= libc::ICANON;
        lines.try_for_each(|line| put_line(line, settings, &keys, &mut receive))?;
    }
    if !canonical {
        return receive(&settings, &queues.rest, Silent::default());
    }
    let (rest, literals) = quoted(&queues.rest, &keys, &mut settings);
    let silent = Silent {
        literals,
        ..Silent::default()
    };
    receive(&settings, &rest, silent)
}

/// What brings about these bytes inside of a line, and how many of it go before others: line ends that were typed
/// after `^V`.
fn quoted(bytes: &[u8], keys: &Keys, settings: &mut Termios) -> (Vec<u8>, usize) {
    let mut found = Vec::with_capacity(bytes.len());
    for byte in bytes {
        found.extend((*byte == b'\n').then_some(keys.literal));
        found.push(*byte);
    }
    let literals = found.len() - bytes.len();
    if literals > 0 {
        settings.lflag |= libc::IEXTEN;
        settings.cc[libc::VLNEXT] = keys.literal;
    }
    (found, literals)
}

/// Bytes that are not in the data.
struct Keys {
    end_of_file: u8,
    /// Has the next byte mean itself.
    literal: u8,
}

/// What of some input is not echoed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Silent {
    /// The last byte, which ends a file.
    pub(super) ends_file: bool,
    /// Bytes before others that mean themselves.
    pub(super) literals: usize,
}

/// Whether a line has line ends inside: bytes that nobody had read when canonical mode was switched on are one line
/// together (drivers/tty/n_tty.c, `n_tty_set_termios`).
fn is_odd(line: &[u8]) -> bool {
    let before = line.split_last().map_or(&[][..], |(_, before)| before);
    before.contains(&b'\n')
}

/// A line in canonical mode. What ends it, other than a line end, is set for it alone: the same byte may be inside of
/// others.
fn put_line(
    line: &[u8],
    mut settings: Termios,
    keys: &Keys,
    receive: &mut impl FnMut(&Termios, &[u8], Silent) -> Result<()>,
) -> Result<()> {
    let (last, before) = match line.split_last() {
        Some((last, before)) => (*last, before),
        None => (0, line),
    };
    let ends_itself = last == b'\n';
    let by_last = last != 0 && !before.contains(&last);
    if !ends_itself {
        let kind = if by_last { libc::VEOL } else { libc::VEOF };
        settings.cc[kind] = if by_last { last } else { keys.end_of_file };
    }
    let ends_file = !ends_itself && !by_last;
    let (mut bytes, literals) = quoted(before, keys, &mut settings);
    bytes.extend((last != 0).then_some(last));
    bytes.extend(ends_file.then_some(keys.end_of_file));
    let silent = Silent {
        ends_file,
        literals,
    };
    receive(&settings, &bytes, silent)
}

/// Receives what is to be echoed, and takes it out of the input again, where nothing else is yet. What is shown as
/// it is echoed, and how, is for the terminal's own settings of output.
fn put_echo(slave: &OwnedFd, echo: &[Echo], own: &Termios, stopped: bool) -> Result<()> {
    for alike in echo.chunk_by(|one, two| one.as_control == two.as_control) {
        let mut settings = kept_stopped(quiet(own, false), stopped);
        settings.oflag = own.oflag;
        settings.lflag = match alike[0].as_control {
            true => libc::ECHO | libc::ECHOCTL,
            false => libc::ECHO,
        };
        set_termios(slave, &settings)?;
        for some in alike.chunks(ECHOED_AT_ONCE) {
            some.iter().try_for_each(|echo| push(slave, echo.byte))?;
            read_all(slave)?;
        }
    }
    Ok(())
}

/// Has the next byte mean itself. Nothing must change between lines and bytes (`ICANON`) afterwards.
///
/// # Errors
/// As [`put`].
pub fn expect_literal(slave: &OwnedFd) -> Result<()> {
    const NEXT: u8 = 0x16;
    let own = termios(slave)?;
    let mut settings = quiet(&own, true);
    settings.lflag |= libc::IEXTEN | own.lflag & libc::EXTPROC;
    settings.cc[libc::VLNEXT] = NEXT;
    set_termios(slave, &settings)?;
    let pushed = push(slave, NEXT);
    set_termios(slave, &own)?;
    pushed
}

/// Has output be in a column, and the line that is typed next begin in one. Queues must be empty, and are again
/// afterwards.
///
/// # Errors
/// As [`put`].
pub fn set_columns(slave: &OwnedFd, master: &OwnedFd, (column, line): (u32, u32)) -> Result<()> {
    const ERASE: u8 = 0x7f;
    /// What is further on is like what has the same tabs behind it.
    const FAR: u32 = 512;
    let own = termios(slave)?;
    let mut settings = quiet(&own, true);
    settings.iflag = 0;
    settings.oflag = libc::OPOST;
    settings.lflag |= libc::ECHO;
    settings.cc[libc::VERASE] = ERASE;
    set_termios(slave, &settings)?;
    let [column, line] = [column, line].map(|at| if at < FAR { at } else { FAR + at % 8 });
    let done = (|| {
        let mut at = 0;
        if line != 0 {
            advance(slave, master, 0, line)?;
            [b'x', ERASE]
                .iter()
                .try_for_each(|byte| push(slave, *byte))?;
            at = line + 1;
        }
        advance(slave, master, at, column)
    })();
    set_termios(slave, &own)?;
    done
}

/// Goes from one column to another. A return would be the begin of the line as well.
fn advance(slave: &OwnedFd, master: &OwnedFd, from: u32, to: u32) -> Result<()> {
    let byte = if from < to { b' ' } else { 0x08 };
    write_all(slave, &vec![byte; from.abs_diff(to) as usize], PIECE)?;
    read_all(master).map(drop)
}

/// Settings that do not start what its key has stopped: to clear IXON does.
fn kept_stopped(mut settings: Termios, stopped: bool) -> Termios {
    if stopped {
        settings.iflag |= libc::IXON;
    }
    settings
}

/// `TCXONC` (ioctl_tty(2)).
pub(super) fn flow(slave: &OwnedFd, action: i32) -> Result<()> {
    // SAFETY: takes a number.
    Errno::result(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TCXONC, action) }).map(drop)
}

/// Settings under which every byte of input is just a byte. IXON is kept: to clear it starts a
/// stopped terminal.
pub(super) fn quiet(own: &Termios, canonical: bool) -> Termios {
    let mut settings = *own;
    settings.iflag = own.iflag & libc::IXON;
    settings.oflag = own.oflag & !libc::OPOST;
    settings.lflag = if canonical { libc::ICANON } else { 0 };
    settings.cc = [0; 19];
    settings
}

/// A byte that can be a key, since it is not in the data, and is none of `others`.
pub(super) fn unused_byte(queues: &Queues, others: &[u8]) -> u8 {
    let used =
        |byte: &u8| queues.lines.iter().any(|l| l.contains(byte)) || queues.rest.contains(byte);
    (1..=255)
        .find(|byte| ![b'\n', b'x', XOFF].contains(byte) && !others.contains(byte) && !used(byte))
        .unwrap_or(4)
}

/// What poll(2) says at once.
fn can(fd: &impl AsFd, what: PollFlags) -> Result<bool> {
    let mut polled = [PollFd::new(fd.as_fd(), what)];
    poll(&mut polled, PollTimeout::ZERO)?;
    Ok(polled[0]
        .revents()
        .is_some_and(|found| found.contains(what)))
}

pub(super) fn read_all(fd: &OwnedFd) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    let mut buffer = vec![0; INPUT_MAX + 1];
    while readable(fd)? > 0 || can(fd, PollFlags::POLLIN)? {
        match nix::unistd::read(fd, &mut buffer) {
            Ok(0) | Err(Errno::EAGAIN | Errno::EIO) => break,
            Ok(read) => data.extend_from_slice(&buffer[..read]),
            Err(e) => return Err(e),
        }
    }
    Ok(data)
}

/// Bytes of one write. Buffers of a terminal are made of 256 bytes each and filled by whole writes: with
/// this size hardly any room is lost, so what was in them fits again (drivers/tty/tty_buffer.c).
pub(super) const PIECE: usize = 1020;

/// The same for what is to be packed as closely as it can be: one buffer (`TTY_BUFFER_PAGE`).
const WHOLE: usize = 1792;

/// Bytes that are echoed before they are taken out of the input, which has room for more.
const ECHOED_AT_ONCE: usize = 1024;

/// Writes all of it in pieces, waiting while the kernel moves what was written on to the reader's side.
fn write_all(fd: &OwnedFd, mut data: &[u8], piece: usize) -> Result<()> {
    let end = Instant::now() + SETTLE;
    while !data.is_empty() {
        match nix::unistd::write(fd, &data[..data.len().min(piece)]) {
            Ok(written) => data = &data[written..],
            Err(Errno::EAGAIN) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tty::{peer, set_locked};
    use std::fs::File;
    use std::os::unix::fs::OpenOptionsExt;

    pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let master = OwnedFd::from(options.open("/dev/ptmx").unwrap());
        set_locked(&master, false).unwrap();
        let slave = peer(&master, libc::O_RDWR | libc::O_NONBLOCK).unwrap();
        (master, slave)
    }

    fn write(fd: &OwnedFd, text: &[u8]) {
        assert_eq!(nix::unistd::write(fd, text), Ok(text.len()));
        std::thread::sleep(Duration::from_millis(30));
    }

    /// Takes from one pair, puts into both, and expects the same in both.
    fn carried(prepare: impl Fn(&OwnedFd, &OwnedFd)) -> (Queues, OwnedFd, OwnedFd) {
        let (master, slave) = pair();
        prepare(&master, &slave);
        let ends = Ends {
            slave: &slave,
            master: Some(&master),
        };
        let settings = termios(&slave).unwrap();
        let found = take(ends).unwrap();
        put(ends, &found).unwrap();
        assert_eq!(termios(&slave).unwrap(), settings);
        let (other_master, other) = pair();
        set_termios(&other, &settings).unwrap();
        let others = Ends {
            slave: &other,
            master: Some(&other_master),
        };
        put(others, &found).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(take(others).unwrap(), found);
        (found, master, slave)
    }

    #[test]
    fn lines_an_end_of_file_and_an_unfinished_line() {
        let (found, _master, slave) =
            carried(|master, _| write(master, b"one\ntwo\x04three\n\x04fou"));
        assert_eq!(found.lines, [&b"one\n"[..], b"two", b"three\n", b""]);
        assert_eq!(found.rest, b"fou");
        assert_eq!(
            found.output.len(),
            b"one\r\ntwothree\r\nfou".len(),
            "the echo"
        );
        let mut text = [0; 64];
        assert_eq!(nix::unistd::read(&slave, &mut text), Ok(4));
    }

    #[test]
    fn raw_input_with_every_byte() {
        let all: Vec<u8> = (0..=255).collect();
        let (found, _master, slave) = carried(|master, slave| {
            let mut settings = quiet(&termios(slave).unwrap(), false);
            settings.cc[libc::VMIN] = 1;
            set_termios(slave, &settings).unwrap();
            write(master, &all);
        });
        assert_eq!(found.rest, all);
        assert_eq!(readable(&slave), Ok(256));
    }

    #[test]
    fn stopped_by_a_call() {
        let (found, _master, slave) = carried(|_, slave| {
            write(slave, b"before");
            flow(slave, libc::TCOOFF).unwrap();
        });
        assert!(found.held && !found.stopped);
        assert_eq!(found.output, b"before");
        flow(&slave, libc::TCOON).unwrap();
        assert!(can(&slave, PollFlags::POLLOUT).unwrap());
    }

    #[test]
    fn output_that_fills_all_buffers() {
        let (found, ..) = carried(|_, slave| {
            let mut settings = quiet(&termios(slave).unwrap(), false);
            settings.oflag = 0;
            set_termios(slave, &settings).unwrap();
            let mut waited = 0;
            while waited < 50 {
                match nix::unistd::write(slave, &[b'x'; 800]) {
                    Ok(_) => waited = 0,
                    Err(_) => waited += 1,
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        assert!(found.output.len() > 16_000, "{}", found.output.len());
    }

    #[test]
    fn input_that_fills_all_buffers() {
        let all: Vec<u8> = (0..70_000_u32).map(|n| (n * 7 / 3) as u8).collect();
        let (found, master, slave) = carried(|master, slave| {
            let mut settings = quiet(&termios(slave).unwrap(), false);
            settings.oflag = 0;
            settings.cc[libc::VMIN] = 1;
            set_termios(slave, &settings).unwrap();
            let (mut at, mut waited) = (0, 0);
            while at < all.len() && waited < 50 {
                match nix::unistd::write(master, &all[at..(at + 4096).min(all.len())]) {
                    Ok(written) => (at, waited) = (at + written, 0),
                    Err(_) => waited += 1,
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        assert_eq!(found.rest.len(), INPUT_MAX);
        assert!(found.behind.len() > 8000, "{}", found.behind.len());
        let expected = [found.rest, found.behind].concat();
        assert!(all.starts_with(&expected));
        assert!(
            read_all(&slave).unwrap() == expected,
            "what was put back, to the end"
        );
        drop(master);
    }

    #[test]
    fn echo_waits_until_output_is_started() {
        let (master, slave) = pair();
        let own = termios(&slave).unwrap();
        let echo = [
            (b'a', false),
            (1, true),
            (2, true),
            (b'\n', false),
            (0xff, false),
        ];
        let queues = Queues {
            rest: b"input".to_vec(),
            output: b"output ".to_vec(),
            stopped: true,
            echo: echo
                .map(|(byte, as_control)| Echo { byte, as_control })
                .to_vec(),
            ..Queues::default()
        };
        let ends = Ends {
            slave: &slave,
            master: Some(&master),
        };
        put(ends, &queues).unwrap();
        assert_eq!(termios(&slave).unwrap(), own);
        assert_eq!(read_all(&master).unwrap(), b"output ");
        assert!(!can(&slave, PollFlags::POLLOUT).unwrap());
        write(&master, b"\x11");
        assert_eq!(read_all(&master).unwrap(), b"a^A^B\r\n\xff");
        write(&master, b"!\n");
        let mut text = [0; 64];
        assert_eq!(nix::unistd::read(&slave, &mut text), Ok(7));
        assert_eq!(&text[..7], b"input!\n");
    }

    #[test]
    fn the_next_byte_means_itself() {
        let (master, slave) = pair();
        let ends = Ends {
            slave: &slave,
            master: Some(&master),
        };
        let queues = Queues {
            rest: b"a".to_vec(),
            ..Queues::default()
        };
        put(ends, &queues).unwrap();
        expect_literal(&slave).unwrap();
        write(&master, b"\x7f\x7f\x7fb\n");
        let mut text = [0; 64];
        // One is taken as it is, one erases that, and one the letter.
        assert_eq!(nix::unistd::read(&slave, &mut text), Ok(2));
        assert_eq!(&text[..2], b"b\n");
    }

    #[test]
    fn stopped_with_much_output() {
        let (found, ..) = carried(|master, slave| {
            write(slave, &[b'x'; 6000]);
            write(master, &[XOFF]);
        });
        assert!(found.stopped);
        assert_eq!(found.output, [b'x'; 6000]);
    }
}
