//! Interval timers and POSIX timers.

use super::timer_ids;
use super::timer_owners::{StandIns, signals_nobody};
use crate::ResurrectError;
use crate::booted::Booted;
use crate::calls::{Calls, nr, run};
use crate::restore::Restore;
use nix::time::ClockId;
use persist_mem::manifest::{Itimer, Live, PosixTimer, QueuedSignal};
use sys::Pid;
use sys::batch::Batch;
use sys::discipline::Discipline;
use sys::tracee::Tracee;

const CLOCK_REALTIME: i32 = 0;
const CLOCK_MONOTONIC: i32 = 1;
const CLOCK_BOOTTIME: i32 = 7;
const CLOCK_REALTIME_ALARM: i32 = 8;
const CLOCK_BOOTTIME_ALARM: i32 = 9;
const CLOCK_TAI: i32 = 11;
const TIMER_ABSTIME: i32 = 1;
/// Nanoseconds of processor time that nobody has used.
const NEVER: u64 = 1 << 60;
const ARMING: &str = "arming its timers";
/// struct sigevent.
const SIGEVENT: usize = 64;

/// Makes and arms them.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives() {
        interval(restore, pid, live)?;
        if !live.timers.is_empty() {
            create(restore, pid, live)?;
            arm(restore, pid, live)?;
        }
        if let Some(next) = live.next_timer_id {
            timer_ids::count_on(restore, pid, live, next)?;
        }
        if live.chooses_timer_ids {
            let mut batch = Batch::new();
            let choose = timer_ids::choose(&mut batch, true);
            let doing = "letting it choose timer ids (PR_TIMER_CREATE_RESTORE_IDS)";
            let first = &mut restore.task(pid)?.first;
            let output = run(pid, doing, first, &batch)?;
            output
                .result(choose)
                .map_err(ResurrectError::call(pid, doing))?;
        }
    }
    Ok(())
}

