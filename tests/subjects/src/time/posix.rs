//! POSIX timers.

use std::fs;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::clocks::{Countdown, LONG, age, distance, now};
use super::cpu::burn;
use crate::kit::{
    Crew, Gaps, SOON, Setting, Watch, args, not_here, raw, same, sys, take_signal, tid, until,
};

/// Creates a timer; the value is handed over with its signal, to this thread with SIGEV_THREAD_ID.
pub(super) fn create(clock: i32, notify: i32, signal: i32, value: usize) -> Result<i32> {
    // SAFETY: zeros are a valid structure.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = notify;
    event.sigev_signo = signal;
    event.sigev_value.sival_ptr = value as *mut _;
    event.sigev_notify_thread_id = tid();
    let mut id = 0_i32;
    let made = raw(
        libc::SYS_timer_create,
        args([clock as u64, &raw const event as u64, &raw mut id as u64]),
    );
    if made < 0 {
        bail!("timer_create of clock {clock}: {made}");
    }
    Ok(id)
}

fn words(time: Duration) -> [u64; 2] {
    [time.as_secs(), time.subsec_nanos().into()]
}

pub(super) fn set(id: i32, flags: i32, interval: Duration, value: Duration) -> Result<()> {
    let words = [words(interval), words(value)];
    let done = raw(
        libc::SYS_timer_settime,
        args([id as u64, flags as u64, words.as_ptr() as u64]),
    );
    if done < 0 {
        bail!("timer_settime: {done}");
    }
    Ok(())
}

/// Interval and what is left, in nanoseconds.
pub(super) fn get(id: i32) -> Result<[u64; 2]> {
    let mut words = [0_u64; 4];
    let done = raw(
        libc::SYS_timer_gettime,
        args([id as u64, words.as_mut_ptr() as u64]),
    );
    if done < 0 {
        bail!("timer {id}: timer_gettime: {done}");
    }
    Ok([0, 2].map(|at| words[at] * 1_000_000_000 + words[at + 1]))
}

/// Blocks a signal in this thread, and returns the mask of it alone.
fn block(signal: u32) -> u64 {
    let mask = 1_u64 << (signal - 1);
    let at = &raw const mask as u64;
    raw(libc::SYS_rt_sigprocmask, args([0, at, 0, 8]));
    mask
}

pub(super) fn delete(id: i32) -> Result<()> {
    sys(
        "timer_delete",
        raw(libc::SYS_timer_delete, args([id as u64])),
    )
    .map(drop)
}

/// /proc/self/timers without the `ClockID` lines' spelling mattering.
pub(super) fn listed() -> Result<String> {
    Ok(fs::read_to_string("/proc/self/timers")?)
}

/// More than one look and one call can be about, each with a time and a value of its own.
pub(crate) fn many(_: &Setting) -> Result<Watch> {
    const COUNT: usize = 6000;
    let more = |number: usize| Duration::from_secs(10 * number as u64);
    let mut kept = Vec::new();
    let countdown = Countdown::of(libc::CLOCK_MONOTONIC, LONG, || {
        for number in 0..COUNT {
            // The kernel's own list would be long by others, which another subject reads.
            let id = create(libc::CLOCK_MONOTONIC, libc::SIGEV_NONE, 34, number)?;
            let interval = Duration::new(number as u64, 7);
            set(id, 0, interval, LONG + more(number))?;
            kept.push((id, interval, more(number).as_nanos() as u64));
        }
        Ok(())
    })?;
    let last = kept[COUNT - 1].0;
    Ok(Watch::keep(listed)?.and(
        Watch::new(move || {
            for (id, interval, more) in &kept {
                let [every, left] = get(*id)?;
                same("an interval", &(interval.as_nanos() as u64), &every)?;
                countdown.check("a timer", left.saturating_sub(*more))?;
            }
            Ok(())
        })
        .spoiled_by(move || set(last, 0, Duration::ZERO, LONG)),
    ))
}

