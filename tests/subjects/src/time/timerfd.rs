//! timerfd_create(2)

use std::time::Duration;

use anyhow::{Result, bail};

use super::clocks::{Countdown, LONG, age, distance, now};
use crate::kit::{SOON, Setting, Watch, args, fd, raw, same, until};

const CLOCKS: [i32; 5] = [
    libc::CLOCK_MONOTONIC,
    libc::CLOCK_REALTIME,
    libc::CLOCK_BOOTTIME,
    libc::CLOCK_REALTIME_ALARM,
    libc::CLOCK_BOOTTIME_ALARM,
];

fn create(clock: i32) -> Result<i32> {
    // SAFETY: takes numbers.
    fd("timerfd", unsafe {
        libc::timerfd_create(clock, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC)
    })
}

fn set(timer: i32, flags: i32, interval: Duration, value: Duration) -> Result<()> {
    let words = [interval, value].map(|time| [time.as_secs(), time.subsec_nanos().into()]);
    let done = raw(
        libc::SYS_timerfd_settime,
        args([timer as u64, flags as u64, words.as_ptr() as u64]),
    );
    if done < 0 {
        bail!("timerfd_settime: {done}");
    }
    Ok(())
}

/// Interval and what is left, in nanoseconds.
fn get(timer: i32) -> Result<[u64; 2]> {
    let mut words = [0_u64; 4];
    let done = raw(
        libc::SYS_timerfd_gettime,
        args([timer as u64, words.as_mut_ptr() as u64]),
    );
    if done < 0 {
        bail!("timerfd_gettime: {done}");
    }
    Ok([0, 2].map(|at| words[at] * 1_000_000_000 + words[at + 1]))
}

/// Expirations, or none yet.
fn read(timer: i32) -> Option<u64> {
    let mut count = 0_u64;
    (raw(
        libc::SYS_read,
        args([timer as u64, &raw mut count as u64, 8]),
    ) == 8)
        .then_some(count)
}

/// One of each clock.
pub(crate) fn clocks(_: &Setting) -> Result<Watch> {
    let mut timers = Vec::new();
    for clock in CLOCKS {
        let timer = create(clock)?;
        // Where there is no RTC, the alarm clocks cannot be read.
        let read = match clock {
            libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
            libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
            clock => clock,
        };
        let countdown = Countdown::of(read, LONG, || set(timer, 0, Duration::new(3, 4), LONG));
        timers.push((timer, countdown?));
    }
    age();
    let last = timers[timers.len() - 1].0;
    Ok(Watch::new(move || {
        for (timer, countdown) in &timers {
            let [every, left] = get(*timer)?;
            same("the interval", &3_000_000_004, &every)?;
            countdown.check("a timerfd", left)?;
            same("expirations", &None, &read(*timer))?;
        }
        Ok(())
    })
    .spoiled_by(move || set(last, 0, Duration::ZERO, LONG)))
}

/// Absolute, one of them with TFD_TIMER_CANCEL_ON_SET.
pub(crate) fn absolute(_: &Setting) -> Result<Watch> {
    let mut timers = Vec::new();
    for (clock, flags) in [
        (libc::CLOCK_MONOTONIC, 0),
        (libc::CLOCK_BOOTTIME, 0),
        (libc::CLOCK_REALTIME, libc::TFD_TIMER_CANCEL_ON_SET),
    ] {
        let timer = create(clock)?;
        let end = Duration::from_nanos(now(clock)) + LONG;
        set(timer, libc::TFD_TIMER_ABSTIME | flags, Duration::ZERO, end)?;
        timers.push((timer, clock, end.as_nanos() as u64));
    }
    let settings = |timer: i32| -> Result<String> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{timer}"))?;
        let line = text.lines().find(|line| line.starts_with("settime flags"));
        Ok(line.unwrap_or_default().to_owned())
    };
    let first = timers[0].0;
    let numbers: Vec<i32> = timers.iter().map(|(timer, ..)| *timer).collect();
    let flags = Watch::keep(move || {
        numbers
            .iter()
            .map(|timer| settings(*timer))
            .collect::<Result<Vec<_>>>()
    })?;
    Ok(flags.and(
        Watch::new(move || {
            for (timer, clock, end) in &timers {
                let before = now(*clock);
                let left = get(*timer)?[1];
                let off = distance(*end, before + left, now(*clock) + left);
                if off > 20_000_000 {
                    bail!("the timer of clock {clock} ends {} ms off", off / 1_000_000);
                }
            }
            Ok(())
        })
        .spoiled_by(move || set(first, 0, Duration::ZERO, LONG)),
    ))
}

