//! How much time an upgrade took, by the one clock that runs through it: the time stamp counter.

use super::{Result, call};
use persist_mem::manifest::Clocks;
use sys::clock::Moment;

const NS: i64 = 1_000_000_000;

/// Nanoseconds between two readings of a counter that runs at `hz`; 0 when it ran backwards.
#[must_use]
pub fn between(from: u64, to: u64, hz: u64) -> i64 {
    let ticks = u128::from(to.saturating_sub(from));
    let ns = ticks * 1_000_000_000 / u128::from(hz.max(1));
    i64::try_from(ns).unwrap_or(i64::MAX)
}

/// Reads all clocks now.
///
/// # Errors
/// A clock the kernel does not know.
pub fn now() -> Result<Clocks> {
    let now = Moment::now().map_err(call("clock_gettime"))?;
    Ok(Clocks {
        realtime: now.realtime,
        monotonic: now.monotonic,
        boottime: now.boottime,
        tsc: now.tsc,
    })
}

/// What the saved processes' clocks show at the moment of `now`. The counter tells how much time
/// went by; where it was reset, the new kernel's age is taken, which is a little less.
#[must_use]
pub fn carried_on(saved: &Clocks, now: &Clocks, hz: u64) -> Clocks {
    let by_counter = between(saved.tsc, now.tsc, hz);
    let gone = if by_counter > 0 && hz > 0 {
        by_counter
    } else {
        now.boottime
    };
    Clocks {
        realtime: saved.realtime + gone,
        monotonic: saved.monotonic + gone,
        boottime: saved.boottime + gone,
        tsc: now.tsc,
    }
}

/// The contents of `/proc/PID/timens_offsets` (time_namespaces(7)) that make this kernel's clocks
/// `now` show `wanted`.
#[must_use]
pub fn offsets(wanted: &Clocks, now: &Clocks) -> String {
    let line = |name: &str, wanted: i64, now: i64| {
        let offset = wanted - now;
        format!(
            "{name} {} {}\n",
            offset.div_euclid(NS),
            offset.rem_euclid(NS)
        )
    };
    line("monotonic", wanted.monotonic, now.monotonic)
        + &line("boottime", wanted.boottime, now.boottime)
}

/// Sets CLOCK_REALTIME to what was `wanted` at the moment of `now` and the time that has gone by
/// since: the new kernel has it from the RTC, which counts whole seconds.
///
/// # Errors
/// `EPERM` without CAP_SYS_TIME.
pub fn set_realtime(wanted: &Clocks, now: &Clocks) -> Result<()> {
    sys::clock::set_realtime(|monotonic| wanted.realtime + (monotonic - now.monotonic))
        .map_err(call("clock_settime"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clocks(realtime: i64, monotonic: i64, boottime: i64, tsc: u64) -> Clocks {
        Clocks {
            realtime,
            monotonic,
            boottime,
            tsc,
        }
    }

    #[test]
    fn the_blackout_is_added_to_every_clock() {
        let saved = clocks(100 * NS, 50 * NS, 60 * NS, 1_000);
        let now = clocks(999 * NS, 2 * NS, 2 * NS, 1_000 + 3_000_000_000);
        let wanted = carried_on(&saved, &now, 2_000_000_000);
        assert_eq!(wanted.monotonic, 50 * NS + 1_500_000_000);
        assert_eq!(wanted.realtime, 100 * NS + 1_500_000_000);
        assert_eq!(
            offsets(&wanted, &now),
            "monotonic 49 500000000\nboottime 59 500000000\n"
        );
    }

    #[test]
    fn a_counter_that_was_reset_is_not_believed() {
        let saved = clocks(0, 50 * NS, 60 * NS, 5_000);
        let now = clocks(0, 2 * NS, 2 * NS, 10);
        assert_eq!(carried_on(&saved, &now, 1_000).monotonic, 52 * NS);
    }

    #[test]
    fn negative_offsets_have_positive_nanoseconds() {
        let text = offsets(&clocks(0, 1, 1, 0), &clocks(0, NS + 3, 2, 0));
        assert_eq!(text, "monotonic -2 999999998\nboottime -1 999999999\n");
    }
}
