//! Clocks seen by a program.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::kit::{Setting, Watch, args, raw};

/// How far a moment is from one that is known to lie between two: a process may be held up between looking at
/// a timer and looking at its clock.
pub(crate) fn distance(moment: u64, earliest: u64, latest: u64) -> u64 {
    let before = earliest.saturating_sub(moment);
    before.max(moment.saturating_sub(latest))
}

/// The time of a clock in nanoseconds.
pub(crate) fn now(clock: i32) -> u64 {
    let mut time = [0_u64; 2];
    raw(
        libc::SYS_clock_gettime,
        args([clock as u64, time.as_mut_ptr() as u64]),
    );
    time[0] * 1_000_000_000 + time[1]
}

/// The same through the vdso.
pub(crate) fn through_vdso(clock: i32) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is alive.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A threads looks at both clocks all the time, by call and by vdso.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    static BACK: AtomicU64 = AtomicU64::new(0);
    std::thread::spawn(|| {
        let mut last = [0; 2];
        loop {
            for (clock, last) in [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME]
                .into_iter()
                .zip(&mut last)
            {
                for time in [now(clock), through_vdso(clock), now(clock)] {
                    if time < *last {
                        BACK.store(*last - time, Ordering::SeqCst);
                    }
                    *last = time;
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let real = || now(libc::CLOCK_REALTIME) as i64 - now(libc::CLOCK_BOOTTIME) as i64;
    let before = real();
    Ok(Watch::new(move || {
        let back = BACK.load(Ordering::SeqCst);
        if back != 0 {
            bail!("a clock went back by {back} ns");
        }
        // Both stood still or went on together: the blackout counts on either. The clock of a
        // virtual machine may be stepped a little by its host.
        let drift = (real() - before).abs() / 1_000_000;
        if drift > 2000 {
            bail!("CLOCK_BOOTTIME and CLOCK_REALTIME came apart by {drift} ms");
        }
        Ok(())
    })
    .spoiled_by(|| {
        BACK.store(1, Ordering::SeqCst);
        Ok(())
    }))
}

/// What is left of a timer: it must have gone down as time went by, but for the time that
/// everybody stood still, which may or may not count. In nanoseconds.
pub(crate) struct Countdown {
    clock: i32,
    /// It was set between these two.
    set: [u64; 2],
    left: u64,
    gaps: crate::kit::Gaps,
    start: std::time::Instant,
}

impl Countdown {
    /// `set` sets a timer to so much of a clock.
    pub(crate) fn of(clock: i32, left: Duration, set: impl FnOnce() -> Result<()>) -> Result<Self> {
        let gaps = crate::kit::Gaps::watch();
        let start = std::time::Instant::now();
        let before = now(clock);
        set()?;
        Ok(Self {
            clock,
            set: [before, now(clock)],
            left: left.as_nanos() as u64,
            gaps,
            start,
        })
    }

    /// Is this what must be left now?
    pub(crate) fn check(&self, what: &str, left: u64) -> Result<()> {
        const SLACK: u64 = 400_000_000;
        if [
            libc::CLOCK_PROCESS_CPUTIME_ID,
            libc::CLOCK_THREAD_CPUTIME_ID,
        ]
        .contains(&self.clock)
        {
            // These run while the subject works: a little of the time for the thread that watches the clock, which
            // takes more on a slow machine.
            let worked = 30_000_000_000 + self.start.elapsed().as_nanos() as u64 / 4;
            if left > self.left + SLACK || left + worked < self.left {
                bail!(
                    "{what}: {left} ns are left, not {} or a little less",
                    self.left
                );
            }
            return Ok(());
        }
        let still = self.gaps.between(self.start, std::time::Instant::now());
        let [least, most] = self.set.map(|set| {
            let gone = now(self.clock) - set;
            self.left.saturating_sub(gone)
        });
        let most = most + still.as_nanos() as u64;
        if left + SLACK < least || left > most + SLACK {
            bail!("{what}: {left} ns are left, not {least} to {most}");
        }
        Ok(())
    }
}

/// Long enough into a timer's life that starting it anew would be seen.
pub(crate) fn age() {
    std::thread::sleep(Duration::from_millis(900));
}

/// As long as no subject lives.
pub(crate) const LONG: Duration = Duration::from_secs(100_000);
