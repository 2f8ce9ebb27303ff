//! POSIX timers of threads that are not the first, and of threads and processes that have ended.

use std::hint::black_box;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::clocks::LONG;
use super::posix::{count_by_value, create, delete, get, handle, listed, set};
use crate::kit::{SOON, Setting, Watch, same, tid, until};

/// Expiries of the timer of the busy thread, and of the one that sleeps.
static EXPIRED: [AtomicI64; 2] = [const { AtomicI64::new(0) }; 2];

extern "C" fn expired(_: i32, info: *const libc::siginfo_t, _: *const libc::c_void) {
    count_by_value(&EXPIRED, info);
}

/// A busy thread and one that sleeps, each with a timer of its own CLOCK_THREAD_CPUTIME_ID that signals the process.
pub(crate) fn busy(_: &Setting) -> Result<Watch> {
    const SIGNAL: i32 = 47;
    handle(SIGNAL, expired)?;
    let period = Duration::from_millis(4);
    let timer = move |value| {
        let clock = libc::CLOCK_THREAD_CPUTIME_ID;
        let id = create(clock, libc::SIGEV_SIGNAL, SIGNAL, value)?;
        set(id, 0, period, period)
    };
    thread::spawn(move || {
        // A failure shows: nothing expires.
        drop(timer(0));
        loop {
            black_box(());
        }
    });
    thread::spawn(move || {
        drop(timer(1));
        loop {
            thread::park();
        }
    });
    Ok(Watch::new(|| {
        let [busy, idle] = [0, 1].map(|at: usize| EXPIRED[at].load(Ordering::SeqCst));
        until("the timer of the busy thread expires", SOON, || {
            EXPIRED[0].load(Ordering::SeqCst) > busy + 3
        })?;
        let now = EXPIRED[1].load(Ordering::SeqCst);
        same("that of the sleeping thread", &true, &(now <= idle + 1))
    })
    .spoiled_by(|| {
        EXPIRED[1].fetch_add(1, Ordering::SeqCst);
        thread::spawn(|| {
            loop {
                EXPIRED[1].fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(())
    }))
}

/// Timers that signal a thread which has ended, of its processor time, and of that of a child that has.
pub(crate) fn ended(_: &Setting) -> Result<Watch> {
    let gone = thread::spawn(|| {
        let id = tid();
        let period = Duration::from_millis(300);
        let signals = create(libc::CLOCK_MONOTONIC, libc::SIGEV_THREAD_ID, 48, 0)?;
        set(signals, 0, period, period)?;
        // make_thread_cpuclock of include/linux/posix-timers_types.h
        let counts = create(((!id) << 3) | 6, libc::SIGEV_SIGNAL, 48, 0)?;
        set(counts, 0, period, LONG)?;
        let own = create(libc::CLOCK_THREAD_CPUTIME_ID, libc::SIGEV_SIGNAL, 48, 0)?;
        set(own, 0, period, LONG)?;
        anyhow::Ok([signals, counts, own])
    });
    let Ok(timers) = gone.join() else {
        bail!("the thread has died");
    };
    let [signals, counts, own] = timers?;
    let mut child = std::process::Command::new("sleep").arg("1000").spawn()?;
    let pid = i32::try_from(child.id())?;
    let of_child = create(((!pid) << 3) | 2, libc::SIGEV_NONE, 0, 0)?;
    set(of_child, 0, Duration::from_secs(7), LONG)?;
    child.kill()?;
    child.wait()?;
    let before = listed()?;
    let untouched = [counts, own, of_child].map(get);
    let untouched: Vec<_> = untouched.into_iter().collect::<Result<_>>()?;
    Ok(Watch::new(move || {
        same("/proc/self/timers", &before, &listed()?)?;
        let [interval, left] = get(signals)?;
        let runs = interval == 300_000_000 && left > 0 && left <= interval;
        same("the timer that signals it runs", &true, &runs)?;
        let now = [counts, own, of_child].map(get);
        let now: Vec<_> = now.into_iter().collect::<Result<_>>()?;
        same("what the others tell", &untouched, &now)?;
        for id in [counts, own, of_child] {
            let done = set(id, 0, Duration::ZERO, LONG);
            let why = done.err().context("it could be set")?;
            same("why", &true, &why.to_string().ends_with("-3"))?;
        }
        Ok(())
    })
    .spoiled_by(move || delete(counts)))
}
