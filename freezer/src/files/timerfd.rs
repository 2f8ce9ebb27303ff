//! timerfd_create(2).

use super::Open;
use crate::FreezerError;
use crate::proc::FdInfo;
use nix::time::ClockId;
use persist_mem::manifest::DescriptionKind;

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    // An expired periodic timer stands still until it is asked.
    sys::fds::timerfd_gettime(open.copy).map_err(open.call("asking for its time"))?;
    let (read_at, info) = read(open)?;
    let number = |key, base| info.number(key, base).ok_or_else(|| open.format());
    let time = |key| {
        info.value(key)
            .and_then(nanoseconds)
            .ok_or_else(|| open.format())
    };
    Ok(DescriptionKind::TimerFd {
        clock: number("clockid", 10)? as i32,
        settime_flags: number("settime flags", 8)? as u32,
        ticks: number("ticks", 10)?,
        value: time("it_value")?,
        interval: time("it_interval")?,
        read_at,
    })
}

/// What /proc tells of it, and CLOCK_MONOTONIC at that moment, as exactly as a busy machine allows.
fn read(open: &Open<'_>) -> Result<(i64, FdInfo), FreezerError> {
    const TRIES: u32 = 5;
    const EXACT: i64 = 500_000;
    let now = || {
        let clock = sys::clock::read_ns(ClockId::CLOCK_MONOTONIC);
        clock.map_err(open.call("reading the clock"))
    };
    let mut tries = 1;
    loop {
        let before = now()?;
        let info = FdInfo::read(open.pid, open.fd)?;
        if now()? - before < EXACT || tries == TRIES {
            return Ok((before, info));
        }
        tries += 1;
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
