//! Interval timers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};

use super::clocks::{Countdown, LONG, age, now};
use crate::kit::{SOON, Setting, Watch, args, raw, same, sys, until};

/// Interval and value in microseconds.
fn set(which: i32, interval: Duration, value: Duration) -> Result<()> {
    let words = [
        interval.as_secs(),
        interval.subsec_micros().into(),
        value.as_secs(),
        value.subsec_micros().into(),
    ];
    sys(
        "setitimer",
        raw(
            libc::SYS_setitimer,
            args([which as u64, words.as_ptr() as u64]),
        ),
    )
    .map(drop)
}

fn get(which: i32) -> Result<[Duration; 2]> {
    let mut words = [0_u64; 4];
    sys(
        "getitimer",
        raw(
            libc::SYS_getitimer,
            args([which as u64, words.as_mut_ptr() as u64]),
        ),
    )?;
    let time = |at: usize| Duration::new(words[at], words[at + 1] as u32 * 1000);
    Ok([time(0), time(2)])
}

fn kept(which: i32, clock: i32) -> Result<Watch> {
    let interval = Duration::from_micros(12_345_678);
    let countdown = Countdown::of(clock, LONG, || set(which, interval, LONG))?;
    age();
    Ok(Watch::new(move || {
        let [every, left] = get(which)?;
        same("the interval", &interval, &every)?;
        countdown.check("the timer", left.as_nanos() as u64)
    })
    .spoiled_by(move || set(which, interval, LONG / 2)))
}

/// Real time.
pub(crate) fn real(_: &Setting) -> Result<Watch> {
    kept(libc::ITIMER_REAL, libc::CLOCK_MONOTONIC)
}

