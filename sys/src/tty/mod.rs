//! Terminals: what nix lacks of `ioctl_tty(2)`.

pub mod packet;
pub mod queues;
pub mod unopened;

use crate::{Errno, Pid, Result};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `struct termios2` (include/uapi/asm-generic/termbits.h): with line discipline and any speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[repr(C)]
#[allow(missing_docs, reason = "named as in struct termios2, see termios(3)")]
pub struct Termios {
    pub iflag: u32,
    pub oflag: u32,
    pub cflag: u32,
    pub lflag: u32,
    /// Number of the line discipline, `N_TTY` 0.
    pub line: u8,
    pub cc: [u8; 19],
    pub ispeed: u32,
    pub ospeed: u32,
}

/// Which settings nobody may change but root: bits of `struct termios`, as `TIOCGLCKTRMIOS` tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[repr(C)]
#[allow(missing_docs, reason = "named as in struct termios, see termios(3)")]
pub struct Locked {
    pub iflag: u32,
    pub oflag: u32,
    pub cflag: u32,
    pub lflag: u32,
    pub line: u8,
    pub cc: [u8; 19],
}

/// `struct winsize`: rows, columns, pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[repr(C)]
#[allow(missing_docs, reason = "named as in struct winsize")]
pub struct Winsize {
    pub row: u16,
    pub col: u16,
    pub xpixel: u16,
    pub ypixel: u16,
}

// Numbers of include/uapi/asm-generic/ioctls.h.
const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
const TIOCGLCKTRMIOS: u64 = 0x5456;
const TIOCSLCKTRMIOS: u64 = 0x5457;
const TIOCGEXCL: u64 = 0x8004_5440;
const TIOCGDEV: u64 = 0x8004_5432;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGPTPEER: u64 = 0x5441;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGPTN: u64 = 0x8004_5430;

/// An ioctl whose argument is a pointer to a `T`, which the kernel fills or reads.
fn by_pointer<T>(fd: &impl AsFd, request: u64, value: &mut T) -> Result<()> {
    // SAFETY: `value` is live, and every request of this module takes a pointer to exactly this
    // type; `T` is plain old data, so whatever is written is valid.
    let result =
        unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, core::ptr::from_mut(value)) };
    Errno::result(result).map(drop)
}

/// An ioctl whose argument is a number.
fn by_value(fd: &impl AsFd, request: u64, value: libc::c_ulong) -> Result<i32> {
    // SAFETY: the requests of this module that come here take no pointer.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, value) })
}

fn number(fd: &impl AsFd, request: u64) -> Result<u32> {
    let mut value = 0u32;
    by_pointer(fd, request, &mut value).map(|()| value)
}

/// `TCGETS2`.
///
/// # Errors
/// `ENOTTY` for what is no terminal, `EIO` for one that was hung up.
pub fn termios(fd: &impl AsFd) -> Result<Termios> {
    let mut termios = Termios::default();
    by_pointer(fd, TCGETS2, &mut termios).map(|()| termios)
}

/// `TCSETS2`: takes effect at once.
///
/// # Errors
/// As [`termios`].
pub fn set_termios(fd: &impl AsFd, termios: &Termios) -> Result<()> {
    by_pointer(fd, TCSETS2, &mut { *termios })
}

/// `TIOCGLCKTRMIOS`: which settings are locked.
///
/// # Errors
/// As [`termios`].
pub fn locked_settings(fd: &impl AsFd) -> Result<Locked> {
    let mut locked = Locked::default();
    by_pointer(fd, TIOCGLCKTRMIOS, &mut locked).map(|()| locked)
}

/// `TIOCSLCKTRMIOS`.
///
/// # Errors
/// As [`termios`].
pub fn lock_settings(fd: &impl AsFd, locked: &Locked) -> Result<()> {
    by_pointer(fd, TIOCSLCKTRMIOS, &mut { *locked })
}

/// `TIOCGWINSZ`.
///
/// # Errors
/// As [`termios`].
pub fn winsize(fd: &impl AsFd) -> Result<Winsize> {
    let mut size = Winsize::default();
    by_pointer(fd, libc::TIOCGWINSZ, &mut size).map(|()| size)
}

/// `TIOCSWINSZ`. The foreground group gets SIGWINCH when it changes.
///
/// # Errors
/// As [`termios`].
pub fn set_winsize(fd: &impl AsFd, size: Winsize) -> Result<()> {
    by_pointer(fd, libc::TIOCSWINSZ, &mut { size })
}

/// `TIOCGDEV`: the terminal's own device number, whatever node it was opened by (`/dev/tty`,
/// `/dev/console`); for a master that of its slave.
///
/// # Errors
/// As [`termios`].
pub fn device(fd: &impl AsFd) -> Result<u32> {
    number(fd, TIOCGDEV)
}

/// Whether it is in exclusive mode (`TIOCGEXCL`).
///
/// # Errors
/// As [`termios`].
pub fn exclusive(fd: &impl AsFd) -> Result<bool> {
    number(fd, TIOCGEXCL).map(|n| n != 0)
}

/// `TIOCEXCL`: nobody without CAP_SYS_ADMIN opens it again.
///
/// # Errors
/// As [`termios`].
pub fn set_exclusive(fd: &impl AsFd) -> Result<()> {
    by_value(fd, libc::TIOCEXCL, 0).map(drop)
}

