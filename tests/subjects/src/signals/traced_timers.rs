//! Timers of tracees.

use std::time::Duration;

use anyhow::Result;
use libc::{
    CLOCK_BOOTTIME, CLOCK_MONOTONIC, CLOCK_REALTIME, ITIMER_PROF, ITIMER_REAL, ITIMER_VIRTUAL,
    MAP_ANONYMOUS, MAP_SHARED, PROT_READ, PROT_WRITE, PTRACE_CONT, PTRACE_TRACEME, SIGSTOP,
    TIMER_ABSTIME, c_int,
};

use super::traced::{raise, request, stops, watch};
use crate::kit::{Area, Setting, Watch, fork, same};

/// How far from where it was a timer may end, in nanoseconds.
const NEAR: i64 = 400_000_000;
/// Of the timer whose signal waits.
const PERIOD: i64 = 10_000_000;
/// That signal, which is blocked.
const BLOCKED: c_int = 40;
const ROUNDS: usize = 0;
const WRONG: usize = 1;

/// A tracee in the stop before a signal, with interval timers and POSIX timers.
pub(crate) fn timers(_: &Setting) -> Result<Watch> {
    let page = Area::map(1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1)?;
    let child = fork(move || {
        // SAFETY: takes no memory.
        unsafe { libc::ptrace(PTRACE_TRACEME, 0, 0, 0) };
        tracee(page);
    })?;
    stops(child, SIGSTOP)?;
    watch(
        child,
        || Ok(()),
        move || {
            let rounds = page.get(0, ROUNDS);
            request(PTRACE_CONT, child, 0)?;
            stops(child, SIGSTOP)?;
            same("what is wrong", &0, &page.get(0, WRONG))?;
            same("rounds", &(rounds + 1), &page.get(0, ROUNDS))
        },
    )
}

/// Nanoseconds of a clock.
pub(crate) fn now(clock: c_int) -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills it.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

fn spec(ns: i64) -> libc::timespec {
    libc::timespec {
        tv_sec: ns / 1_000_000_000,
        tv_nsec: ns % 1_000_000_000,
    }
}

/// A timer that sends a signal.
pub(crate) fn create(
    clock: c_int,
    signal: c_int,
    [value, every]: [i64; 2],
    flags: c_int,
) -> libc::timer_t {
    // SAFETY: the structures live through the calls, and zeros are valid.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        (event.sigev_notify, event.sigev_signo) = (libc::SIGEV_SIGNAL, signal);
        let mut timer: libc::timer_t = std::mem::zeroed();
        libc::timer_create(clock, &raw mut event, &raw mut timer);
        let wanted = libc::itimerspec {
            it_interval: spec(every),
            it_value: spec(value),
        };
        libc::timer_settime(timer, flags, &raw const wanted, std::ptr::null_mut());
        timer
    }
}

/// What remains of a timer and its interval, in nanoseconds.
pub(crate) fn told(timer: libc::timer_t) -> (i64, i64) {
    // SAFETY: the kernel fills it.
    let spec = unsafe {
        let mut spec: libc::itimerspec = std::mem::zeroed();
        libc::timer_gettime(timer, &raw mut spec);
        spec
    };
    let ns = |time: libc::timespec| time.tv_sec * 1_000_000_000 + time.tv_nsec;
    (ns(spec.it_value), ns(spec.it_interval))
}

/// The same of an interval timer.
pub(crate) fn told_interval(which: c_int) -> (i64, i64) {
    // SAFETY: the kernel fills it.
    let spec = unsafe {
        let mut spec: libc::itimerval = std::mem::zeroed();
        libc::getitimer(which, &raw mut spec);
        spec
    };
    let ns = |time: libc::timeval| time.tv_sec * 1_000_000_000 + time.tv_usec * 1000;
    (ns(spec.it_value), ns(spec.it_interval))
}

/// How often the timer has expired whose signal waits, by all signals of it that there are: after an upgrade one tells of
/// what was before the new kernel booted.
fn expired() -> i64 {
    let mut all = 0;
    let mut wait = 1_000_000_000;
    while let Some(count) = taken(wait) {
        all += count;
        wait = 0;
    }
    all
}

