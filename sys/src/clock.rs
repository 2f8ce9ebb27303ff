//! Clocks, and the one clock that runs on across a kexec: the time stamp counter.

use crate::Result;
use nix::time::{ClockId, clock_gettime};

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
