//! Interval timers and POSIX timers.

use super::overruns;
use crate::FreezerError;
use crate::freeze::monotonic_ns;
use crate::{kernel, proc};
use persist_mem::manifest::{Itimer, Live, PosixTimer, QueuedSignal, counts_maker};
use std::collections::BTreeMap;
use sys::batch::{Batch, Buffer, CallIndex, Output};
use sys::tracee::{Tracee, TraceeError};
use sys::{Pid, Tid};

const CLOCK_MONOTONIC: i32 = 1;
const GETITIMER: i64 = 36;
const PRCTL: i64 = 157;
const TIMER_GETTIME: i64 = 224;
const CLOCK_GETTIME: i64 = 228;
/// Timers that are asked for in one batch, which has to fit the scratch mapping.
const AT_ONCE: usize = 256;

/// CLOCK_MONOTONIC when a process was asked how long its timers and sleeps still last.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimersAt(pub(super) u64);

impl TimersAt {
    pub(super) fn now() -> TimersAt {
        TimersAt(monotonic_ns())
    }

    /// Makes what was told then true for `now_ns`: the clocks that are saved are read once for all.
    pub(super) fn settle(self, live: &mut Live, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.0);
        // An armed timer stays armed.
        let left = |value: u64, passed: u64| match value {
            0 => 0,
            value => value.saturating_sub(passed).max(1),
        };
        settle_real(&mut live.itimers[0], &mut live.pending, passed / 1000);
        let threads = live.threads.iter().flat_map(|thread| &thread.pending);
        let queued: Vec<&QueuedSignal> = live.pending.iter().chain(threads).collect();
        for timer in &mut live.timers {
            let waits = queued.iter().any(|signal| timer.has_queued(signal));
            if !waits {
                timer.missed = 0;
            } else if timer.counts_cpu() {
                expired(timer);
            }
        }
        for timer in live.timers.iter_mut().filter(|t| !t.counts_cpu()) {
            keep_phase(timer, passed);
            timer.remaining = left(timer.remaining, passed);
        }
        let sleeps = live.threads.iter_mut().filter_map(|t| t.sleep.as_mut());
        for sleep in sleeps.filter(|sleep| !sleep.counts_cpu) {
            sleep.remaining = sleep.remaining.saturating_sub(passed);
        }
        let waits = live
            .threads
            .iter_mut()
            .filter_map(|t| t.socket_wait.as_mut());
        for wait in waits {
            wait.remaining = wait.remaining.saturating_sub(passed);
        }
        for limit in live.threads.iter_mut().filter_map(|t| t.limit.as_mut()) {
            limit.remaining = limit.remaining.saturating_sub(passed);
        }
    }
}

/// ITIMER_REAL, with its signal when it has expired since it was asked for: a periodic one keeps its phase.
fn settle_real(real: &mut Itimer, pending: &mut Vec<QueuedSignal>, passed_us: u64) {
    const SIGALRM: i32 = 14;
    let Some(late) = passed_us.checked_sub(real.value_us) else {
        real.value_us -= passed_us;
        return;
    };
    if real.value_us == 0 {
        return;
    }
    if real.interval_us == 0 {
        // An armed timer stays armed.
        real.value_us = 1;
        return;
    }
    real.value_us = real.interval_us - late % real.interval_us;
    let info = sys::ptrace::of_kernel(SIGALRM);
    if !pending.iter().any(|it| it.0.starts_with(&info[..4])) {
        pending.push(QueuedSignal(info.to_vec()));
    }
}

/// A periodic timer of processor time whose signal waits begins anew once that is taken. Until then kernels before
/// Linux 6.12 tell that it is about to expire (kernel/time/posix-cpu-timers.c, `posix_cpu_timer_get`): armed so, it
/// would do so twice.
fn expired(timer: &mut PosixTimer) {
    /// Nanoseconds that such a one has left.
    const ABOUT_TO: u64 = 1;
    if timer.remaining == ABOUT_TO && timer.interval > 0 {
        timer.remaining = timer.interval;
    }
}

/// A periodic timer that would have expired within `passed` is asked for its next time after that.
fn keep_phase(timer: &mut PosixTimer, passed: u64) {
    if timer.remaining == 0 || timer.interval == 0 || timer.remaining > passed {
        return;
    }
    let periods = (passed - timer.remaining) / timer.interval + 1;
    timer.remaining += periods * timer.interval;
    timer.missed += if timer.notifies() { periods } else { 0 };
}