/// What one signal tells that comes within so many nanoseconds.
fn taken(wait: i64) -> Option<i64> {
    let set = 1_u64 << (BLOCKED - 1);
    let soon = spec(wait);
    // SAFETY: a set of 8 bytes; the kernel fills a siginfo, for which zeros are valid.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let (set, at) = (&raw const set, &raw mut info);
        let got = libc::syscall(libc::SYS_rt_sigtimedwait, set, at, &raw const soon, 8);
        if got != i64::from(BLOCKED) {
            return None;
        }
        // si_overrun
        let words = at.cast::<i32>();
        Some(1 + i64::from(*words.add(5)))
    }
}

fn tracee(page: Area) {
    const HOUR: i64 = 3_600_000_000_000;
    let set = 1_u64 << (BLOCKED - 1);
    // SAFETY: a set of signals as the kernel knows it, 8 bytes; structures that live.
    unsafe {
        let none = std::ptr::null::<u64>();
        libc::syscall(libc::SYS_rt_sigprocmask, 0, &raw const set, none, 8);
        for (which, seconds) in (1..).zip([ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF]) {
            let time = |tv_sec| libc::timeval { tv_sec, tv_usec: 0 };
            let wanted = libc::itimerval {
                it_interval: time(i64::from(which)),
                it_value: time(3600 + i64::from(which)),
            };
            libc::setitimer(seconds as _, &raw const wanted, std::ptr::null_mut());
        }
    }
    let real = now(CLOCK_REALTIME) + HOUR;
    let timers = [
        (CLOCK_MONOTONIC, create(CLOCK_MONOTONIC, 41, [HOUR, 7], 0)),
        (
            CLOCK_REALTIME,
            create(CLOCK_REALTIME, 42, [real, 0], TIMER_ABSTIME),
        ),
        (
            CLOCK_MONOTONIC,
            create(CLOCK_REALTIME, 43, [2 * HOUR, 0], 0),
        ),
        (CLOCK_BOOTTIME, create(CLOCK_BOOTTIME, 44, [3 * HOUR, 9], 0)),
    ];
    let unarmed = create(CLOCK_MONOTONIC, 45, [0, 0], 0);
    let ends = || timers.map(|(clock, timer)| now(clock) + told(timer).0);
    let before = ends();
    let real_end = now(CLOCK_MONOTONIC) + told_interval(ITIMER_REAL as _).0;
    // It is made some time between these.
    let least = now(CLOCK_MONOTONIC);
    create(CLOCK_MONOTONIC, BLOCKED, [PERIOD, PERIOD], 0);
    let most = now(CLOCK_MONOTONIC);
    let mut count = 0;
    std::thread::sleep(Duration::from_millis(25));
    loop {
        raise(SIGSTOP);
        let asked = now(CLOCK_MONOTONIC);
        count += expired();
        let passed = [asked - most, now(CLOCK_MONOTONIC) - least].map(|time| time / PERIOD);
        let near = |one: i64, other: i64| (one - other).abs() < NEAR;
        let intervals = timers.map(|(_, timer)| told(timer).1);
        let counting = [ITIMER_VIRTUAL, ITIMER_PROF].map(|which| told_interval(which as _));
        let checks = [
            before
                .iter()
                .zip(ends())
                .all(|(one, other)| near(*one, other)),
            intervals == [7, 0, 0, 9],
            told(unarmed) == (0, 0),
            near(
                real_end,
                now(CLOCK_MONOTONIC) + told_interval(ITIMER_REAL as _).0,
            ),
            told_interval(ITIMER_REAL as _).1 == 1_000_000_000,
            counting.map(|(_, every)| every) == [2_000_000_000, 3_000_000_000],
            near(counting[0].0, HOUR + 2_000_000_000) && near(counting[1].0, HOUR + 3_000_000_000),
            // As many as periods have passed.
            (passed[0] - 3..=passed[1] + 3).contains(&count),
        ];
        let wrong = checks.iter().enumerate().filter(|(_, well)| !**well);
        let wrong = wrong.fold(0, |all, (bit, _)| all | 1 << bit);
        page.put(0, WRONG, page.get(0, WRONG) | wrong);
        page.put(0, ROUNDS, page.get(0, ROUNDS) + 1);
    }
}
