//! Reads of terminals that tell single characters (termios(3), "noncanonical mode").

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use libc::{O_NOCTTY, O_RDWR};

use super::polling::push;
use crate::kit::files::open;
use crate::kit::{Area, Kin, Setting, TERM, Watch, args, blocked, raw, sys, timed};

/// Master, and a slave that waits for so many characters, or for so many tenths of a second.
pub(super) fn pty(least: u8, tenths: u8) -> Result<[i32; 2]> {
    let master = open("/dev/ptmx", O_RDWR | O_NOCTTY)?;
    let (unlocked, mut number) = (0, 0);
    // SAFETY: the kernel reads one int and writes another one.
    unsafe {
        sys(
            "TIOCSPTLCK",
            libc::ioctl(master, libc::TIOCSPTLCK, &raw const unlocked),
        )?;
        sys(
            "TIOCGPTN",
            libc::ioctl(master, libc::TIOCGPTN, &raw mut number),
        )?;
    }
    let slave = open(format!("/dev/pts/{number}"), O_RDWR | O_NOCTTY)?;
    // SAFETY: the kernel fills the structure and reads it.
    unsafe {
        let mut termios: libc::termios = std::mem::zeroed();
        sys("tcgetattr", libc::tcgetattr(slave, &raw mut termios))?;
        libc::cfmakeraw(&raw mut termios);
        termios.c_cc[libc::VMIN] = least;
        termios.c_cc[libc::VTIME] = tenths;
        let set = libc::tcsetattr(slave, libc::TCSANOW, &raw const termios);
        sys("tcsetattr", set)?;
    }
    Ok([master, slave])
}

/// Reads up to eight characters.
pub(super) fn read(slave: i32) -> i64 {
    let mut found = [0_u8; 8];
    let call = args([slave as u64, found.as_mut_ptr() as u64, 8]);
    match raw(libc::SYS_read, call) {
        count
            if found
                .iter()
                .take(count.max(0) as usize)
                .any(|byte| *byte != b'x') =>
        {
            -1
        }
        count => count,
    }
}

/// Five are waited for, two are there.
pub(crate) fn least(_: &Setting) -> Result<Watch> {
    let [master, slave] = pty(5, 0)?;
    let some = move |count| (0..count).try_for_each(|_| push(master));
    some(2)?;
    blocked(
        libc::SYS_read,
        move || {
            let result = read(slave);
            // For the next one.
            if some(2).is_err() { -1 } else { result }
        },
        5,
        move || some(3),
    )
}

/// The same in a child, which has so much memory of its parent that it is worth forking it.
pub(crate) fn least_in_child(setting: &Setting) -> Result<Watch> {
    Area::anonymous(512)?.fill(1);
    let child = Rc::new(RefCell::new(Kin::start(setting, "child", least)?));
    let spoiled = child.clone();
    Ok(Watch::new(move || child.borrow_mut().check()).spoiled_by(move || spoiled.borrow().spoil()))
}

pub(super) fn tenths(time: Duration) -> u8 {
    (time.as_millis() / 100) as u8
}

/// `VTIME` alone.
pub(crate) fn timed_read(_: &Setting) -> Result<Watch> {
    let [_master, slave] = pty(0, tenths(TERM))?;
    timed(libc::SYS_read, move || read(slave), 0)
}

/// `VTIME` between two characters: one has come.
pub(crate) fn timed_between(_: &Setting) -> Result<Watch> {
    let [master, slave] = pty(5, tenths(TERM))?;
    timed(
        libc::SYS_read,
        move || match push(master) {
            Ok(()) => read(slave),
            Err(_) => -1,
        },
        1,
    )
}