/// Several clocks and notifications; ids 0, 2 and 5 are free, and the next one is 9 still.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let clocks = [
        libc::CLOCK_REALTIME,
        libc::CLOCK_REALTIME,
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_BOOTTIME,
        libc::CLOCK_TAI,
        libc::CLOCK_TAI,
        libc::CLOCK_PROCESS_CPUTIME_ID,
        libc::CLOCK_MONOTONIC,
    ];
    let mut timers = Vec::new();
    for (number, clock) in clocks.into_iter().enumerate() {
        let notify = if number % 2 == 0 {
            libc::SIGEV_SIGNAL
        } else {
            libc::SIGEV_NONE
        };
        timers.push((
            create(clock, notify, 34 + number as i32, 0x1_0000_0000 + number)?,
            clock,
        ));
    }
    let mut kept = Vec::new();
    for (number, (id, clock)) in timers.into_iter().enumerate() {
        if [0, 2, 5].contains(&number) {
            delete(id)?;
            continue;
        }
        let interval = Duration::new(number as u64, 7);
        // The last one is not set.
        let countdown = if number == 8 {
            Countdown::of(clock, Duration::ZERO, || Ok(()))
        } else {
            Countdown::of(clock, LONG, || set(id, 0, interval, LONG))
        };
        kept.push((id, interval, countdown?));
    }
    age();
    let first = kept[0].0;
    Ok(Watch::keep(listed)?.and(
        Watch::new(move || {
            for (id, interval, countdown) in &kept {
                let [every, left] = get(*id)?;
                if *id - first != 7 {
                    same("an interval", &(interval.as_nanos() as u64), &every)?;
                }
                countdown.check(&format!("timer {id}"), left)?;
            }
            Ok(())
        })
        .spoiled_by(move || delete(first)),
    ))
}

/// SIGEV_THREAD_ID: three threads, each with its timer.
pub(crate) fn thread(_: &Setting) -> Result<Watch> {
    let mut crew = Crew::default();
    for number in 0..3 {
        crew.add(move || {
            let mask = 1_u64 << (44 + number);
            raw(
                libc::SYS_rt_sigprocmask,
                args([0, &raw const mask as u64, 0, 8]),
            );
            let id = create(
                libc::CLOCK_MONOTONIC,
                libc::SIGEV_THREAD_ID,
                45 + number,
                77,
            )?;
            set(id, 0, Duration::ZERO, LONG)?;
            let clock = create(libc::CLOCK_THREAD_CPUTIME_ID, libc::SIGEV_NONE, 0, 0)?;
            set(clock, 0, Duration::ZERO, LONG)?;
            Ok(Watch::new(move || {
                let [_, left] = get(clock)?;
                same(
                    "the thread's own clock runs",
                    &true,
                    &(left > 0 && left <= LONG.as_nanos() as u64),
                )?;
                set(id, 0, Duration::ZERO, Duration::from_millis(1))?;
                // It comes to this thread, blocked as it is there.
                let mut info = [0_u64; 16];
                let patience = words(SOON / 4);
                let got = raw(
                    libc::SYS_rt_sigtimedwait,
                    args([
                        &raw const mask as u64,
                        info.as_mut_ptr() as u64,
                        patience.as_ptr() as u64,
                        8,
                    ]),
                );
                same("the signal", &i64::from(45 + number), &got)?;
                same("its value", &77, &info[3])?;
                set(id, 0, Duration::ZERO, LONG)
            })
            .spoiled_by(move || delete(id)))
        })?;
    }
    Ok(crew.watch())
}

/// Periods that the timers of [`counted`] have gone through.
static PERIODS: [AtomicI64; 6] = [const { AtomicI64::new(0) }; 6];

/// Counts an expiry and those that it stands for.
extern "C" fn count(_: i32, info: *const libc::siginfo_t, _: *const libc::c_void) {
    count_by_value(&PERIODS, info);
}

/// The counter is the one that the signal's value names.
pub(super) fn count_by_value(counters: &[AtomicI64], info: *const libc::siginfo_t) {
    /// Word of siginfo_t with si_overrun in its upper half, and the one of si_value.
    const OVERRUN: usize = 2;
    const VALUE: usize = 3;
    // SAFETY: the kernel hands over a siginfo_t, which is 16 words.
    let info = unsafe { &*info.cast::<[u64; 16]>() };
    if let Some(periods) = counters.get(info[VALUE] as usize) {
        periods.fetch_add(1 + (info[OVERRUN] >> 32) as i64, Ordering::SeqCst);
    }
}

/// What a handler of SA_SIGINFO is.
type Handler = extern "C" fn(i32, *const libc::siginfo_t, *const libc::c_void);

/// Sets a handler that uses nothing but atomics.
pub(super) fn handle(signal: i32, handler: Handler) -> Result<()> {
    // SAFETY: zeros are a valid structure, the handler uses atomics.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
        let none = std::ptr::null_mut();
        sys("sigaction", libc::sigaction(signal, &action, none)).map(drop)
    }
}