/// Asks whether the process chooses the ids of its timers (before Linux 6.16 nobody does).
pub(super) fn ask_ids(batch: &mut Batch) -> CallIndex {
    const PR_TIMER_CREATE_RESTORE_IDS: i64 = 77;
    const GET: i64 = 2;
    let args = [PR_TIMER_CREATE_RESTORE_IDS.into(), GET.into()];
    batch.try_call("asking for its timers' ids", PRCTL, args)
}

/// Where CLOCK_MONOTONIC, and where ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF are written.
pub(super) struct Asked(Buffer, [Buffer; 3]);

pub(super) fn ask(batch: &mut Batch) -> Asked {
    let now = batch.space(16);
    let args = [CLOCK_MONOTONIC.into(), now.into()];
    batch.call("asking for the time", CLOCK_GETTIME, args);
    let timers = [0, 1, 2].map(|which| {
        let buffer = batch.space(32);
        batch.call(
            "asking for an interval timer",
            GETITIMER,
            [which.into(), buffer.into()],
        );
        buffer
    });
    Asked(now, timers)
}

/// The interval timers, ITIMER_REAL as it was at `at`: it was asked for some time after that.
pub(super) fn itimers(
    Asked(now, timers): &Asked,
    out: &Output,
    at: TimersAt,
    tid: Tid,
) -> [Itimer; 3] {
    let mut found = timers.map(|buffer| Itimer {
        interval_us: out.u64(buffer, 0) * 1_000_000 + out.u64(buffer, 1),
        value_us: out.u64(buffer, 2) * 1_000_000 + out.u64(buffer, 3),
    });
    let asked = out.u64(*now, 0) * 1_000_000_000 + out.u64(*now, 1);
    let real = &mut found[0];
    if real.value_us > 0 {
        real.value_us += asked.saturating_sub(at.0) / 1000;
    } else if real.interval_us > 0
        && let Ok(expired) = kernel::look(|kernel| kernel.real_timer(tid))
    {
        // Its signal waits; once that is taken it goes on in its phase.
        real.value_us = next(expired, real.interval_us, at.0);
    }
    found
}

/// How long after `at` a timer expires next that has expired, both in nanoseconds.
pub(super) fn next(expired: i64, interval_us: u64, at: u64) -> u64 {
    match u64::try_from(at.cast_signed().saturating_sub(expired)) {
        Ok(passed) => interval_us - passed / 1000 % interval_us,
        Err(_) => expired.abs_diff(at.cast_signed()).div_ceil(1000),
    }
}

/// Timers made by timer_create(2): `/proc/PID/timers` lists them, their state is asked inside.
/// How long they still last is told for `at`.
pub(super) fn posix(
    pid: Pid,
    first: &mut Tracee,
    at: TimersAt,
) -> Result<Vec<PosixTimer>, FreezerError> {
    let text = proc::read_text(pid, "timers")?;
    let format = || FreezerError::Format {
        pid,
        what: "timers".into(),
        text: text.clone(),
    };
    let mut timers = parse(&text).ok_or_else(format)?;
    if timers.is_empty() {
        return Ok(timers);
    }
    for some in timers.chunks_mut(AT_ONCE) {
        ask_posix(some, first).map_err(FreezerError::tracee(pid))?;
    }
    let kept = overruns::kept(first.tid()).unwrap_or_else(|why| {
        log::debug!("timers of process {pid}: {why}");
        BTreeMap::new()
    });
    for timer in &mut timers {
        let maker = kept.get(&timer.id).and_then(|kept| kept.counts);
        timer.made_by = maker
            .filter(|_| counts_maker(timer.clock))
            .unwrap_or(Tid(0));
        let periodic = timer.interval > 0 && !timer.counts_cpu();
        let Some(kept) = kept.get(&timer.id).filter(|_| timer.remaining > 0) else {
            continue;
        };
        timer.missed = if periodic { kept.periods } else { 0 };
        if let Some(lasts) = kept.lasts(timer.clock, at.0, timer.remaining) {
            (timer.remaining, timer.absolute) = (lasts.remaining, lasts.absolute);
        }
    }
    timers.sort_by_key(|timer| timer.id);
    Ok(timers)
}

