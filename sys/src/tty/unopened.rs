//! What waits in a pseudo terminal whose slave nobody has opened yet.
//!
//! To open one would be noticed for good: reads of its master fail once it is closed again. So all is done by the master:
//! what it writes is received, and that it has been is told by the echo. What is to be read from it is echoed as well, by
//! keys of signals, which nobody gets and which are not input (drivers/tty/n_tty.c, `n_tty_receive_signal_char`).

use super::queues::{
    INPUT_MAX, PIECE, Queues, is_canonical, put_lines, quiet, read_all, unused_byte,
};
use super::{Termios, readable, set_termios, termios};
use crate::{Errno, Result};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long the kernel may take to pass on what was written, on a busy host: who gives up loses the processes.
const SETTLE: Duration = Duration::from_secs(5);
/// Keys that send signals.
const KEYS: [usize; 3] = [libc::VINTR, libc::VQUIT, libc::VSUSP];

/// Whether all of it can be put in ([`put`]).
#[must_use]
pub fn can_put(queues: &Queues) -> bool {
    let input: usize = queues.lines.iter().map(Vec::len).sum();
    let fits = input + queues.lines.len() + queues.rest.len() < INPUT_MAX / 2
        && queues.output.len() < INPUT_MAX;
    let plain = !queues.stopped && !queues.held && !queues.literal;
    // Byte 0 switches a key off.
    fits && plain
        && queues.behind.is_empty()
        && queues.echo.is_empty()
        && !queues.output.contains(&0)
}

/// Puts everything in, into empty queues.
///
/// # Errors
/// `EAGAIN` when the kernel does not pass it on.
pub fn put(master: &OwnedFd, queues: &Queues) -> Result<()> {
    let own = termios(master)?;
    let done = put_quietly(master, queues, &own);
    set_termios(master, &own)?;
    done
}

fn put_quietly(master: &OwnedFd, queues: &Queues, own: &Termios) -> Result<()> {
    let mut settings = quiet(own, is_canonical(own));
    settings.iflag = 0;
    settings.lflag |= libc::ECHO;
    let end_of_file = unused_byte(queues, &[]);
    let erase = unused_byte(queues, &[end_of_file, unused_byte(queues, &[end_of_file])]);
    put_lines(
        queues,
        (is_canonical(own), settings, end_of_file),
        |settings, bytes, silent| {
            let mut settings = *settings;
            settings.cc[libc::VERASE] = erase;
            set_termios(master, &settings)?;
            let unheard = usize::from(silent.ends_file) + silent.literals;
            receive(master, bytes, bytes.len() - unheard)?;
            // The end of a file is not echoed, but what is received and taken back after it is.
            let after = [b'x', erase];
            if silent.ends_file {
                receive(master, &after, after.len())
            } else {
                Ok(())
            }
        },
    )?;
    settings.lflag |= libc::ISIG | libc::NOFLSH;
    let mut shown = 0;
    for some in by_keys(&queues.output) {
        let distinct: BTreeSet<u8> = some.iter().copied().collect();
        settings.cc = [0; 19];
        for (key, byte) in KEYS.into_iter().zip(distinct) {
            settings.cc[key] = byte;
        }
        set_termios(master, &settings)?;
        write(master, some)?;
        shown += some.len();
        wait_for(master, shown)?;
    }
    Ok(())
}

/// Writes what is echoed as so many bytes, and takes these out when all are there.
fn receive(master: &OwnedFd, bytes: &[u8], echoed: usize) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    write(master, bytes)?;
    wait_for(master, echoed)?;
    read_all(master).map(drop)
}

fn write(master: &OwnedFd, bytes: &[u8]) -> Result<()> {
    for piece in bytes.chunks(PIECE) {
        let written = nix::unistd::write(master, piece)?;
        if written != piece.len() {
            return Err(Errno::EAGAIN);
        }
    }
    Ok(())
}

fn wait_for(master: &OwnedFd, count: usize) -> Result<()> {
    let end = Instant::now() + SETTLE;
    while readable(master)? < count {
        if Instant::now() > end {
            return Err(Errno::EAGAIN);
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    Ok(())
}

/// Parts of it that are made of no more bytes than there are keys.
fn by_keys(mut output: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while !output.is_empty() {
        let mut distinct = BTreeSet::new();
        let len = output
            .iter()
            .take(PIECE)
            .take_while(|byte| {
                distinct.insert(**byte);
                distinct.len() <= KEYS.len()
            })
            .count();
        let (part, rest) = output.split_at(len);
        parts.push(part);
        output = rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tty::queues::{Ends, take};
    use crate::tty::{peer, set_locked};
    use std::os::unix::fs::OpenOptionsExt;

    fn put_and_take(queues: &Queues, prepare: impl Fn(&mut Termios)) {
        let mut options = std::fs::File::options();
        options.read(true).write(true);
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let master = OwnedFd::from(options.open("/dev/ptmx").unwrap());
        set_locked(&master, false).unwrap();
        let mut settings = termios(&master).unwrap();
        prepare(&mut settings);
        set_termios(&master, &settings).unwrap();
        assert!(can_put(queues));
        put(&master, queues).unwrap();
        assert_eq!(termios(&master).unwrap(), settings);
        let slave = peer(&master, libc::O_RDWR | libc::O_NONBLOCK).unwrap();
        let ends = Ends {
            slave: &slave,
            master: Some(&master),
        };
        assert_eq!(&take(ends).unwrap(), queues);
    }

    #[test]
    fn lines_and_what_was_echoed() {
        let queues = Queues {
            lines: vec![
                b"one\n".to_vec(),
                b"two".to_vec(),
                b"x\xff\n".to_vec(),
                b"a\nb\n".to_vec(),
                Vec::new(),
            ],
            rest: b"f\nou".to_vec(),
            output: b"one\r\ntwo^C\xff\r\n\x1b[0m fou".to_vec(),
            ..Queues::default()
        };
        put_and_take(&queues, |_| {});
    }

    #[test]
    fn bytes() {
        let queues = Queues {
            rest: (0..=255).collect(),
            output: (1..=255).collect(),
            ..Queues::default()
        };
        put_and_take(&queues, |settings| {
            settings.lflag = 0;
            settings.iflag = 0;
            settings.cc[libc::VMIN] = 1;
        });
    }
}