/// Every 20 ms.
pub(crate) fn periodic(_: &Setting) -> Result<Watch> {
    let timer = create(libc::CLOCK_MONOTONIC)?;
    let every = Duration::from_millis(20);
    set(timer, 0, every, every)?;
    Ok(Watch::new(move || {
        for _ in 0..3 {
            until("it fires", SOON / 4, || read(timer).is_some())?;
        }
        same("the interval", &20_000_000, &get(timer)?[0])
    })
    .spoiled_by(move || set(timer, 0, Duration::ZERO, Duration::ZERO)))
}

/// Every expiration is counted, relative and absolute, also those that pass while nobody runs.
pub(crate) fn counted(_: &Setting) -> Result<Watch> {
    let every = Duration::from_millis(25);
    let mut timers = Vec::new();
    for clock in [
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_BOOTTIME,
        libc::CLOCK_REALTIME,
    ] {
        for flags in [0, libc::TFD_TIMER_ABSTIME] {
            let timer = create(clock)?;
            let start = now(clock);
            let first = match flags {
                0 => every,
                _ => every + Duration::from_nanos(start),
            };
            set(timer, flags, every, first)?;
            // A relative one was set between two readings.
            let latest = if flags == 0 { now(clock) } else { start };
            timers.push((clock, flags, timer, [start, latest], 0));
        }
    }
    let last = timers[timers.len() - 1].2;
    Ok(Watch::new(move || {
        for (clock, flags, timer, [start, latest], count) in &mut timers {
            let over = |since: u64| ((now(*clock) - since) / every.as_nanos() as u64) as i64;
            // Whoever stands between two readings finds too much on one side.
            let mut off = [0, 0];
            let fits = (0..20).any(|_| {
                std::thread::sleep(Duration::from_millis(7));
                let least = over(*latest);
                *count += read(*timer).unwrap_or(0);
                off = [least - *count as i64, over(*start) - *count as i64];
                off[0] <= 1 && off[1] >= -1
            });
            if !fits {
                bail!("clock {clock}, flags {flags}: {off:?} expirations are lost");
            }
        }
        Ok(())
    })
    .spoiled_by(move || {
        std::thread::sleep(every * 10);
        read(last);
        Ok(())
    }))
}

/// An expiration waits for a reader, and no more will come for a long time.
pub(crate) fn ticks(_: &Setting) -> Result<Watch> {
    let (once, periodic) = (
        create(libc::CLOCK_BOOTTIME)?,
        create(libc::CLOCK_MONOTONIC)?,
    );
    let expire = move || {
        set(once, 0, Duration::ZERO, Duration::from_millis(1))?;
        set(periodic, 0, LONG, Duration::from_millis(1))?;
        std::thread::sleep(Duration::from_millis(10));
        anyhow::Ok(())
    };
    expire()?;
    Ok(Watch::new(move || {
        same("a single expiration", &Some(1), &read(once))?;
        same("one of many", &Some(1), &read(periodic))?;
        expire()
    })
    .spoiled_by(move || {
        read(once);
        Ok(())
    }))
}

/// Made and never set, and one that was switched off.
pub(crate) fn disarmed(_: &Setting) -> Result<Watch> {
    let (never, off) = (
        create(libc::CLOCK_MONOTONIC)?,
        create(libc::CLOCK_REALTIME)?,
    );
    set(off, 0, Duration::ZERO, LONG)?;
    set(off, 0, Duration::ZERO, Duration::ZERO)?;
    Ok(Watch::new(move || {
        for timer in [never, off] {
            same(
                "a timer that is off",
                &([0, 0], None),
                &(get(timer)?, read(timer)),
            )?;
        }
        Ok(())
    })
    .spoiled_by(move || set(never, 0, Duration::ZERO, LONG)))
}

/// Many with short periods, some of which expire in the middle of whatever is done with them.
pub(crate) fn short(_: &Setting) -> Result<Watch> {
    const MANY: u64 = 100;
    let mut timers = Vec::new();
    for number in 0..MANY {
        let timer = create(libc::CLOCK_MONOTONIC)?;
        let every = Duration::from_micros(500 + 10 * number);
        set(timer, 0, every, every)?;
        timers.push(timer);
    }
    let last = timers[timers.len() - 1];
    Ok(Watch::new(move || {
        for timer in &timers {
            read(*timer);
        }
        std::thread::sleep(Duration::from_millis(20));
        let silent = timers.iter().filter(|timer| read(**timer).is_none());
        same("timers that stand still", &0, &silent.count())
    })
    .spoiled_by(move || set(last, 0, Duration::ZERO, Duration::ZERO)))
}
