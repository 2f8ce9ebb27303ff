//! Clocks, and the one clock that runs on across a kexec: the time stamp counter.

use crate::{Pid, Result};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

/// Reads the time stamp counter. It is not reset by kexec (the processor is not), so two readings
/// on both sides of a jump measure the time between them.
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: rdtsc has no preconditions on x86_64; user access is on unless PR_SET_TSC forbids it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// A clock's reading in nanoseconds, as the calling process sees it (time namespace applied).
///
/// # Errors
/// `EINVAL` for a clock the kernel does not know.
pub fn read_ns(clock: ClockId) -> Result<i64> {
    let t = clock_gettime(clock)?;
    Ok(t.tv_sec() * 1_000_000_000 + t.tv_nsec())
}

/// Processor time of all threads of a process, ended ones too (`MAKE_PROCESS_CPUCLOCK`, clock_getcpuclockid(3)), in
/// nanoseconds.
///
/// # Errors
/// `EINVAL` when there is no such process.
pub fn process_cpu_ns(pid: Pid) -> Result<i64> {
    const CPUCLOCK_SCHED: i32 = 2;
    read_ns(ClockId::from_raw(!pid.0 << 3 | CPUCLOCK_SCHED))
}

/// Readings of all clocks that belong together: nanoseconds, and ticks of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// CLOCK_REALTIME.
    pub realtime: i64,
    /// CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// CLOCK_BOOTTIME.
    pub boottime: i64,
    /// Time stamp counter.
    pub tsc: u64,
}

impl Moment {
    /// Reads them one after the other. A busy host may let the caller stand for half a second
    /// between two of them, so of some tries the one counts that took the least time.
    ///
    /// # Errors
    /// `EINVAL` for a clock the kernel does not know.
    pub fn now() -> Result<Moment> {
        /// Nanoseconds that are good enough.
        const CLOSE: i64 = 20_000;
        const TRIES: usize = 16;
        let (mut best, mut span) = Self::read()?;
        for _ in 1..TRIES {
            if span <= CLOSE {
                break;
            }
            let (moment, took) = Self::read()?;
            if took < span {
                (best, span) = (moment, took);
            }
        }
        Ok(best)
    }

    /// One try and the nanoseconds it took.
    fn read() -> Result<(Moment, i64)> {
        let monotonic = read_ns(ClockId::CLOCK_MONOTONIC)?;
        let moment = Moment {
            realtime: read_ns(ClockId::CLOCK_REALTIME)?,
            monotonic,
            boottime: read_ns(ClockId::CLOCK_BOOTTIME)?,
            tsc: tsc(),
        };
        Ok((moment, read_ns(ClockId::CLOCK_MONOTONIC)? - monotonic))
    }
}

/// Sets CLOCK_REALTIME to what `wanted` tells for the time that CLOCK_MONOTONIC shows (both in
/// nanoseconds), and looks whether it came true: whoever stands between asking and setting sets
/// what is past. A deviation of up to 50 us stays, and whatever 16 tries could not better.
///
/// # Errors
/// `EPERM` without CAP_SYS_TIME.
pub fn set_realtime(wanted: impl Fn(i64) -> i64) -> Result<()> {
    const CLOSE: u64 = 50_000;
    for _ in 0..16 {
        let now = Moment::now()?;
        let right = wanted(now.monotonic);
        if now.realtime.abs_diff(right) <= CLOSE {
            break;
        }
        let late = read_ns(ClockId::CLOCK_MONOTONIC)? - now.monotonic;
        let ns = right + late;
        let time = TimeSpec::new(ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
        clock_settime(ClockId::CLOCK_REALTIME, time)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_of_a_moment_belong_together() {
        let (first, second) = (Moment::now().unwrap(), Moment::now().unwrap());
        let gone = second.monotonic - first.monotonic;
        assert!(gone >= 0 && second.tsc > first.tsc);
        // 5 ms: far more than the tries leave, far less than a host lets a process stand.
        let apart = (second.boottime - first.boottime) - gone;
        assert!(apart.abs() < 5_000_000, "{apart} ns");
        let apart = (second.realtime - first.realtime) - gone;
        assert!(apart.abs() < 5_000_000, "{apart} ns");
    }
}