/// Each expiry is told, or counted as an overrun, also of those that come while nobody runs.
pub(crate) fn counted(_: &Setting) -> Result<Watch> {
    const CLOCKS: [(i32, i32); 6] = [
        (libc::CLOCK_MONOTONIC, libc::SIGEV_SIGNAL),
        (libc::CLOCK_REALTIME, libc::SIGEV_SIGNAL),
        (libc::CLOCK_BOOTTIME, libc::SIGEV_SIGNAL),
        (libc::CLOCK_TAI, libc::SIGEV_SIGNAL),
        (libc::CLOCK_MONOTONIC, libc::SIGEV_THREAD_ID),
        (libc::CLOCK_BOOTTIME, libc::SIGEV_THREAD_ID),
    ];
    handle(46, count)?;
    let every = Duration::from_millis(25);
    let mut timers = Vec::new();
    for (number, (clock, notify)) in CLOCKS.into_iter().enumerate() {
        let id = create(clock, notify, 46, number)?;
        let before = Instant::now();
        set(id, 0, every, every)?;
        timers.push((clock, id, [before, Instant::now()]));
    }
    let last = timers[3].1;
    Ok(Watch::new(move || {
        let over = |start: Instant| (start.elapsed().as_millis() / every.as_millis()) as i64;
        for (number, (clock, _, [before, after])) in timers.iter().enumerate() {
            // Whoever stands between two readings finds too much on one side.
            let mut off = [0, 0];
            let fits = (0..20).any(|_| {
                std::thread::sleep(Duration::from_millis(7));
                let least = over(*after);
                let counted = PERIODS[number].load(Ordering::SeqCst);
                off = [least - counted, over(*before) - counted];
                off[0] <= 1 && off[1] >= -1
            });
            if !fits {
                bail!("the timer of clock {clock} is {off:?} periods behind");
            }
        }
        Ok(())
    })
    .spoiled_by(move || {
        set(last, 0, Duration::ZERO, Duration::ZERO)?;
        std::thread::sleep(every * 10);
        Ok(())
    }))
}

/// Timers of which the last ones have been removed.
pub(crate) fn next_id(_: &Setting) -> Result<Watch> {
    with_removed(700, 3)
}

/// And all.
pub(crate) fn removed(_: &Setting) -> Result<Watch> {
    with_removed(700, 0)
}

/// So many timers were made, of which some are left: the next id is behind all of them.
fn with_removed(made: i32, left: i32) -> Result<Watch> {
    let make = || create(libc::CLOCK_MONOTONIC, libc::SIGEV_NONE, 0, 0);
    for number in 0..made {
        let id = make()?;
        same("the id", &number, &id)?;
        if id >= left {
            delete(id)?;
        }
    }
    let mut next = made;
    Ok(Watch::new(move || {
        let id = make()?;
        same("the next id", &next, &id)?;
        next += 1;
        delete(id)
    })
    .spoiled_by(move || delete(make()?)))
}

/// It chooses the ids of new timers, as who restores timers does.
pub(crate) fn ids(_: &Setting) -> Result<Watch> {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    let choose = |what: u64| {
        raw(
            libc::SYS_prctl,
            args([PR_TIMER_CREATE_RESTORE_IDS as u64, what]),
        )
    };
    if choose(1) < 0 {
        return not_here("prctl(PR_TIMER_CREATE_RESTORE_IDS)");
    }
    let mut next = 7_000_000;
    Ok(Watch::new(move || {
        next += 1000;
        let mut id: i32 = next;
        let clock = libc::CLOCK_MONOTONIC as u64;
        let made = raw(libc::SYS_timer_create, args([clock, 0, &raw mut id as u64]));
        sys("timer_create", made)?;
        same("the id", &next, &id)
    })
    .spoiled_by(move || sys("prctl", choose(0)).map(drop)))
}

