//! Making ptys, and what every subject asks of them.

use anyhow::Result;
use libc::{O_NOCTTY, O_NONBLOCK, O_RDWR};

use crate::kit::files::{open, read};
use crate::kit::{SOON, same, sys, until};

/// Master and slave; the slave belongs to no session.
pub(super) fn pty() -> Result<[i32; 2]> {
    let master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK)?;
    let unlocked = 0;
    // SAFETY: the kernel reads one int.
    sys("TIOCSPTLCK", unsafe {
        libc::ioctl(master, libc::TIOCSPTLCK, &raw const unlocked)
    })?;
    let slave = open(
        format!("/dev/pts/{}", number(master)?),
        O_RDWR | O_NOCTTY | O_NONBLOCK,
    )?;
    Ok([master, slave])
}

pub(super) fn number(master: i32) -> Result<i32> {
    get(master, libc::TIOCGPTN)
}

/// An ioctl that writes one int.
pub(super) fn get(side: i32, request: u64) -> Result<i32> {
    let mut value = 0;
    // SAFETY: the kernel writes one int.
    sys("ioctl", unsafe {
        libc::ioctl(side, request, &raw mut value)
    })?;
    Ok(value)
}

/// One that reads one int.
pub(super) fn set(side: i32, request: u64, value: i32) -> Result<()> {
    // SAFETY: the kernel reads one int.
    sys("ioctl", unsafe {
        libc::ioctl(side, request, &raw const value)
    })
    .map(drop)
}

pub(super) fn termios(side: i32) -> Result<libc::termios> {
    // SAFETY: zeros are a valid structure, the kernel fills it.
    unsafe {
        let mut termios: libc::termios = std::mem::zeroed();
        sys("tcgetattr", libc::tcgetattr(side, &raw mut termios))?;
        Ok(termios)
    }
}

pub(super) fn set_termios(side: i32, termios: &libc::termios) -> Result<()> {
    // SAFETY: the structure is alive.
    sys("tcsetattr", unsafe {
        libc::tcsetattr(side, libc::TCSANOW, termios)
    })
    .map(drop)
}

/// Neither lines nor echo nor translation.
pub(super) fn make_raw(side: i32) -> Result<()> {
    let mut termios = termios(side)?;
    // SAFETY: changes the structure only.
    unsafe { libc::cfmakeraw(&raw mut termios) };
    set_termios(side, &termios)
}

pub(super) fn size(side: i32) -> Result<[u16; 4]> {
    let mut size = [0; 4];
    // SAFETY: the kernel writes four shorts.
    sys("TIOCGWINSZ", unsafe {
        libc::ioctl(side, libc::TIOCGWINSZ, size.as_mut_ptr())
    })?;
    Ok(size)
}

pub(super) fn set_size(side: i32, size: [u16; 4]) -> Result<()> {
    // SAFETY: the kernel reads four shorts.
    sys("TIOCSWINSZ", unsafe {
        libc::ioctl(side, libc::TIOCSWINSZ, size.as_ptr())
    })
    .map(drop)
}

/// Reads what comes within a while: the two sides are joined by a worker of the kernel.
pub(super) fn receive(side: i32, expected: &[u8]) -> Result<()> {
    let mut all = Vec::new();
    until("it comes", SOON / 4, || {
        all.extend(read(side, 4096).unwrap_or_default());
        all.len() >= expected.len()
    })
    .and_then(|()| same("what came", expected, &all))
}