/// Asks how long timers still last, and for their periods.
fn ask_posix(timers: &mut [PosixTimer], first: &mut Tracee) -> Result<(), TraceeError> {
    let mut batch = Batch::new();
    let asked: Vec<Buffer> = timers
        .iter()
        .map(|timer| {
            let buffer = batch.space(32);
            let args = [timer.id.into(), buffer.into()];
            batch.call("asking for a timer", TIMER_GETTIME, args);
            buffer
        })
        .collect();
    let out = first.run(&batch)?;
    for (timer, buffer) in timers.iter_mut().zip(asked) {
        timer.interval = out.u64(buffer, 0) * 1_000_000_000 + out.u64(buffer, 1);
        timer.remaining = out.u64(buffer, 2) * 1_000_000_000 + out.u64(buffer, 3);
    }
    Ok(())
}

/// Four lines a timer (fs/proc/base.c, show_timer).
pub(super) fn parse(text: &str) -> Option<Vec<PosixTimer>> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(':')?;
        let value = value.trim();
        if key == "ID" {
            let id = value.parse().ok()?;
            timers.push(PosixTimer {
                id,
                clock: 0,
                notify: 0,
                signal: 0,
                value: 0,
                tid: Tid(0),
                made_by: Tid(0),
                remaining: 0,
                interval: 0,
                missed: 0,
                absolute: false,
            });
            continue;
        }
        let timer = timers.last_mut()?;
        match key {
            "signal" => {
                let (signal, pointer) = value.split_once('/')?;
                timer.signal = signal.parse().ok()?;
                timer.value = u64::from_str_radix(pointer.trim_start_matches("0x"), 16).ok()?;
            }
            "notify" => {
                let (how, whom) = value.split_once('/')?;
                let (kind, id) = whom.split_once('.')?;
                timer.notify = match how {
                    "signal" => 0,
                    "none" => 1,
                    "thread" => 2,
                    _ => return None,
                };
                if kind == "tid" {
                    // SIGEV_THREAD_ID
                    timer.notify |= 4;
                    timer.tid = Tid(id.parse().ok()?);
                }
            }
            "ClockID" => timer.clock = value.parse().ok()?,
            _ => {}
        }
    }
    Some(timers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_timer_whose_signal_waits_has_a_phase() {
        assert_eq!(next(5_000_000, 700, 5_000_000), 700);
        assert_eq!(next(5_000_000, 700, 5_300_000), 400);
        assert_eq!(next(5_000_000, 700, 7_300_000), 500);
        assert_eq!(next(5_000_000, 700, 4_999_500), 1);
    }

    #[test]
    fn an_interval_timer_that_expires_while_it_is_described() {
        let after = |value_us, interval_us, passed| {
            let mut timer = Itimer {
                value_us,
                interval_us,
            };
            let mut pending = Vec::new();
            settle_real(&mut timer, &mut pending, passed);
            settle_real(&mut timer, &mut pending, 0);
            (timer.value_us, pending.len())
        };
        assert_eq!(after(300, 1000, 299), (1, 0));
        assert_eq!(after(300, 1000, 2400), (900, 1));
        assert_eq!(after(300, 0, 2400), (1, 0));
        assert_eq!(after(0, 1000, 2400), (0, 0));
    }

    #[test]
    fn a_periodic_timer_keeps_its_phase() {
        let mut timer = parse("ID: 1\nnotify: signal/pid.1\n").unwrap().remove(0);
        (timer.remaining, timer.interval) = (30, 100);
        keep_phase(&mut timer, 20);
        assert_eq!((timer.remaining, timer.missed), (30, 0));
        keep_phase(&mut timer, 250);
        assert_eq!((timer.remaining, timer.missed), (330, 3));
        timer.remaining = 0;
        keep_phase(&mut timer, 250);
        assert_eq!((timer.remaining, timer.missed), (0, 3), "it is not armed");
    }

    #[test]
    fn two_timers() {
        let text = "ID: 1\nsignal: 60/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 0\n\
                    ID: 0\nsignal: 32/0000000000000000\nnotify: signal/tid.77\nClockID: 1\n";
        let timers = parse(text).unwrap();
        assert_eq!(
            (timers[0].id, timers[0].signal, timers[0].notify),
            (1, 60, 0)
        );
        assert_eq!(timers[0].value, 0x7fff_86e4_52a8);
        assert_eq!(
            (timers[1].notify, timers[1].tid, timers[1].clock),
            (4, Tid(77), 1)
        );
        assert!(parse("nonsense\n").is_none());
    }
}
