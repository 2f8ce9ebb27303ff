//! Status that a master in packet mode reads (`TIOCPKT`, ioctl_tty(2)), made again by what it tells of.

use super::queues::{Ends, Queues, flow};
use super::{Termios, set_packet_mode, set_termios};
use crate::{Errno, Result};
use std::os::fd::{AsRawFd, OwnedFd};

const FLUSHREAD: u8 = 1;
const FLUSHWRITE: u8 = 2;
const STOP: u8 = 4;
const START: u8 = 8;
const NOSTOP: u8 = 16;
const DOSTOP: u8 = 32;
const IOCTL: u8 = 64;

const EXTPROC: u32 = 0o200_000;
const XON: u8 = 0x11;
const XOFF: u8 = 0x13;

/// Whether the keys that stop and start output do, and are the usual ones.
fn stops(settings: &Termios) -> bool {
    let keys = (settings.cc[libc::VSTOP], settings.cc[libc::VSTART]);
    settings.iflag & libc::IXON != 0 && keys == (XOFF, XON)
}

/// Status that is being made again, around the filling of the queues ([`super::queues::put`]).
#[derive(Debug)]
pub struct Raised<'a> {
    ends: Ends<'a>,
    status: u8,
    /// Packet mode is on already.
    early: bool,
}

impl<'a> Raised<'a> {
    /// Before the queues are filled: what a flush tells, where it would flush what waits, and what stops output when
    /// that has been stopped by its key. Filling them then tells that the keys for that do what they do, or do not.
    ///
    /// # Errors
    /// `EIO` when the terminal was hung up.
    pub fn before(ends: Ends<'a>, status: u8, queues: &Queues) -> Result<Raised<'a>> {
        let input = !queues.lines.is_empty() || !queues.rest.is_empty();
        let early = status & FLUSHREAD != 0 && input
            || status & FLUSHWRITE != 0 && !queues.output.is_empty()
            || status & STOP != 0 && queues.stopped;
        let raised = Raised {
            ends,
            status,
            early,
        };
        if early {
            raised.turn_on()?;
        }
        Ok(raised)
    }

    /// Afterwards: the rest. The settings are those that the terminal has.
    ///
    /// # Errors
    /// `EIO` when the terminal was hung up.
    pub fn after(self, settings: &Termios) -> Result<()> {
        if !self.early {
            self.turn_on()?;
        }
        let slave = self.ends.slave;
        if self.has(NOSTOP | DOSTOP) {
            // Other keys do, so that nothing that is stopped starts.
            let mut other = *settings;
            if stops(settings) {
                other.cc[libc::VSTOP] = 0;
            } else {
                other.iflag |= libc::IXON;
                (other.cc[libc::VSTOP], other.cc[libc::VSTART]) = (XOFF, XON);
            }
            set_termios(slave, &other)?;
            set_termios(slave, settings)?;
        }
        if self.has(IOCTL) {
            let mut other = *settings;
            other.lflag |= EXTPROC;
            set_termios(slave, &other)?;
            set_termios(slave, settings)?;
        }
        // When its key has stopped output, that has told of it.
        if self.has(STOP) && !self.early {
            flow(slave, libc::TCOON)?;
            flow(slave, libc::TCOOFF)?;
        } else if self.has(START) {
            flow(slave, libc::TCOOFF)?;
            flow(slave, libc::TCOON)?;
        }
        Ok(())
    }

    fn has(&self, bits: u8) -> bool {
        self.status & bits != 0
    }

    /// Packet mode, and flushes of queues that are empty.
    fn turn_on(&self) -> Result<()> {
        if let Some(master) = self.ends.master {
            set_packet_mode(master, true)?;
        }
        if self.has(FLUSHREAD) {
            flush(self.ends.slave, libc::TCIFLUSH)?;
        }
        if self.has(FLUSHWRITE) {
            flush(self.ends.slave, libc::TCOFLUSH)?;
        }
        Ok(())
    }
}

/// tcflush(3).
fn flush(slave: &OwnedFd, queue: i32) -> Result<()> {
    // SAFETY: takes a number.
    Errno::result(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TCFLSH, queue) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tty::queues::tests::pair;
    use crate::tty::queues::{put, take};
    use crate::tty::termios;

    /// What the master reads: one byte of status.
    fn status(master: &OwnedFd) -> u8 {
        let mut found = [0; 8];
        match nix::unistd::read(master, &mut found) {
            Ok(1) => found[0],
            other => panic!("{other:?}"),
        }
    }

    /// Both ends of a pair that has this status, and these queues.
    fn raised(wanted: u8, queues: &Queues) -> (OwnedFd, OwnedFd) {
        let (master, slave) = pair();
        let settings = termios(&slave).unwrap();
        let ends = Ends {
            slave: &slave,
            master: Some(&master),
        };
        let raised = Raised::before(ends, wanted, queues).unwrap();
        put(ends, queues).unwrap();
        raised.after(&settings).unwrap();
        assert_eq!(termios(&slave).unwrap(), settings);
        (master, slave)
    }

    #[test]
    fn every_status_is_raised() {
        for wanted in [0, 1, 2, 3, 8, 32, 1 | 32, 2 | 8 | 32, 64, 65] {
            let queues = Queues {
                output: if wanted & FLUSHWRITE == 0 {
                    b"x".to_vec()
                } else {
                    Vec::new()
                },
                ..Queues::default()
            };
            let (master, _slave) = raised(wanted, &queues);
            std::thread::sleep(std::time::Duration::from_millis(30));
            if wanted != 0 {
                assert_eq!(status(&master), wanted);
            }
            let mut found = [0; 8];
            if queues.output.is_empty() {
                assert_eq!(nix::unistd::read(&master, &mut found), Err(Errno::EAGAIN));
            } else {
                assert_eq!(nix::unistd::read(&master, &mut found), Ok(2));
                assert_eq!(&found[..2], b"\0x");
            }
        }
    }

    #[test]
    fn what_waits_is_not_flushed() {
        let queues = Queues {
            lines: vec![b"line\n".to_vec()],
            output: b"output".to_vec(),
            stopped: true,
            ..Queues::default()
        };
        let (master, slave) = raised(FLUSHREAD | FLUSHWRITE | STOP, &queues);
        std::thread::sleep(std::time::Duration::from_millis(30));
        // The keys do what they do.
        assert_eq!(status(&master) & !DOSTOP, FLUSHREAD | FLUSHWRITE | STOP);
        let ends = Ends {
            slave: &slave,
            master: Some(&master),
        };
        set_packet_mode(&master, false).unwrap();
        assert_eq!(take(ends).unwrap(), queues);
    }
}