/// User time of the process: next to none goes by.
pub(crate) fn virt(_: &Setting) -> Result<Watch> {
    kept(libc::ITIMER_VIRTUAL, libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// User and system time.
pub(crate) fn prof(_: &Setting) -> Result<Watch> {
    kept(libc::ITIMER_PROF, libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Those of processor time, which the kernel arms for a tick more than it is told: less and less is left.
pub(crate) fn ticks(_: &Setting) -> Result<Watch> {
    const FEW_TICKS: Duration = Duration::from_millis(50);
    let which = [libc::ITIMER_VIRTUAL, libc::ITIMER_PROF];
    let mut left = [LONG; 2];
    for (which, left) in which.into_iter().zip(&mut left) {
        set(which, Duration::ZERO, LONG)?;
        *left = get(which)?[1];
    }
    let mut looked = std::time::Instant::now();
    Ok(Watch::new(move || {
        // One thread was on a processor no longer than that.
        let passed = looked.elapsed() + FEW_TICKS;
        looked = std::time::Instant::now();
        for (which, left) in which.into_iter().zip(&mut left) {
            let now = get(which)?[1];
            if now > *left || *left - now > passed {
                bail!("timer {which} had {left:?} left and has {now:?} after {passed:?}");
            }
            *left = now;
        }
        Ok(())
    })
    .spoiled_by(|| set(libc::ITIMER_VIRTUAL, Duration::ZERO, LONG * 2)))
}

static FIRED: AtomicU32 = AtomicU32::new(0);

extern "C" fn fired(_: i32) {
    FIRED.fetch_add(1, Ordering::SeqCst);
}

/// It goes on firing.
pub(crate) fn periodic(_: &Setting) -> Result<Watch> {
    // SAFETY: zeros are a valid structure, the handler uses an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = fired as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        sys(
            "sigaction",
            libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()),
        )?;
    }
    let every = Duration::from_millis(200);
    set(libc::ITIMER_REAL, every, every)?;
    Ok(Watch::new(move || {
        let before = FIRED.load(Ordering::SeqCst);
        until("it fires three times more", SOON / 4, || {
            FIRED.load(Ordering::SeqCst) >= before + 3
        })
    })
    .spoiled_by(move || set(libc::ITIMER_REAL, Duration::ZERO, Duration::ZERO)))
}

/// It fires at the moments it would have, though some of those pass while nobody runs.
pub(crate) fn phase(_: &Setting) -> Result<Watch> {
    let every = Duration::from_millis(700);
    // SAFETY: a valid handler, which does nothing.
    unsafe { libc::signal(libc::SIGALRM, fired as *const () as usize) };
    let first = Duration::from_nanos(now(libc::CLOCK_MONOTONIC)) + every;
    set(libc::ITIMER_REAL, every, every)?;
    Ok(
        Watch::new(move || in_phase(first, every)).spoiled_by(move || {
            let [_, left] = get(libc::ITIMER_REAL)?;
            set(libc::ITIMER_REAL, left + every / 2, every)
        }),
    )
}

/// Whether it expires next as if it had never been set again since its first time.
fn in_phase(first: Duration, every: Duration) -> Result<()> {
    /// How far off it may be, also on a machine that is slow: it can only be set by what remains.
    const CLOSE: Duration = Duration::from_millis(60);
    // Whoever stands between the readings is off by that, one way or the other.
    let off = || -> Result<u128> {
        let now = Duration::from_nanos(now(libc::CLOCK_MONOTONIC));
        let next = now + get(libc::ITIMER_REAL)?[1];
        let off = (next + every * 1000 - first).as_micros() % every.as_micros();
        Ok(off.min(every.as_micros() - off))
    };
    let mut tries = (0..21).map(|_| off()).collect::<Result<Vec<_>>>()?;
    tries.sort_unstable();
    let off = tries[tries.len() / 2];
    if off > CLOSE.as_micros() {
        bail!("it is {off} us off");
    }
    Ok(())
}

/// Its signal is blocked and waits: it fires on all the same once the signal is taken.
pub(crate) fn pending(_: &Setting) -> Result<Watch> {
    let mask = 1_u64 << (libc::SIGALRM - 1);
    raw(
        libc::SYS_rt_sigprocmask,
        args([0, &raw const mask as u64, 0, 8]),
    );
    let every = Duration::from_millis(10);
    set(libc::ITIMER_REAL, every, every)?;
    std::thread::sleep(every * 3);
    Ok(Watch::new(move || {
        let patience = [5_u64, 0];
        for _ in 0..3 {
            let arguments = [&raw const mask as u64, 0, patience.as_ptr() as u64, 8];
            let got = raw(libc::SYS_rt_sigtimedwait, args(arguments));
            same("its signal", &i64::from(libc::SIGALRM), &got)?;
        }
        same("the interval", &every, &get(libc::ITIMER_REAL)?[0])?;
        std::thread::sleep(every * 3);
        Ok(())
    })
    .spoiled_by(move || set(libc::ITIMER_REAL, Duration::ZERO, Duration::ZERO)))
}

/// Seconds until SIGALRM.
pub(crate) fn alarm(_: &Setting) -> Result<Watch> {
    // SAFETY: takes a number.
    let alarm = |seconds: u64| unsafe { libc::alarm(seconds as u32) };
    let countdown = Countdown::of(libc::CLOCK_MONOTONIC, LONG, || {
        alarm(LONG.as_secs());
        Ok(())
    })?;
    age();
    Ok(Watch::new(move || {
        let [every, left] = get(libc::ITIMER_REAL)?;
        same("the interval", &Duration::ZERO, &every)?;
        countdown.check("the alarm", left.as_nanos() as u64)
    })
    .spoiled_by(move || {
        alarm(0);
        Ok(())
    }))
}

/// It has expired long ago and its signal waits: once that is taken it goes on in its phase.
pub(crate) fn phase_taken(_: &Setting) -> Result<Watch> {
    let mask = 1_u64 << (libc::SIGALRM - 1);
    raw(
        libc::SYS_rt_sigprocmask,
        args([0, &raw const mask as u64, 0, 8]),
    );
    let every = Duration::from_millis(700);
    let moment = || Duration::from_nanos(now(libc::CLOCK_MONOTONIC));
    let wait = move || {
        let expired = || get(libc::ITIMER_REAL).is_ok_and(|[_, left]| left.is_zero());
        until("it expires", SOON, expired)?;
        // Whoever counts from now on is off.
        std::thread::sleep(every / 2);
        Ok(())
    };
    let first = moment() + every;
    set(libc::ITIMER_REAL, every, every)?;
    wait()?;
    let take = move || {
        let patience = [5_u64, 0];
        let arguments = [&raw const mask as u64, 0, patience.as_ptr() as u64, 8];
        let got = raw(libc::SYS_rt_sigtimedwait, args(arguments));
        same("the signal", &i64::from(libc::SIGALRM), &got)
    };
    Ok(Watch::new(move || {
        take()?;
        in_phase(first, every)?;
        wait()
    })
    .spoiled_by(move || {
        set(libc::ITIMER_REAL, Duration::ZERO, Duration::ZERO)?;
        take()
    }))
}