/// Whether a virtual console is in graphics mode (`KDGETMODE`, ioctl_console(2)).
///
/// # Errors
/// `ENOTTY` for what is no virtual console.
pub fn graphics(console: &impl AsFd) -> Result<bool> {
    const KDGETMODE: u64 = 0x4b3b;
    const KD_TEXT: u32 = 0;
    number(console, KDGETMODE).map(|mode| mode != KD_TEXT)
}

/// Bytes that can be read now (`TIOCINQ`): in canonical mode those of complete lines.
///
/// # Errors
/// As [`termios`].
pub fn readable(fd: &impl AsFd) -> Result<usize> {
    number(fd, libc::FIONREAD).map(|n| n as usize)
}

/// `TIOCSTI`: puts a byte into the terminal's input as if it had been received.
///
/// # Errors
/// `EIO` without CAP_SYS_ADMIN where `dev.tty.legacy_tiocsti` is 0, `EPERM`.
pub fn push(fd: &impl AsFd, byte: u8) -> Result<()> {
    by_pointer(fd, libc::TIOCSTI, &mut { byte })
}

/// The index of the pair a master belongs to (`TIOCGPTN`).
///
/// # Errors
/// `ENOTTY` for what is no master.
pub fn pty_index(master: &impl AsFd) -> Result<u32> {
    number(master, TIOCGPTN)
}

/// Packet mode of a master (`TIOCGPKT`).
///
/// # Errors
/// As [`pty_index`].
pub fn packet_mode(master: &impl AsFd) -> Result<bool> {
    number(master, TIOCGPKT).map(|n| n != 0)
}

/// Sets packet mode (`TIOCPKT`); forgets status that was not read yet.
///
/// # Errors
/// As [`pty_index`].
pub fn set_packet_mode(master: &impl AsFd, on: bool) -> Result<()> {
    by_pointer(master, libc::TIOCPKT, &mut i32::from(on))
}

/// Whether the slave cannot be opened by its path yet (`TIOCGPTLCK`).
///
/// # Errors
/// As [`pty_index`].
pub fn locked(master: &impl AsFd) -> Result<bool> {
    number(master, TIOCGPTLCK).map(|n| n != 0)
}

/// Locks or unlocks the slave (`TIOCSPTLCK`).
///
/// # Errors
/// As [`pty_index`].
pub fn set_locked(master: &impl AsFd, locked: bool) -> Result<()> {
    by_pointer(master, TIOCSPTLCK, &mut i32::from(locked))
}

/// Opens a master's slave without a path (`TIOCGPTPEER`, ioctl_tty(2)), not as controlling
/// terminal.
///
/// # Errors
/// As [`pty_index`].
pub fn peer(master: &impl AsFd, flags: i32) -> Result<OwnedFd> {
    let flags = (flags & !libc::O_CLOEXEC | libc::O_NOCTTY) as libc::c_ulong;
    let fd = by_value(master, TIOCGPTPEER, flags)?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    let slave = unsafe { OwnedFd::from_raw_fd(fd) };
    // Not by O_CLOEXEC: this request, unlike open(2), leaves it among the flags that F_GETFL shows.
    let flags = nix::fcntl::FdFlag::FD_CLOEXEC;
    nix::fcntl::fcntl(&slave, nix::fcntl::FcntlArg::F_SETFD(flags))?;
    Ok(slave)
}

/// `TIOCSCTTY`: makes it the controlling terminal of the caller, who must lead a session; `steal`
/// takes it from another session.
///
/// # Errors
/// `EPERM`.
pub fn set_controlling(fd: &impl AsFd, steal: bool) -> Result<()> {
    by_value(fd, libc::TIOCSCTTY, libc::c_ulong::from(steal)).map(drop)
}

/// `TIOCNOTTY`: the caller, when it leads a session, gives its controlling terminal up for all of it.
/// Its foreground group gets SIGHUP and SIGCONT.
///
/// # Errors
/// `ENOTTY` when it is not the caller's.
pub fn give_up_controlling(fd: &impl AsFd) -> Result<()> {
    by_value(fd, libc::TIOCNOTTY, 0).map(drop)
}

/// The foreground group (`TIOCGPGRP`): of a master, its slave's; 0 for none.
///
/// # Errors
/// `ENOTTY` when it is not the caller's controlling terminal and no master.
pub fn foreground(fd: &impl AsFd) -> Result<Pid> {
    number(fd, libc::TIOCGPGRP).map(|n| Pid(n.cast_signed()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn a_pair_and_its_settings() {
        let master = File::options()
            .read(true)
            .write(true)
            .open("/dev/ptmx")
            .unwrap();
        assert!(locked(&master).unwrap());
        set_locked(&master, false).unwrap();
        let slave = peer(&master, libc::O_RDWR).unwrap();
        let mut settings = termios(&slave).unwrap();
        settings.lflag &= !(libc::ECHO | libc::ICANON);
        settings.cc[libc::VMIN] = 7;
        set_termios(&slave, &settings).unwrap();
        assert_eq!(termios(&slave).unwrap(), settings);
        let size = Winsize {
            row: 3,
            col: 5,
            xpixel: 7,
            ypixel: 9,
        };
        set_winsize(&slave, size).unwrap();
        assert_eq!(winsize(&master).unwrap(), size);
        assert_eq!(
            device(&slave).unwrap() & 0xff,
            pty_index(&master).unwrap() & 0xff
        );
        assert!(!packet_mode(&master).unwrap());
        push(&slave, b'x').unwrap();
        assert_eq!(readable(&slave).unwrap(), 1);
        let mut slave = File::from(slave);
        slave.write_all(b"out").unwrap();
        let mut text = [0; 3];
        (&master).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"out");
    }
}