/// Its signal is blocked and pending: the overruns are counted, also while nobody runs.
pub(crate) fn periodic(_: &Setting) -> Result<Watch> {
    let mask = block(45);
    let id = create(libc::CLOCK_MONOTONIC, libc::SIGEV_SIGNAL, 45, 88)?;
    let every = Duration::from_millis(20);
    set(id, 0, every, every)?;
    std::thread::sleep(every * 3);
    Ok(Watch::new(move || {
        until("the next signal", SOON / 4, || {
            let (none, mut info) = ([0_u64; 2], [0_u64; 16]);
            let arguments = [
                &raw const mask as u64,
                info.as_mut_ptr() as u64,
                none.as_ptr() as u64,
                8,
            ];
            raw(libc::SYS_rt_sigtimedwait, args(arguments)) == 45 && info[3] == 88
        })?;
        std::thread::sleep(every * 5);
        until("overruns", SOON / 4, || {
            let (none, mut info) = ([0_u64; 2], [0_u64; 16]);
            let arguments = [
                &raw const mask as u64,
                info.as_mut_ptr() as u64,
                none.as_ptr() as u64,
                8,
            ];
            raw(libc::SYS_rt_sigtimedwait, args(arguments)) == 45
                && raw(libc::SYS_timer_getoverrun, args([id as u64])) > 0
        })
    })
    .spoiled_by(move || set(id, 0, Duration::ZERO, Duration::ZERO)))
}

/// Its signal stays pending for long: all periods are counted in it, those that nobody saw among them.
pub(crate) fn overruns(_: &Setting) -> Result<Watch> {
    /// Nobody stands still for so long on one kernel.
    const A_JUMP: Duration = Duration::from_millis(1500);
    let mask = block(46);
    let id = create(libc::CLOCK_MONOTONIC, libc::SIGEV_SIGNAL, 46, 89)?;
    let take = move || {
        let (taken, info) = take_signal(mask);
        (taken, info[3], info[2] >> 32)
    };
    let every = Duration::from_millis(5);
    let gaps = Gaps::watch();
    // It begins between two looks at the clock, which may lie far apart on a busy host.
    let earliest = now(libc::CLOCK_MONOTONIC);
    set(id, 0, every, every)?;
    let latest = now(libc::CLOCK_MONOTONIC);
    std::thread::sleep(every * 10);
    let (mut all, mut asked) = (0, Instant::now());
    Ok(Watch::new(move || {
        // A new kernel counts none that were before it booted (kernel/time/namespace.c, timens_ktime_to_host): a
        // signal of their own tells of them.
        let jumped = gaps.last(A_JUMP).filter(|went_on| *went_on > asked);
        if jumped.is_some() {
            let (taken, value, told) = take();
            same("the first signal", &(46, 89), &(taken, value))?;
            all += 1 + told;
        }
        let periods = |begun| (now(libc::CLOCK_MONOTONIC) - begun) / every.as_nanos() as u64;
        let (least, (taken, value, told), most) = (periods(latest), take(), periods(earliest));
        same("the signal", &(46, 89), &(taken, value))?;
        let counted = raw(libc::SYS_timer_getoverrun, args([id as u64]));
        same("its overruns", &(counted as u64), &told)?;
        all += 1 + told;
        if all > most || all + 2 < least {
            bail!("{all} expiries of {least} to {most} were told");
        }
        asked = Instant::now();
        // Pending again, for the next time.
        std::thread::sleep(every * 10);
        Ok(())
    })
    .spoiled_by(move || set(id, 0, every * 4, every * 4)))
}

/// A periodic timer of processor time has expired, its signal waits, and much of its next period is left.
pub(crate) fn expired_cpu(_: &Setting) -> Result<Watch> {
    let mask = block(47);
    let id = create(libc::CLOCK_PROCESS_CPUTIME_ID, libc::SIGEV_SIGNAL, 47, 90)?;
    let expire = move || {
        set(id, 0, LONG, Duration::from_millis(1))?;
        burn(Duration::from_millis(30));
        Ok(())
    };
    expire()?;
    Ok(Watch::new(move || {
        burn(Duration::from_millis(30));
        let (taken, info) = take_signal(mask);
        same("its signal", &(47, 90), &(taken, info[3]))?;
        burn(Duration::from_millis(30));
        same("none more", &-i64::from(libc::EAGAIN), &take_signal(mask).0)?;
        let [interval, left] = get(id)?;
        same("its period", &(LONG.as_nanos() as u64), &interval)?;
        if distance(left, interval - 60_000_000_000, interval) > 0 {
            bail!("{left} ns of its period are left");
        }
        expire()
    })
    .spoiled_by(move || set(id, 0, LONG * 2, LONG * 2)))
}

