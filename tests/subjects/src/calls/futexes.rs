//! Futexes.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use libc::{FUTEX_PRIVATE_FLAG, MAP_ANONYMOUS, MAP_SHARED, PROT_READ, PROT_WRITE, SYS_futex};

use super::sleeping::{now, spec};
use crate::kit::{
    Area, Kin, LONG_TERM, Setting, TERM, Watch, args, blocked, not_here, raw, sys, timed,
    timed_long,
};

const SYS_FUTEX_WAITV: i64 = 449;

fn word() -> &'static AtomicU32 {
    Box::leak(Box::new(AtomicU32::new(0)))
}

fn wake(at: u64) -> Result<()> {
    // Whoever waits may not have come to it yet.
    while raw(SYS_futex, args([at, libc::FUTEX_WAKE as u64, 1])) != 1 {
        std::thread::yield_now();
    }
    Ok(())
}

/// FUTEX_WAIT
pub(crate) fn wait(_: &Setting) -> Result<Watch> {
    let at = word().as_ptr() as u64;
    blocked(
        SYS_futex,
        move || raw(SYS_futex, args([at])),
        0,
        move || wake(at),
    )
}

const TIMED_OUT: i64 = -(libc::ETIMEDOUT as i64);

/// FUTEX_WAIT, private, relative
pub(crate) fn timed_wait(_: &Setting) -> Result<Watch> {
    let at = word().as_ptr() as u64;
    timed(
        SYS_futex,
        move || {
            raw(
                SYS_futex,
                args([at, FUTEX_PRIVATE_FLAG as u64, 0, spec(TERM).as_ptr() as u64]),
            )
        },
        TIMED_OUT,
    )
}

/// FUTEX_WAIT with a relative time-out, stopped more than once.
pub(crate) fn twice(_: &Setting) -> Result<Watch> {
    let at = word().as_ptr() as u64;
    timed_long(
        SYS_futex,
        move || {
            let time = spec(LONG_TERM);
            let pointer = time.as_ptr() as u64;
            raw(SYS_futex, args([at, FUTEX_PRIVATE_FLAG as u64, 0, pointer]))
        },
        TIMED_OUT,
    )
}

/// FUTEX_WAIT_BITSET, absolute
pub(crate) fn bitset(_: &Setting) -> Result<Watch> {
    let at = word().as_ptr() as u64;
    timed(
        SYS_futex,
        move || {
            let until = spec(now(libc::CLOCK_MONOTONIC) + TERM);
            let operation = libc::FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG;
            raw(
                SYS_futex,
                [
                    at,
                    operation as u64,
                    0,
                    until.as_ptr() as u64,
                    0,
                    u32::MAX.into(),
                ],
            )
        },
        TIMED_OUT,
    )
}

/// A lock with priority inheritance, held by the first thread.
pub(crate) fn pi(_: &Setting) -> Result<Watch> {
    let lock = word();
    let at = lock.as_ptr() as u64;
    let held = raw(SYS_futex, args([at, libc::FUTEX_LOCK_PI as u64]));
    sys("FUTEX_LOCK_PI", held)?;
    blocked(
        SYS_futex,
        move || {
            let result = raw(SYS_futex, args([at, libc::FUTEX_LOCK_PI as u64]));
            // Back to the first thread: unlock, and wait until it has it again.
            raw(SYS_futex, args([at, libc::FUTEX_UNLOCK_PI as u64]));
            let first = std::process::id();
            while lock.load(Ordering::SeqCst) & 0x3fff_ffff != first {
                std::thread::yield_now();
            }
            result
        },
        0,
        move || {
            sys(
                "FUTEX_UNLOCK_PI",
                raw(SYS_futex, args([at, libc::FUTEX_UNLOCK_PI as u64])),
            )?;
            sys(
                "FUTEX_LOCK_PI",
                raw(SYS_futex, args([at, libc::FUTEX_LOCK_PI as u64])),
            )
            .map(drop)
        },
    )
}

/// Two words at once (struct futex_waitv).
pub(crate) fn waitv(_: &Setting) -> Result<Watch> {
    let (first, second) = (word().as_ptr() as u64, word().as_ptr() as u64);
    if raw(SYS_FUTEX_WAITV, args([])) == -i64::from(libc::ENOSYS) {
        return not_here("no futex_waitv");
    }
    blocked(
        SYS_FUTEX_WAITV,
        move || {
            // Value, address, FUTEX_32.
            let words = [0, first, 2, 0, second, 2];
            raw(SYS_FUTEX_WAITV, args([words.as_ptr() as u64, 2]))
        },
        1,
        move || wake(second),
    )
}

/// The word is shared with a child, which wakes.
pub(crate) fn shared(setting: &Setting) -> Result<Watch> {
    let area = Area::map(1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1)?;
    let at = area.page(0) as u64;
    let mut child = Kin::start(setting, "child", move |_| Ok(Watch::new(move || wake(at))))?;
    blocked(
        SYS_futex,
        move || raw(SYS_futex, args([at])),
        0,
        move || child.check(),
    )
}
