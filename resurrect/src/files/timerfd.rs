//! timerfd_create(2).
//!
//! Clocks go on from where they were (on another kernel by time_namespaces(7)), so absolute times stay;
//! relative timers are set by what remains.

use super::Opening;
use crate::ResurrectError;
use nix::time::ClockId;
use persist_mem::manifest::{Clocks, DescriptionKind};
use std::os::fd::OwnedFd;
use std::time::Duration;
use sys::Errno;

// include/uapi/linux/time.h
const CLOCK_REALTIME: i32 = 0;
const CLOCK_BOOTTIME: i32 = 7;
const CLOCK_REALTIME_ALARM: i32 = 8;
const CLOCK_BOOTTIME_ALARM: i32 = 9;

const TFD_TIMER_ABSTIME: u32 = 1;
/// One with a very short period expires within any try.
const TRIES: u32 = 16;

pub(super) fn open(opening: &Opening<'_, '_>) -> Result<OwnedFd, ResurrectError> {
    let DescriptionKind::TimerFd {
        clock,
        settime_flags,
        ticks,
        value,
        interval,
        read_at,
    } = opening.description.kind
    else {
        return Err(opening.failed("making it")(Errno::EINVAL));
    };
    let fd = sys::fds::timerfd(clock).map_err(opening.failed("making it"))?;
    let timer = Timer {
        absolute: settime_flags & TFD_TIMER_ABSTIME != 0,
        value,
        interval,
    };
    let clocks = opening.restore.manifest.host.clocks;
    let then = then(&clocks, clock, read_at);
    // What expired on this kernel before it had booted is not counted by it (kernel/time/namespace.c).
    let passed = || match timer.absolute {
        true => shows(clock).map(|now| now.saturating_sub(then)),
        false => Ok(since(opening.restore.elapsed(), &clocks, read_at)),
    };
    for _ in 0..TRIES {
        let before = passed().map_err(opening.failed("reading its clock"))?;
        let setting = timer.setting(before, then);
        // Flags are kept with a timer that is not armed, too.
        let flags = settime_flags.cast_signed();
        sys::fds::timerfd_settime(&fd, flags, setting.value, timer.interval)
            .map_err(opening.failed("arming it"))?;
        let unread = ticks + setting.missed;
        if unread == 0 {
            break;
        }
        sys::fds::timerfd_set_ticks(&fd, unread).map_err(opening.failed("setting its ticks"))?;
        // One that expired just before that has lost it, and is set anew.
        let after = passed().map_err(opening.failed("reading its clock"))?;
        if setting.left == 0 || after.saturating_sub(before) < setting.left {
            break;
        }
    }
    Ok(fd)
}

/// What a clock shows now. The alarm clocks cannot be read without an RTC.
fn shows(clock: i32) -> sys::Result<i64> {
    sys::clock::read_ns(ClockId::from_raw(match clock {
        CLOCK_REALTIME_ALARM => CLOCK_REALTIME,
        CLOCK_BOOTTIME_ALARM => CLOCK_BOOTTIME,
        clock => clock,
    }))
}

/// What a clock showed when CLOCK_MONOTONIC showed `read_at`.
fn then(clocks: &Clocks, clock: i32, read_at: i64) -> i64 {
    let saved = match clock {
        CLOCK_REALTIME | CLOCK_REALTIME_ALARM => clocks.realtime,
        CLOCK_BOOTTIME | CLOCK_BOOTTIME_ALARM => clocks.boottime,
        _ => clocks.monotonic,
    };
    saved - (clocks.monotonic - read_at)
}

/// Nanoseconds since the timer was read.
pub(super) fn since(elapsed: Duration, clocks: &Clocks, read_at: i64) -> i64 {
    let elapsed = i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX);
    elapsed.saturating_add(clocks.monotonic - read_at)
}

struct Timer {
    absolute: bool,
    /// What remained when it was read, 0 when it was not armed.
    value: u64,
    interval: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Setting {
    /// What timerfd_settime(2) is given.
    value: u64,
    /// Expirations of a periodic timer while nobody was there.
    missed: u64,
    /// Nanoseconds until it expires, 0 when it does so at once or never.
    left: i64,
}

impl Timer {
    /// How to arm it when `passed` nanoseconds have passed since it was read, when its clock showed `then`.
    fn setting(&self, passed: i64, then: i64) -> Setting {
        if self.value == 0 {
            return Setting {
                value: 0,
                missed: 0,
                left: 0,
            };
        }
        let value = i64::try_from(self.value).unwrap_or(i64::MAX);
        let remains = value.saturating_sub(passed);
        let (left, missed) = match i64::try_from(self.interval) {
            Ok(interval) if interval > 0 && remains <= 0 => {
                let missed = (-remains / interval).cast_unsigned() + 1;
                (interval - -remains % interval, missed)
            }
            _ => (remains, 0),
        };
        let value = match self.absolute {
            true => then.saturating_add(passed).saturating_add(left),
            false => left,
        };
        Setting {
            value: u64::try_from(value).unwrap_or(0).max(1),
            missed,
            left: left.max(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(absolute: bool, value: u64, interval: u64) -> Timer {
        Timer {
            absolute,
            value,
            interval,
        }
    }

    #[test]
    fn what_remains_and_what_was_missed() {
        let set = |value, missed, left| Setting {
            value,
            missed,
            left,
        };
        let (relative, absolute) = (
            |value, interval| timer(false, value, interval),
            |value, interval| timer(true, value, interval),
        );
        assert_eq!(relative(0, 5).setting(9, 1000), set(0, 0, 0));
        assert_eq!(relative(100, 0).setting(30, 1000), set(70, 0, 70));
        assert_eq!(relative(100, 0).setting(300, 1000), set(1, 0, 0));
        // Due 10, 60, 110, ... ; 125 have passed: 3 missed, the next one in 35.
        assert_eq!(relative(10, 50).setting(125, 1000), set(35, 3, 35));
        assert_eq!(absolute(10, 50).setting(125, 1000), set(1160, 3, 35));
        // What was asked for, however long it took.
        assert_eq!(absolute(100, 7).setting(30, 1000), set(1100, 0, 70));
        assert_eq!(absolute(100, 0).setting(300, 1000), set(1100, 0, 0));
    }

    #[test]
    fn clocks_are_known_for_the_moment_of_reading() {
        let clocks = Clocks {
            realtime: 5000,
            monotonic: 100,
            boottime: 300,
            tsc: 0,
        };
        let shown = [0, 8, 1, 7, 9].map(|clock| then(&clocks, clock, 90));
        assert_eq!(shown, [4990, 4990, 90, 290, 290]);
    }
}
