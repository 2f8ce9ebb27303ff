//! Threads that were moved to another futex while they wait.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::Result;
use libc::{FUTEX_PRIVATE_FLAG, MAP_ANONYMOUS, MAP_SHARED, PROT_READ, PROT_WRITE, SYS_futex};

use super::sleeping::{now, spec};
use crate::kit::{Area, Setting, TERM, Watch, args, blocked, raw, sys, timed};

/// Where they wait first, and where then.
#[derive(Clone, Copy)]
struct Two {
    first: &'static AtomicU32,
    second: u64,
    /// `FUTEX_PRIVATE_FLAG`
    flags: i32,
}

/// Moves whoever waits at the first one, and changes that then.
fn mover(two: Two, command: i32) -> Sender<()> {
    let (send, asked): (Sender<()>, Receiver<()>) = channel();
    std::thread::spawn(move || {
        for () in asked {
            let at = two.first.as_ptr() as u64;
            let operation = (command | two.flags) as u64;
            // None is woken, one is moved.
            let call = [at, operation, 0, 1, two.second, 0];
            while raw(SYS_futex, call) != 1 {
                std::thread::yield_now();
            }
            two.first.store(1, Ordering::SeqCst);
        }
    });
    send
}

/// Waits at the first one, with a time-out at this address or none.
fn wait_at(two: Two, moves: &Sender<()>, time: u64) -> i64 {
    two.first.store(0, Ordering::SeqCst);
    let _ = moves.send(());
    let at = two.first.as_ptr() as u64;
    let operation = (libc::FUTEX_WAIT | two.flags) as u64;
    raw(SYS_futex, args([at, operation, 0, time]))
}

fn wake(two: Two) -> Result<()> {
    let operation = (libc::FUTEX_WAKE | two.flags) as u64;
    // It may not have been moved yet.
    while raw(SYS_futex, args([two.second, operation, 1])) != 1 {
        std::thread::yield_now();
    }
    Ok(())
}

fn word() -> &'static AtomicU32 {
    Box::leak(Box::new(AtomicU32::new(0)))
}

fn private() -> Two {
    Two {
        first: word(),
        second: word().as_ptr() as u64,
        flags: FUTEX_PRIVATE_FLAG,
    }
}

/// FUTEX_WAIT
pub(crate) fn wait(_: &Setting) -> Result<Watch> {
    let two = private();
    let moves = mover(two, libc::FUTEX_CMP_REQUEUE);
    blocked(
        SYS_futex,
        move || wait_at(two, &moves, 0),
        0,
        move || wake(two),
    )
}

/// FUTEX_WAIT with a time-out
pub(crate) fn timed_wait(_: &Setting) -> Result<Watch> {
    let two = private();
    let moves = mover(two, libc::FUTEX_CMP_REQUEUE);
    timed(
        SYS_futex,
        move || wait_at(two, &moves, spec(TERM).as_ptr() as u64),
        -i64::from(libc::ETIMEDOUT),
    )
}

/// Both in one shared mapping.
pub(crate) fn shared(_: &Setting) -> Result<Watch> {
    let area = Area::map(2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1)?;
    let two = Two {
        // SAFETY: the mapping is never removed.
        first: unsafe { AtomicU32::from_ptr(area.page(0).cast()) },
        second: area.page(1) as u64 + 8,
        flags: 0,
    };
    let moves = mover(two, libc::FUTEX_CMP_REQUEUE);
    blocked(
        SYS_futex,
        move || wait_at(two, &moves, 0),
        0,
        move || wake(two),
    )
}

/// A lock with priority inheritance: the first thread holds it when others are moved to it.
pub(crate) fn pi(_: &Setting) -> Result<Watch> {
    let (first, lock) = (word(), word());
    let (at, second) = (first.as_ptr() as u64, lock.as_ptr() as u64);
    let call = move |command: i32| {
        let operation = (command | FUTEX_PRIVATE_FLAG) as u64;
        raw(SYS_futex, args([second, operation]))
    };
    sys("FUTEX_LOCK_PI", call(libc::FUTEX_LOCK_PI))?;
    let (send, asked): (Sender<()>, Receiver<()>) = channel();
    std::thread::spawn(move || {
        for () in asked {
            // One may be woken, if it gets the lock; it is held, so one is moved.
            let operation = (libc::FUTEX_CMP_REQUEUE_PI | FUTEX_PRIVATE_FLAG) as u64;
            while raw(SYS_futex, [at, operation, 1, 1, second, 0]) != 1 {
                std::thread::yield_now();
            }
            first.store(1, Ordering::SeqCst);
        }
    });
    blocked(
        SYS_futex,
        move || {
            // The first thread has it again, after what came before.
            while lock.load(Ordering::SeqCst) & 0x3fff_ffff != std::process::id() {
                std::thread::yield_now();
            }
            first.store(0, Ordering::SeqCst);
            let _ = send.send(());
            let operation = (libc::FUTEX_WAIT_REQUEUE_PI | FUTEX_PRIVATE_FLAG) as u64;
            let until = spec(now(libc::CLOCK_MONOTONIC) + TERM * 1000);
            let time = until.as_ptr() as u64;
            let result = raw(SYS_futex, [at, operation, 0, time, second, 0]);
            call(libc::FUTEX_UNLOCK_PI);
            result
        },
        0,
        move || {
            // Whoever was moved is queued at the lock.
            while first.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            sys("FUTEX_UNLOCK_PI", call(libc::FUTEX_UNLOCK_PI))?;
            sys("FUTEX_LOCK_PI", call(libc::FUTEX_LOCK_PI)).map(drop)
        },
    )
}
