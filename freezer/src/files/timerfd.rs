//! timerfd_create(2).

use super::Open;
use crate::FreezerError;
use crate::proc::FdInfo;
use nix::time::ClockId;
use persist_mem::manifest::DescriptionKind;

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let clock = sys::clock::read_ns(ClockId::CLOCK_MONOTONIC);
    let read_at = clock.map_err(open.call("reading the clock"))?;
    // An expired periodic timer stands still until it is asked.
    sys::fds::timerfd_gettime(open.copy).map_err(open.call("asking for its time"))?;
    let info = FdInfo::read(open.pid, open.fd)?;
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
