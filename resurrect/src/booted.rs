//! What the restored processes' clocks showed when this kernel booted (time_namespaces(7)).

use crate::ResurrectError;
use sys::{Errno, Pid};

const CLOCK_MONOTONIC: i32 = 1;
const CLOCK_BOOTTIME: i32 = 7;
const CLOCK_BOOTTIME_ALARM: i32 = 9;

/// Nanoseconds; 0 where clocks are this kernel's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Booted {
    monotonic: u64,
    boottime: u64,
}

impl Booted {
    /// The restorer is in the time namespace of those it rebuilds.
    pub(crate) fn read() -> Result<Booted, ResurrectError> {
        let failed = || ResurrectError::own("reading timens_offsets");
        let me = Pid(nix::unistd::getpid().as_raw());
        let text = match sys::procdir::read(me, "timens_offsets") {
            // A kernel without time namespaces.
            Err(Errno::ENOENT) => return Ok(Booted::default()),
            read => read.map_err(failed())?,
        };
        parse(&String::from_utf8_lossy(&text)).ok_or_else(|| failed()(Errno::EINVAL))
    }

    /// What a clock showed then; 0 for those that have no offset.
    pub(crate) fn showed(&self, clock: i32) -> u64 {
        match clock {
            CLOCK_MONOTONIC => self.monotonic,
            CLOCK_BOOTTIME | CLOCK_BOOTTIME_ALARM => self.boottime,
            _ => 0,
        }
    }
}

/// `monotonic 10 500000000`, and the same of `boottime`.
fn parse(text: &str) -> Option<Booted> {
    let offset = |name: &str| {
        let mut words = text
            .lines()
            .map(str::split_whitespace)
            .find_map(|mut words| (words.next() == Some(name)).then_some(words))?;
        let seconds: i64 = words.next()?.parse().ok()?;
        let rest: i64 = words.next()?.parse().ok()?;
        // A clock that began later than this kernel showed nothing then.
        Some(u64::try_from(seconds.checked_mul(1_000_000_000)?.checked_add(rest)?).unwrap_or(0))
    };
    Some(Booted {
        monotonic: offset("monotonic")?,
        boottime: offset("boottime")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_a_namespace() {
        let booted = parse("monotonic           10         5\nboottime            -1 999999999\n");
        let booted = booted.unwrap();
        assert_eq!(booted.showed(CLOCK_MONOTONIC), 10_000_000_005);
        assert_eq!(booted.showed(CLOCK_BOOTTIME_ALARM), 0);
        assert_eq!(booted.showed(0), 0);
        assert_eq!(parse("monotonic 1"), None);
    }

    #[test]
    fn this_process_has_some() {
        Booted::read().unwrap();
    }
}