/// Time since the saved clocks were read.
fn elapsed_ns(restore: &Restore<'_>) -> u64 {
    u64::try_from(restore.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn interval(restore: &mut Restore<'_>, pid: Pid, live: &Live) -> Result<(), ResurrectError> {
    let [real, counting @ ..] = &live.itimers;
    if (real.value_us, real.interval_us) != (0, 0) {
        real_time(restore, pid, *real)?;
    }
    let mut batch = Batch::new();
    let mut asked = Vec::new();
    for (which, timer) in (1..).zip(counting) {
        let value = match (timer.value_us, timer.interval_us) {
            (0, 0) => continue,
            (value, interval) => until_expiry(value, interval).max(1),
        };
        arm_interval(&mut batch, which, timer.interval_us, value);
        let told = batch.space(32);
        batch.call(
            "asking for an interval timer",
            nr::GETITIMER,
            [which.into(), told.into()],
        );
        asked.push((which, timer.interval_us, value, told));
    }
    if asked.is_empty() {
        return Ok(());
    }
    let first = &mut restore.task(pid)?.first;
    let output = run(pid, ARMING, first, &batch)?;
    // The kernel adds a tick to those that count ticks (kernel/time/itimer.c, set_cpu_itimer): it is in what was
    // saved already.
    let mut batch = Batch::new();
    for (which, interval, value, told) in asked {
        let now = output.u64(told, 2) * 1_000_000 + output.u64(told, 3);
        let tick = now.saturating_sub(value);
        if tick > 0 {
            arm_interval(
                &mut batch,
                which,
                interval,
                value.saturating_sub(tick).max(1),
            );
        }
    }
    run(pid, ARMING, first, &batch).map(drop)
}

/// One that is not armed has expired and starts again when its signal is taken (kernel/signal.c).
fn until_expiry(value: u64, interval: u64) -> u64 {
    if value == 0 { interval } else { value }
}

/// Arms ITIMER_REAL, the only one that runs on while nothing runs. It can only be set by how long it lasts, so that it
/// is set again when that took long.
fn real_time(restore: &mut Restore<'_>, pid: Pid, timer: Itimer) -> Result<(), ResurrectError> {
    const CLOSE_US: u64 = 1000;
    const TRIES: usize = 8;
    let remaining = until_expiry(timer.value_us, timer.interval_us);
    let mut told = timer.value_us == 0;
    for _ in 0..TRIES {
        let mut elapsed = elapsed_ns(restore) / 1000;
        let (mut value, late) = lasting(remaining, timer.interval_us, elapsed);
        if late && !told {
            told = true;
            alarm(restore, pid)?;
            elapsed = elapsed_ns(restore) / 1000;
            (value, _) = lasting(remaining, timer.interval_us, elapsed);
        }
        let mut batch = Batch::new();
        arm_interval(&mut batch, 0, timer.interval_us, value);
        run(pid, ARMING, &mut restore.task(pid)?.first, &batch)?;
        let took = (elapsed_ns(restore) / 1000).saturating_sub(elapsed);
        if took <= CLOSE_US || timer.interval_us == 0 {
            break;
        }
    }
    Ok(())
}

/// How long an interval timer still lasts when so much time has passed, and whether it has expired meanwhile and is
/// to go on in its phase, as it does when its signal is taken late (kernel/signal.c). One that expires once is left
/// to do so.
fn lasting(remaining: u64, interval: u64, passed: u64) -> (u64, bool) {
    match passed.checked_sub(remaining) {
        Some(late) if interval > 0 => (interval - late % interval, true),
        Some(_) => (1, false),
        None => (remaining - passed, false),
    }
}

/// Queues the signal of ITIMER_REAL, which is not armed yet. Only a leader may queue what comes from the kernel
/// (kernel/signal.c, do_rt_sigqueueinfo); where that one waits in vfork(2) or has ended, the timer itself does it.
fn alarm(restore: &mut Restore<'_>, pid: Pid) -> Result<(), ResurrectError> {
    const DOING: &str = "queueing the signal of a timer";
    const SIGALRM: i32 = 14;
    const TRIES: usize = 1000;
    let first = &mut restore.task(pid)?.first;
    let mut batch = Batch::new();
    if first.tid() == first.pid().leader() {
        let info = batch.data(&sys::ptrace::of_kernel(SIGALRM));
        let args = [pid.0.into(), SIGALRM.into(), info.into()];
        batch.call(DOING, nr::RT_SIGQUEUEINFO, args);
        return run(pid, ARMING, first, &batch).map(drop);
    }
    arm_interval(&mut batch, 0, 0, 1);
    run(pid, ARMING, first, &batch)?;
    for _ in 0..TRIES {
        let mut batch = Batch::new();
        let told = batch.space(32);
        let args = [0.into(), told.into()];
        batch.call("asking for an interval timer", nr::GETITIMER, args);
        let output = run(pid, ARMING, first, &batch)?;
        if (output.u64(told, 2), output.u64(told, 3)) == (0, 0) {
            return Ok(());
        }
    }
    let why = "its interval timer does not expire".into();
    Err(ResurrectError::Impossible { pid, why })
}

/// Arms an interval timer, in microseconds.
fn arm_interval(batch: &mut Batch, which: usize, interval: u64, value: u64) {
    let spec = batch.data(&spec([interval, value], 1_000_000));
    let args = [which.into(), spec.into(), 0.into()];
    batch.call("arming an interval timer", nr::SETITIMER, args);
}

/// `struct itimerval` and `struct itimerspec`: interval and value, each in seconds and what is left over, of which a
/// second has so many.
fn spec(times: [u64; 2], second: u64) -> Vec<u8> {
    let words = times.map(|time| [time / second, time % second]);
    let words = words.as_flattened().iter();
    words.flat_map(|word| word.to_le_bytes()).collect()
}

fn sigevent(timer: &PosixTimer) -> [u8; SIGEVENT] {
    let mut event = [0; SIGEVENT];
    event[..8].copy_from_slice(&timer.value.to_le_bytes());
    event[8..12].copy_from_slice(&timer.signal.to_le_bytes());
    event[12..16].copy_from_slice(&timer.notify.to_le_bytes());
    event[16..20].copy_from_slice(&timer.tid.0.to_le_bytes());
    event
}

/// Makes the timers with their ids: newer kernels (6.16) take the id, older ones count up.
fn create(restore: &mut Restore<'_>, pid: Pid, live: &Live) -> Result<(), ResurrectError> {
    let chosen = timer_ids::begin_to_choose(restore, pid)?;
    let mut next = 0;
    for timer in &live.timers {
        let mut stand_ins = StandIns::of(restore, (pid, live), timer)?;
        let stands_in = stand_ins.any();
        let task = restore.task(pid)?;
        let clock = match timer.maker() {
            // It waits in vfork(2) and cannot be asked to.
            Some(tid) if live.waits_in_vfork(tid) => clock_of(tid),
            _ => timer.clock,
        };
        let maker = stand_ins.maker(task, live, timer);
        if !chosen {
            timer_ids::count(pid, maker, next..timer.id)?;
        }
        if let Some(other) = make((pid, maker), timer, clock)? {
            let why = format!("timer {} came as {other}", timer.id);
            return Err(ResurrectError::Impossible { pid, why });
        }
        next = timer.id.saturating_add(1);
        if stands_in && timer.counts_cpu() && timer.interval > 0 {
            // Nobody can set it later, but its period is told still.
            let mut batch = Batch::new();
            set_time(&mut batch, timer, 0, NEVER);
            run(pid, ARMING, maker, &batch)?;
        }
        stand_ins.end(pid)?;
    }
    match chosen {
        true => timer_ids::stop_choosing(restore, pid),
        false => Ok(()),
    }
}

/// Has a thread make a timer. Returns the id that it got when that is another one.
fn make(
    (pid, maker): (Pid, &mut Tracee),
    timer: &PosixTimer,
    clock: i32,
) -> Result<Option<i32>, ResurrectError> {
    let mut batch = Batch::new();
    let event = batch.data(&sigevent(timer));
    let id = batch.data(&timer.id.to_le_bytes());
    let args = [clock.into(), event.into(), id.into()];
    batch.call("making a timer", nr::TIMER_CREATE, args);
    let output = run(pid, "making its timers", maker, &batch)?;
    let got = output.u32(id, 0).cast_signed();
    Ok((got != timer.id).then_some(got))
}

/// The clock of a thread's processor time (include/linux/posix-timers_types.h, make_thread_cpuclock).
fn clock_of(tid: sys::Tid) -> i32 {
    const OF_A_THREAD: i32 = 4;
    const SCHED: i32 = 2;
    (!tid.0 << 3) | OF_A_THREAD | SCHED
}

/// What a timer's clock showed when the saved ones were read. None for clocks that stand still.
fn shown(restore: &Restore<'_>, timer: &PosixTimer) -> Option<u64> {
    let clocks = &restore.manifest.host.clocks;
    let saved = match timer.clock {
        CLOCK_MONOTONIC => clocks.monotonic,
        CLOCK_BOOTTIME | CLOCK_BOOTTIME_ALARM => clocks.boottime,
        CLOCK_REALTIME if timer.absolute => clocks.realtime,
        CLOCK_REALTIME_ALARM => clocks.realtime,
        CLOCK_REALTIME => return showed(restore, timer.clock),
        CLOCK_TAI => clocks.realtime + i64::from(Discipline::read().ok()?.tai) * 1_000_000_000,
        _ => return None,
    };
    u64::try_from(saved).ok()
}

/// What a clock showed then, by what it shows now. Whoever stands between two readings makes it too much, so of some
/// tries the one counts that took the least time.
fn showed(restore: &Restore<'_>, clock: i32) -> Option<u64> {
    /// Nanoseconds that are good enough.
    const CLOSE: u64 = 20_000;
    const TRIES: usize = 16;
    let mut best: Option<(u64, u64)> = None;
    for _ in 0..TRIES {
        let elapsed = elapsed_ns(restore);
        let now = sys::clock::read_ns(ClockId::from_raw(clock)).ok()?;
        let took = elapsed_ns(restore).saturating_sub(elapsed);
        let then = u64::try_from(now).ok()?.checked_sub(elapsed)?;
        if best.is_none_or(|(least, _)| took < least) {
            best = Some((took, then));
        }
        if took <= CLOSE {
            break;
        }
    }
    best.map(|(_, then)| then)
}

/// When a timer expires, on its clock, so that it does not matter how long arming takes. One whose signal is queued is
/// armed for when it expired: it queues its signal itself, and counts the periods since when that is taken; so does
/// one whose periods have passed while nobody was there. None for clocks that stand still, and for relative timers
/// that do not follow when their clock is set (CLOCK_REALTIME).
fn expiry(restore: &Restore<'_>, timer: &PosixTimer) -> Option<u64> {
    if timer.clock == CLOCK_REALTIME && !timer.absolute {
        return None;
    }
    let then = shown(restore, timer)?;
    let since = timer.missed.saturating_mul(timer.interval);
    let expiry = then.saturating_add(timer.remaining).saturating_sub(since);
    Some(expiry.max(1))
}

/// How long a relative timer still lasts when so much time has passed, and how often it has expired while nobody was
/// there or took its signal. A periodic one keeps its phase.
fn lasts(timer: &PosixTimer, passed: u64) -> (u64, u64) {
    let left = timer.remaining.saturating_sub(passed);
    if left > 0 || timer.interval == 0 {
        return (left.max(1), timer.missed);
    }
    let late = passed - timer.remaining;
    let periods = late / timer.interval + 1;
    let left = timer.interval - late % timer.interval;
    (left, timer.missed.saturating_add(periods))
}

/// Whether a queued signal comes from a timer that queues it again when it is armed.
pub(crate) fn comes_again(live: &Live, queued: &QueuedSignal) -> bool {
    let armed = |timer: &&PosixTimer| timer.missed > 0 && !timer.counts_cpu();
    let mut timers = live.timers.iter().filter(armed);
    timers.any(|timer| timer.has_queued(queued))
}

/// Of a timer that expired when its clock showed `expiry`: when it expires for the first time since this kernel has
/// booted, and how often it did so before. That is what no kernel counts: no timer of its expires before its own clock
/// began (kernel/time/namespace.c, do_timens_ktime_to_host).
fn since_boot(timer: &PosixTimer, expiry: u64, booted: u64) -> (u64, u64) {
    if timer.interval == 0 {
        return (expiry, 0);
    }
    let before = booted.saturating_sub(expiry).div_ceil(timer.interval);
    (expiry + before * timer.interval, before)
}

fn arm(restore: &mut Restore<'_>, pid: Pid, live: &Live) -> Result<(), ResurrectError> {
    let mut relative = Vec::new();
    let booted = Booted::read()?;
    let armed = live.timers.iter().filter(|timer| timer.remaining > 0);
    let expiries: Vec<_> = armed.map(|timer| (timer, expiry(restore, timer))).collect();
    let first = &mut restore.task(pid)?.first;
    let mut calls = Calls::new(pid, ARMING, first);
    for (timer, expiry) in expiries {
        match expiry {
            Some(expiry) => {
                let booted = booted.showed(timer.clock);
                let (value, before) = since_boot(timer, expiry, booted);
                // Before those that the timer tells itself.
                tell(calls.batch(), (pid, live), timer, before);
                set_time(calls.batch(), timer, TIMER_ABSTIME, value);
            }
            None if timer.counts_cpu() => set_time(calls.batch(), timer, 0, timer.remaining),
            None => relative.push(timer),
        }
        calls.breathe()?;
    }
    calls.flush()?;
    relative
        .into_iter()
        .try_for_each(|timer| arm_relative(restore, (pid, live), timer))
}

/// Arms a timer for what it still lasts, anew where that took long: it expires later by as much.
fn arm_relative(
    restore: &mut Restore<'_>,
    (pid, live): (Pid, &Live),
    timer: &PosixTimer,
) -> Result<(), ResurrectError> {
    const TRIES: usize = 16;
    let mut begun = elapsed_ns(restore);
    let mut expired = 0;
    for _ in 0..TRIES {
        let (left, times) = lasts(timer, begun);
        expired = times;
        let mut batch = Batch::new();
        set_time(&mut batch, timer, 0, left);
        run(pid, ARMING, &mut restore.task(pid)?.first, &batch)?;
        let now = elapsed_ns(restore);
        if is_armed_well(left, now.saturating_sub(begun)) {
            break;
        }
        begun = now;
    }
    let mut batch = Batch::new();
    tell(&mut batch, (pid, live), timer, expired);
    run(pid, ARMING, &mut restore.task(pid)?.first, &batch).map(drop)
}

/// Whether a timer stays as it was armed, which took so long. One that may expire before it could be armed again is
/// left alone: it tells of that itself, and would be told of again.
fn is_armed_well(left: u64, took: u64) -> bool {
    /// Nanoseconds that are good enough.
    const CLOSE: u64 = 200_000;
    took <= CLOSE || left <= took.saturating_mul(4)
}

fn set_time(batch: &mut Batch, timer: &PosixTimer, flags: i32, value: u64) {
    let spec = batch.data(&spec([timer.interval, value], 1_000_000_000));
    let args = [timer.id.into(), flags.into(), spec.into(), 0.into()];
    batch.call("arming a timer", nr::TIMER_SETTIME, args);
}

/// Queues the signal of a timer that was armed for later, for so many expiries; one is its own.
fn tell(batch: &mut Batch, (pid, live): (Pid, &Live), timer: &PosixTimer, expiries: u64) {
    const SI_TIMER: i32 = -2;
    if signals_nobody(pid, live, timer) {
        return;
    }
    let Some(overruns) = expiries.checked_sub(1).filter(|_| timer.notifies()) else {
        return;
    };
    // Most that the kernel tells (kernel/time/posix-timers.c, timer_overrun_to_int).
    let overruns = i32::try_from(overruns).unwrap_or(i32::MAX);
    let mut info = [0; sys::ptrace::SIGINFO_SIZE];
    let words = [
        (0, timer.signal),
        (8, SI_TIMER),
        (16, timer.id),
        (20, overruns),
    ];
    for (at, word) in words {
        info[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    info[24..32].copy_from_slice(&timer.value.to_le_bytes());
    let info = batch.data(&info);
    let doing = "queueing the signal of a timer";
    if timer.signals_thread() {
        let args = [
            pid.0.into(),
            timer.tid.0.into(),
            timer.signal.into(),
            info.into(),
        ];
        batch.call(doing, nr::RT_TGSIGQUEUEINFO, args);
    } else {
        let args = [pid.0.into(), timer.signal.into(), info.into()];
        batch.call(doing, nr::RT_SIGQUEUEINFO, args);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_timer_keeps_its_phase() {
        assert_eq!(lasting(300, 1000, 299), (1, false));
        assert_eq!(lasting(300, 1000, 300), (1000, true));
        assert_eq!(lasting(300, 1000, 2450), (850, true));
        assert_eq!(lasting(300, 0, 2450), (1, false));
    }

    fn timer(remaining: u64, interval: u64, missed: u64) -> PosixTimer {
        PosixTimer {
            id: 0,
            clock: CLOCK_REALTIME,
            notify: 0,
            signal: 46,
            value: 0,
            tid: sys::Tid(0),
            made_by: sys::Tid(0),
            remaining,
            interval,
            missed,
            absolute: false,
        }
    }

    #[test]
    fn expiries_before_the_kernel_booted() {
        let since_boot =
            |expiry, interval, booted| since_boot(&timer(1, interval, 0), expiry, booted);
        assert_eq!(since_boot(1000, 7, 0), (1000, 0));
        assert_eq!(since_boot(1000, 7, 1000), (1000, 0));
        assert_eq!(since_boot(1000, 7, 1001), (1007, 1));
        assert_eq!(since_boot(1000, 7, 1014), (1014, 2));
        assert_eq!(since_boot(1000, 7, 1015), (1021, 3));
        assert_eq!(since_boot(1000, 0, 2000), (1000, 0));
    }

    #[test]
    fn a_timer_is_not_armed_again_when_it_may_have_expired() {
        assert!(is_armed_well(25_000_000, 150_000));
        assert!(!is_armed_well(25_000_000, 3_000_000));
        assert!(is_armed_well(25_000_000, 7_000_000), "it is about to");
        assert!(is_armed_well(25_000_000, 30_000_000), "it has");
    }

    #[test]
    fn a_relative_timer_keeps_its_phase() {
        let lasts = |remaining, interval, missed, passed| {
            lasts(&timer(remaining, interval, missed), passed)
        };
        assert_eq!(lasts(30, 100, 0, 20), (10, 0));
        assert_eq!(lasts(30, 100, 0, 30), (100, 1));
        assert_eq!(lasts(30, 100, 0, 250), (80, 3));
        assert_eq!(lasts(30, 100, 2, 250), (80, 5));
        assert_eq!(lasts(30, 100, 2, 10), (20, 2));
        assert_eq!(lasts(30, 0, 0, 250), (1, 0));
    }
}
