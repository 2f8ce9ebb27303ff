//! Sleeps of threads whose seccomp filters end them in `restart_syscall(2)`, by which the kernel goes on with a sleep.

use anyhow::Result;
use libc::{FUTEX_PRIVATE_FLAG, SYS_clock_nanosleep, SYS_futex, SYS_nanosleep, SYS_poll};

use super::sleeping::spec;
use crate::kit::{LONG_TERM, Setting, TERM, Watch, args, raw, timed, timed_long};
use crate::threads::seccomp::answer;

/// The same call of a thread that has such a filter.
fn barred(mut call: impl FnMut() -> i64 + Send + 'static) -> impl FnMut() -> i64 + Send + 'static {
    let mut filter = None;
    move || {
        let kill = libc::SECCOMP_RET_KILL_PROCESS;
        match filter.get_or_insert_with(|| answer(libc::SYS_restart_syscall, kill)) {
            Ok(()) => call(),
            Err(_) => -1,
        }
    }
}

/// nanosleep, stopped more than once.
pub(crate) fn nanosleep(_: &Setting) -> Result<Watch> {
    let call = || raw(SYS_nanosleep, args([spec(LONG_TERM).as_ptr() as u64]));
    timed_long(SYS_nanosleep, barred(call), 0)
}

/// clock_nanosleep on CLOCK_BOOTTIME, relative.
pub(crate) fn boottime(_: &Setting) -> Result<Watch> {
    let call = || {
        let (clock, time) = (libc::CLOCK_BOOTTIME as u64, spec(TERM));
        raw(SYS_clock_nanosleep, args([clock, 0, time.as_ptr() as u64]))
    };
    timed(SYS_clock_nanosleep, barred(call), 0)
}

/// poll, stopped more than once.
pub(crate) fn poll(_: &Setting) -> Result<Watch> {
    let call = || raw(SYS_poll, args([0, 0, LONG_TERM.as_millis() as u64]));
    timed_long(SYS_poll, barred(call), 0)
}

/// FUTEX_WAIT, relative.
pub(crate) fn futex(_: &Setting) -> Result<Watch> {
    let word = Box::leak(Box::new(0_u32));
    let at = &raw const *word as u64;
    let call = move || {
        let time = spec(TERM);
        let pointer = time.as_ptr() as u64;
        raw(SYS_futex, args([at, FUTEX_PRIVATE_FLAG as u64, 0, pointer]))
    };
    timed(SYS_futex, barred(call), -i64::from(libc::ETIMEDOUT))
}
