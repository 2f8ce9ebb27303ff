//! Waiting for signals.

use std::sync::mpsc::{Receiver, channel};

use anyhow::Result;

use super::sleeping::spec;
use crate::kit::{Setting, TERM, Watch, args, blocked, raw, sys, tid, timed};

extern "C" fn nothing(_: i32) {}

/// A handler that does nothing, without SA_RESTART.
pub(super) fn handle(signal: i32) -> Result<()> {
    // SAFETY: zeros are a valid structure, the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        sys(
            "sigaction",
            libc::sigaction(signal, &action, std::ptr::null_mut()),
        )
        .map(drop)
    }
}

/// A signal for a thread.
pub(super) fn kill(tid: i32, signal: i32) -> Result<()> {
    // SAFETY: takes numbers.
    let done = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) };
    sys("tgkill", done).map(drop)
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn block(mask: u64) {
    let set = &raw const mask as u64;
    raw(
        libc::SYS_rt_sigprocmask,
        args([libc::SIG_BLOCK as u64, set, 0, 8]),
    );
}

/// A waiting thread that says who it is.
fn waiter(
    number: i64,
    expected: i64,
    signal: i32,
    mut call: impl FnMut() -> i64 + Send + 'static,
) -> Result<Watch> {
    let (send, its_tid): (_, Receiver<i32>) = channel();
    blocked(
        number,
        move || {
            let _ = send.send(tid());
            call()
        },
        expected,
        move || kill(its_tid.recv()?, signal),
    )
}

const INTERRUPTED: i64 = -(libc::EINTR as i64);

/// With a mask of its own: afterwards the old mask is back, in which the signal is blocked.
pub(crate) fn suspend(_: &Setting) -> Result<Watch> {
    handle(libc::SIGUSR2)?;
    waiter(
        libc::SYS_rt_sigsuspend,
        INTERRUPTED - 1000,
        libc::SIGUSR2,
        || {
            block(bit(libc::SIGUSR2));
            let mask = !bit(libc::SIGUSR2);
            let result = raw(libc::SYS_rt_sigsuspend, args([&raw const mask as u64, 8]));
            let mut now = 0_u64;
            raw(
                libc::SYS_rt_sigprocmask,
                args([0, 0, &raw mut now as u64, 8]),
            );
            result - if now == bit(libc::SIGUSR2) { 1000 } else { 0 }
        },
    )
}

/// pause
pub(crate) fn pause(_: &Setting) -> Result<Watch> {
    handle(libc::SIGUSR2)?;
    waiter(libc::SYS_pause, INTERRUPTED, libc::SIGUSR2, || {
        raw(libc::SYS_pause, args([]))
    })
}

fn wait_for(signal: i32, time: u64) -> i64 {
    let set = bit(signal);
    block(set);
    raw(
        libc::SYS_rt_sigtimedwait,
        args([&raw const set as u64, 0, time, 8]),
    )
}

/// sigwaitinfo
pub(crate) fn waitinfo(_: &Setting) -> Result<Watch> {
    handle(libc::SIGUSR2)?;
    waiter(
        libc::SYS_rt_sigtimedwait,
        libc::SIGUSR2.into(),
        libc::SIGUSR2,
        || wait_for(libc::SIGUSR2, 0),
    )
}

/// sigtimedwait
pub(crate) fn timedwait(_: &Setting) -> Result<Watch> {
    timed(
        libc::SYS_rt_sigtimedwait,
        || wait_for(libc::SIGUSR2, spec(TERM).as_ptr() as u64),
        -i64::from(libc::EAGAIN),
    )
}
