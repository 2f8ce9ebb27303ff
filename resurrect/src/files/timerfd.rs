//! timerfd_create(2).
//!
//! Clocks of time since boot go on from where they were, perhaps under another name for now (time
//! namespaces), so their timers are set by what remains. Absolute times of the wall clock stay.

use super::Opening;
use crate::ResurrectError;
use nix::time::ClockId;
use persist_mem::manifest::{Clocks, DescriptionKind};
use std::os::fd::OwnedFd;
use std::time::Duration;
use sys::Errno;

// include/uapi/linux/time.h
const CLOCK_REALTIME: i32 = 0;
const CLOCK_REALTIME_ALARM: i32 = 8;
const CLOCK_BOOTTIME_ALARM: i32 = 9;

const TFD_TIMER_ABSTIME: u32 = 1;

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
        clock,
        absolute: settime_flags & TFD_TIMER_ABSTIME != 0,
        value,
        interval,
    };
    let clocks = opening.restore.manifest.host.clocks;
    let passed = since(opening.restore.elapsed(), &clocks, read_at);
    let now = sys::clock::read_ns(readable(clock));
    let now = now.map_err(opening.failed("reading its clock"))?;
    let setting = timer.setting(passed, now, clocks.realtime - (clocks.monotonic - read_at));
    // Flags are kept with a timer that is not armed, too.
    sys::fds::timerfd_settime(
        &fd,
        settime_flags.cast_signed(),
        setting.value,
        timer.interval,
    )
    .map_err(opening.failed("arming it"))?;
    if ticks + setting.missed > 0 {
        sys::fds::timerfd_set_ticks(&fd, ticks + setting.missed)
            .map_err(opening.failed("setting its ticks"))?;
    }
    Ok(fd)
}

/// The clock whose time an alarm clock shows: it can always be read, the other one only with a real-time
/// clock that wakes the machine.
fn readable(clock: i32) -> ClockId {
    match clock {
        CLOCK_REALTIME_ALARM => ClockId::CLOCK_REALTIME,
        CLOCK_BOOTTIME_ALARM => ClockId::CLOCK_BOOTTIME,
        clock => ClockId::from_raw(clock),
    }
}

/// Nanoseconds since the timer was read.
fn since(elapsed: Duration, clocks: &Clocks, read_at: i64) -> i64 {
    let elapsed = i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX);
    elapsed.saturating_add(clocks.monotonic - read_at)
}

struct Timer {
    clock: i32,
    absolute: bool,
    /// What remained when it was read, 0 when it was not armed.
    value: u64,
    interval: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Setting {
    /// What timerfd_settime(2) is given.
    value: u64,
    /// Expirations of a relative timer while nobody was there; the kernel counts those of absolute ones.
    missed: u64,
}

impl Timer {
    /// How to arm it when `passed` nanoseconds have passed, at `now` of its clock; `wall` is the wall
    /// clock's time when it was read.
    fn setting(&self, passed: i64, now: i64, wall: i64) -> Setting {
        let nothing_missed = |value: i64| Setting {
            value: u64::try_from(value).unwrap_or(0).max(1),
            missed: 0,
        };
        if self.value == 0 {
            return Setting {
                value: 0,
                missed: 0,
            };
        }
        let value = i64::try_from(self.value).unwrap_or(i64::MAX);
        let remains = value.saturating_sub(passed);
        let of_wall_clock = [CLOCK_REALTIME, CLOCK_REALTIME_ALARM].contains(&self.clock);
        if self.absolute && of_wall_clock {
            return nothing_missed(wall.saturating_add(value));
        }
        if self.absolute {
            return nothing_missed(now.saturating_add(remains));
        }
        match i64::try_from(self.interval) {
            Ok(interval) if interval > 0 && remains <= 0 => Setting {
                value: (interval - -remains % interval).cast_unsigned(),
                missed: (-remains / interval).cast_unsigned() + 1,
            },
            _ => nothing_missed(remains),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(clock: i32, absolute: bool, value: u64, interval: u64) -> Timer {
        Timer {
            clock,
            absolute,
            value,
            interval,
        }
    }

    #[test]
    fn what_remains_and_what_was_missed() {
        let set = |value, missed| Setting { value, missed };
        let monotonic = 1;
        assert_eq!(timer(monotonic, false, 0, 5).setting(9, 1000, 0), set(0, 0));
        assert_eq!(
            timer(monotonic, false, 100, 0).setting(30, 1000, 0),
            set(70, 0)
        );
        assert_eq!(
            timer(monotonic, false, 100, 0).setting(300, 1000, 0),
            set(1, 0)
        );
        // Due 10, 60, 110, ... ; 125 have passed: 3 missed, the next one in 35.
        assert_eq!(
            timer(monotonic, false, 10, 50).setting(125, 1000, 0),
            set(35, 3)
        );
        assert_eq!(
            timer(monotonic, true, 100, 7).setting(30, 1000, 0),
            set(1070, 0)
        );
        assert_eq!(
            timer(monotonic, true, 100, 7).setting(300, 1000, 0),
            set(800, 0)
        );
        // The wall clock's time is what was asked for, however long it took.
        assert_eq!(
            timer(0, true, 100, 0).setting(30, 9_999, 5_000),
            set(5_100, 0)
        );
    }
}
