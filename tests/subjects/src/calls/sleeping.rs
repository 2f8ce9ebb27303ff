//! Sleeping.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::kit::{LONG_TERM, Setting, TERM, Watch, args, blocked, raw, same, timed, timed_long};

pub(super) fn spec(time: Duration) -> [u64; 2] {
    [time.as_secs(), time.subsec_nanos().into()]
}

/// The time of a clock.
pub(super) fn now(clock: i32) -> Duration {
    let mut time = [0_u64; 2];
    raw(
        libc::SYS_clock_gettime,
        args([clock as u64, time.as_mut_ptr() as u64]),
    );
    Duration::new(time[0], time[1] as u32)
}

/// nanosleep
pub(crate) fn relative(_: &Setting) -> Result<Watch> {
    timed(
        libc::SYS_nanosleep,
        || raw(libc::SYS_nanosleep, args([spec(TERM).as_ptr() as u64])),
        0,
    )
}

/// nanosleep without a place for what remains.
pub(crate) fn relative_twice(_: &Setting) -> Result<Watch> {
    timed_long(
        libc::SYS_nanosleep,
        || raw(libc::SYS_nanosleep, args([spec(LONG_TERM).as_ptr() as u64])),
        0,
    )
}

/// clock_nanosleep on CLOCK_BOOTTIME.
pub(crate) fn boottime_twice(_: &Setting) -> Result<Watch> {
    timed_long(
        libc::SYS_clock_nanosleep,
        || {
            let (clock, time) = (libc::CLOCK_BOOTTIME as u64, spec(LONG_TERM));
            let pointer = time.as_ptr() as u64;
            raw(libc::SYS_clock_nanosleep, args([clock, 0, pointer]))
        },
        0,
    )
}

fn clock(clock: i32, flags: i32) -> Result<Watch> {
    timed(
        libc::SYS_clock_nanosleep,
        move || {
            let until = if flags == 0 { TERM } else { now(clock) + TERM };
            let until = spec(until);
            let pointer = until.as_ptr() as u64;
            raw(
                libc::SYS_clock_nanosleep,
                args([clock as u64, flags as u64, pointer]),
            )
        },
        0,
    )
}

/// CLOCK_BOOTTIME, relative.
pub(crate) fn boottime(_: &Setting) -> Result<Watch> {
    clock(libc::CLOCK_BOOTTIME, 0)
}

/// CLOCK_MONOTONIC, absolute.
pub(crate) fn absolute(_: &Setting) -> Result<Watch> {
    clock(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME)
}

/// CLOCK_REALTIME, absolute.
pub(crate) fn realtime(_: &Setting) -> Result<Watch> {
    clock(libc::CLOCK_REALTIME, libc::TIMER_ABSTIME)
}

/// By the processor time of the own process, as the C library names it: what remains is time on the processor.
pub(crate) fn processor(_: &Setting) -> Result<Watch> {
    /// CLOCK_PROCESS_CPUTIME_ID of process 0, who is whoever asks (clock_getcpuclockid(3)).
    const OWN_PROCESS: i32 = !0 << 3 | 2;
    const LONG: Duration = Duration::from_millis(500);
    /// The kernel looks at such sleeps when a tick meets the process on the processor.
    const TICKS: Duration = Duration::from_millis(100);
    static SLEPT: AtomicU64 = AtomicU64::new(0);
    blocked(
        libc::SYS_clock_nanosleep,
        || {
            let clock = i64::from(OWN_PROCESS).cast_unsigned();
            let long = spec(LONG);
            let arguments = args([clock, 0, long.as_ptr() as u64]);
            let result = raw(libc::SYS_clock_nanosleep, arguments);
            SLEPT.fetch_add(1, Ordering::SeqCst);
            result
        },
        0,
        || {
            // No longer than that takes: the next sleep has begun then.
            let (begin, before) = (now(OWN_PROCESS), SLEPT.load(Ordering::SeqCst));
            while SLEPT.load(Ordering::SeqCst) == before && now(OWN_PROCESS) - begin < LONG + TICKS
            {
                std::hint::spin_loop();
            }
            Ok(())
        },
    )
}

/// A long sleep ended by a signal writes what is left of it to where the program said.
pub(crate) fn remainder(_: &Setting) -> Result<Watch> {
    const LONG: Duration = Duration::from_secs(1000);
    static REST: std::sync::Mutex<Option<(Duration, Duration)>> = std::sync::Mutex::new(None);
    super::signals::handle(libc::SIGUSR2)?;
    let (send, tid) = std::sync::mpsc::channel();
    let watch = blocked(
        libc::SYS_nanosleep,
        move || {
            let _ = send.send(crate::kit::tid());
            let start = now(libc::CLOCK_MONOTONIC);
            let (long, mut rest) = (spec(LONG), [0_u64; 2]);
            let result = raw(
                libc::SYS_nanosleep,
                args([long.as_ptr() as u64, rest.as_mut_ptr() as u64]),
            );
            let rest = Duration::new(rest[0], rest[1] as u32);
            let slept = now(libc::CLOCK_MONOTONIC) - start;
            *REST.lock().unwrap_or_else(|poison| poison.into_inner()) = Some((slept, rest));
            result
        },
        -i64::from(libc::EINTR),
        move || super::signals::kill(tid.recv()?, libc::SIGUSR2),
    )?;
    Ok(watch.and(Watch::new(|| {
        let seen = REST
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .take();
        let (slept, rest) = seen.unwrap_or_default();
        // The rest must not be more than what is left, and not much less: the time that
        // everybody stood still may or may not count.
        let exact = LONG.saturating_sub(slept);
        same(
            "the rest is about right",
            &true,
            &(rest + Duration::from_secs(1) > exact && rest < exact + Duration::from_secs(120)),
        )
    })))
}
