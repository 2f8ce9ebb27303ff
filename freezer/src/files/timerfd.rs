//! timerfd_create(2).

use super::Open;
use crate::FreezerError;
use crate::proc::FdInfo;
use nix::time::ClockId;
use persist_mem::manifest::DescriptionKind;

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let read = Read::now(open)?;
    let number = |key, base| read.info.number(key, base).ok_or_else(|| open.format());
    let ticks = number("ticks", 10)?;
    let expired = read.has_expired_since(open)?;
    let (value, ticks) = match (expired, read.interval) {
        (true, 0) => (0, ticks),
        // It stands still since, so that this was once; it is counted when the rest has passed.
        (true, _) => (read.value, ticks.saturating_sub(1)),
        // It was due, and has expired since: what is not armed has no ticks.
        (false, 1..) if read.value == 0 && ticks > 0 => (1, ticks - 1),
        (false, _) => (read.value, ticks),
    };
    Ok(DescriptionKind::TimerFd {
        clock: number("clockid", 10)? as i32,
        settime_flags: number("settime flags", 8)? as u32,
        ticks,
        value,
        interval: read.interval,
        read_at: read.at,
    })
}

/// What is told of a timer.
struct Read {
    /// CLOCK_MONOTONIC at that moment, as exactly as a busy machine allows.
    at: i64,
    value: u64,
    interval: u64,
    /// What `/proc` tells, just after.
    info: FdInfo,
}

impl Read {
    fn now(open: &Open<'_>) -> Result<Read, FreezerError> {
        const TRIES: u32 = 20;
        const EXACT: i64 = 500_000;
        let now = || {
            let clock = sys::clock::read_ns(ClockId::CLOCK_MONOTONIC);
            clock.map_err(open.call("reading the clock"))
        };
        let mut tries = 1;
        loop {
            let at = now()?;
            // An expired periodic timer stands still until it is asked.
            let told = sys::fds::timerfd_gettime(open.copy);
            let (value, interval) = told.map_err(open.call("asking for its time"))?;
            let exact = now()? - at < EXACT;
            let info = FdInfo::read(open.pid, open.fd)?;
            let read = Read {
                at,
                value,
                interval,
                info,
            };
            // Due, or expired meanwhile; one that is not armed stays so.
            let between = interval > 0 && (value == 0 || read.has_expired_since(open)?);
            if exact && !between || tries == TRIES {
                return Ok(read);
            }
            tries += 1;
        }
    }

    /// Whether it has expired between being asked and being shown: nothing remains then.
    fn has_expired_since(&self, open: &Open<'_>) -> Result<bool, FreezerError> {
        let shown = self.info.value("it_value").and_then(nanoseconds);
        Ok(shown.ok_or_else(|| open.format())? == 0 && self.value > 0)
    }
}

/// `(seconds, nanoseconds)`.
fn nanoseconds(text: &str) -> Option<u64> {
    let (seconds, rest) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    let (seconds, rest): (u64, u64) = (seconds.trim().parse().ok()?, rest.trim().parse().ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(rest)
}

#[cfg(test)]
mod tests {
    #[test]
    fn times() {
        assert_eq!(super::nanoseconds("(1, 500)"), Some(1_000_000_500));
        assert_eq!(super::nanoseconds("1, 500"), None);
    }
}