/// They expire at the moments they would have, though some of those pass while nobody runs.
pub(crate) fn phase(_: &Setting) -> Result<Watch> {
    /// Nanoseconds, also on a machine that is slow.
    const CLOSE: u64 = 5_000_000;
    let every = Duration::from_nanos(234_567_891);
    let mut timers = Vec::new();
    for clock in [
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_BOOTTIME,
        libc::CLOCK_REALTIME,
        libc::CLOCK_TAI,
    ] {
        let id = create(clock, libc::SIGEV_NONE, 0, 0)?;
        let first = now(clock) + every.as_nanos() as u64;
        set(id, libc::TIMER_ABSTIME, every, Duration::from_nanos(first))?;
        timers.push((id, clock, first));
    }
    let last = timers[0].0;
    Ok(Watch::new(move || {
        let every = every.as_nanos() as u64;
        for (id, clock, first) in &timers {
            // Whoever stands between the readings is further off.
            let off = || -> Result<u64> {
                let [_, left] = get(*id)?;
                let off = (now(*clock) + left - first) % every;
                Ok(off.min(every - off))
            };
            let tries = (0..20).map(|_| off()).collect::<Result<Vec<u64>>>()?;
            let off = tries.into_iter().min().unwrap_or(u64::MAX);
            if off > CLOSE {
                bail!("the timer of clock {clock} is {} us off", off / 1000);
            }
        }
        Ok(())
    })
    .spoiled_by(move || {
        let [_, left] = get(last)?;
        set(last, 0, every, Duration::from_nanos(left) + every / 2)
    }))
}

/// They end at their moment, however long anybody stood still.
pub(crate) fn absolute(_: &Setting) -> Result<Watch> {
    let mut timers = Vec::new();
    for clock in [
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_BOOTTIME,
        libc::CLOCK_REALTIME,
    ] {
        let id = create(clock, libc::SIGEV_NONE, 0, 0)?;
        let end = Duration::from_nanos(now(clock)) + LONG;
        set(id, libc::TIMER_ABSTIME, Duration::ZERO, end)?;
        timers.push((id, clock, end.as_nanos() as u64));
    }
    let first = timers[0].0;
    Ok(Watch::new(move || {
        for (id, clock, end) in &timers {
            let before = now(*clock);
            let [_, left] = get(*id)?;
            let off = distance(*end, before + left, now(*clock) + left);
            if off > 20_000_000 {
                bail!("the timer of clock {clock} ends {} ms off", off / 1_000_000);
            }
        }
        Ok(())
    })
    .spoiled_by(move || set(first, 0, Duration::ZERO, LONG)))
}

/// When timers of this kind expire by CLOCK_REALTIME, in nanoseconds.
fn kept_by_real_time() -> Result<Vec<u64>> {
    let list = fs::read_to_string("/proc/timer_list")?;
    let mut found = Vec::new();
    let (mut real, mut ours) = (false, false);
    for line in list.lines() {
        let line = line.trim();
        if let Some(index) = line.strip_prefix(".index:") {
            real = index.trim() == "1";
        } else if line.contains("posix_timer_fn") {
            ours = real;
        } else if let Some(at) = line.strip_prefix("# expires at ") {
            let at = at.split('-').next().unwrap_or_default();
            found.extend(at.parse::<u64>().ok().filter(|_| ours));
            ours = false;
        }
    }
    Ok(found)
}

/// A periodic timer by CLOCK_REALTIME, relative and so not to follow when that is set, though its periods pass while
/// nobody runs.
pub(crate) fn relative(_: &Setting) -> Result<Watch> {
    /// Nanoseconds between a timer and what is read of it.
    const CLOSE: u64 = 200_000;
    if !std::path::Path::new("/proc/timer_list").exists() {
        return not_here("/proc/timer_list");
    }
    let every = Duration::from_nanos(9_876_543);
    let id = create(libc::CLOCK_REALTIME, libc::SIGEV_SIGNAL, 46, 0)?;
    extern "C" fn nothing(_: i32) {}
    // SAFETY: the handler does nothing. (A timer whose signal is ignored does not run since Linux 6.13.)
    unsafe { libc::signal(46, nothing as *const () as usize) };
    let follows = move || -> Result<bool> {
        let mut times = 0;
        for _ in 0..10 {
            let [_, left] = get(id)?;
            let end = now(libc::CLOCK_REALTIME) + left;
            let close = |at: &u64| at.abs_diff(end) < CLOSE;
            times += u32::from(kept_by_real_time()?.iter().any(close));
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(times >= 3)
    };
    let absolute = move || {
        let start = Duration::from_nanos(now(libc::CLOCK_REALTIME));
        set(id, libc::TIMER_ABSTIME, every, start)
    };
    absolute()?;
    same("an absolute one follows", &true, &follows()?)?;
    set(id, 0, every, every)?;
    Ok(
        Watch::new(move || same("a relative one follows", &false, &follows()?))
            .spoiled_by(absolute),
    )
}
