//! Interval timers and POSIX timers.

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use nix::time::ClockId;
use persist_mem::manifest::{Live, PosixTimer, QueuedSignal};
use sys::Pid;
use sys::batch::Batch;

const CLOCK_REALTIME: i32 = 0;
const CLOCK_MONOTONIC: i32 = 1;
const CLOCK_BOOTTIME: i32 = 7;
const TIMER_ABSTIME: i32 = 1;
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
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
    }
    Ok(())
}

/// Time since the saved clocks were read.
fn elapsed_ns(restore: &Restore<'_>) -> u64 {
    u64::try_from(restore.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn interval(restore: &mut Restore<'_>, pid: Pid, live: &Live) -> Result<(), ResurrectError> {
    let elapsed_us = elapsed_ns(restore) / 1000;
    let mut batch = Batch::new();
    for (which, timer) in live.itimers.iter().enumerate() {
        let remaining = match (timer.value_us, timer.interval_us) {
            (0, 0) => continue,
            // It has expired and starts again when its signal is taken (kernel/signal.c).
            (0, interval) => interval,
            (value, _) => value,
        };
        // Only ITIMER_REAL runs on while nothing runs.
        let passed = if which == 0 { elapsed_us } else { 0 };
        let value = remaining.saturating_sub(passed).max(1);
        let parts = |us: u64| [us / 1_000_000, us % 1_000_000];
        let words = [parts(timer.interval_us), parts(value)];
        let bytes: Vec<u8> = words
            .as_flattened()
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        let spec = batch.data(&bytes);
        let args = [which.into(), spec.into(), 0.into()];
        batch.call("arming an interval timer", nr::SETITIMER, args);
    }
    run(
        pid,
        "arming its timers",
        &mut restore.task(pid)?.first,
        &batch,
    )
    .map(drop)
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
    let first = &mut restore.task(pid)?.first;
    let mut batch = Batch::new();
    let args = [
        PR_TIMER_CREATE_RESTORE_IDS.into(),
        1.into(),
        0.into(),
        0.into(),
        0.into(),
    ];
    let choose = batch.try_call("choosing timer ids", nr::PRCTL, args);
    let output = run(pid, "choosing timer ids", first, &batch)?;
    let chosen = output.result(choose).is_ok();
    let mut next = 0;
    for timer in &live.timers {
        loop {
            let mut batch = Batch::new();
            let event = batch.data(&sigevent(timer));
            let id = batch.data(&timer.id.to_le_bytes());
            let args = [timer.clock.into(), event.into(), id.into()];
            batch.call("making a timer", nr::TIMER_CREATE, args);
            let output = run(pid, "making its timers", first, &batch)?;
            let got = output.u32(id, 0).cast_signed();
            if got == timer.id {
                break;
            }
            if chosen || got > timer.id || next > (1 << 20) {
                let why = format!("timer {} came as {got}", timer.id);
                return Err(ResurrectError::Impossible { pid, why });
            }
            next += 1;
            let mut batch = Batch::new();
            batch.call("removing a timer", nr::TIMER_DELETE, [got.into()]);
            run(pid, "making its timers", first, &batch)?;
        }
    }
    if chosen {
        let mut batch = Batch::new();
        let args = [
            PR_TIMER_CREATE_RESTORE_IDS.into(),
            0.into(),
            0.into(),
            0.into(),
            0.into(),
        ];
        batch.call("choosing timer ids no more", nr::PRCTL, args);
        run(pid, "choosing timer ids", first, &batch)?;
    }
    Ok(())
}

/// When a timer expired whose signal is queued: armed for that moment it queues its signal itself, and counts the
/// periods since when that is taken. None when it is not so.
fn expiry_of_queued(
    timer: &PosixTimer,
    elapsed: u64,
    even: impl Fn(i32) -> Option<u64>,
) -> Option<u64> {
    let then = match timer.clock {
        CLOCK_REALTIME => {
            let now = sys::clock::read_ns(ClockId::CLOCK_REALTIME).ok()?;
            u64::try_from(now).ok()?.saturating_sub(elapsed)
        }
        clock => even(clock)?,
    };
    let since = timer.missed.saturating_mul(timer.interval);
    let expiry = then.saturating_add(timer.remaining).saturating_sub(since);
    (timer.missed > 0).then_some(expiry.max(1))
}

/// Whether a queued signal comes from a timer that queues it again when it is armed.
pub(crate) fn comes_again(live: &Live, queued: &QueuedSignal) -> bool {
    const CLOCKS: [i32; 3] = [CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME];
    let armed = |timer: &&PosixTimer| timer.missed > 0 && CLOCKS.contains(&timer.clock);
    let mut timers = live.timers.iter().filter(armed);
    timers.any(|timer| timer.has_queued(queued))
}

fn arm(restore: &mut Restore<'_>, pid: Pid, live: &Live) -> Result<(), ResurrectError> {
    /// CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, and those of other tasks (negative).
    fn counts_cpu(clock: i32) -> bool {
        clock < 0 || clock == 2 || clock == 3
    }
    // What clocks that nobody sets showed: their timers are armed absolutely, so that it does not matter how
    // long arming takes.
    let clocks = restore.manifest.host.clocks;
    let even = |clock: i32| match clock {
        CLOCK_MONOTONIC => u64::try_from(clocks.monotonic).ok(),
        CLOCK_BOOTTIME => u64::try_from(clocks.boottime).ok(),
        _ => None,
    };
    let mut batch = Batch::new();
    for timer in live.timers.iter().filter(|timer| timer.remaining > 0) {
        let (flags, value) =
            if let Some(expiry) = expiry_of_queued(timer, elapsed_ns(restore), even) {
                (TIMER_ABSTIME, expiry)
            } else if let Some(then) = even(timer.clock) {
                (TIMER_ABSTIME, then.saturating_add(timer.remaining))
            } else {
                let elapsed = elapsed_ns(restore);
                let passed = if counts_cpu(timer.clock) { 0 } else { elapsed };
                (0, timer.remaining.saturating_sub(passed).max(1))
            };
        let parts = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000];
        let words = [parts(timer.interval), parts(value)];
        let bytes: Vec<u8> = words
            .as_flattened()
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        let spec = batch.data(&bytes);
        let args = [timer.id.into(), flags.into(), spec.into(), 0.into()];
        batch.call("arming a timer", nr::TIMER_SETTIME, args);
    }
    run(
        pid,
        "arming its timers",
        &mut restore.task(pid)?.first,
        &batch,
    )
    .map(drop)
}
