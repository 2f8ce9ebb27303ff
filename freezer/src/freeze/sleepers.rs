//! Since when threads sleep: what remains of their time-outs is only known to the kernel.

use super::calls;
use crate::proc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::ClockId;
use std::collections::BTreeMap;
use std::path::Path;
use sys::{Pid, Tid};

const POLL: i64 = 7;
const NANOSLEEP: i64 = 35;
const FUTEX: i64 = 202;
const RESTART_SYSCALL: i64 = 219;
const CLOCK_NANOSLEEP: i64 = 230;

/// Tries to read a scheduler's clock without being put off the CPU meanwhile.
const TRIES: usize = 5;
const SOON_NS: u64 = 20_000;

/// The schedulers' clocks, one for each CPU: they leave out what interrupts and the hypervisor took,
/// so they differ.
#[derive(Debug)]
pub(super) struct SchedulerClocks {
    /// CPU, and its clock minus CLOCK_MONOTONIC.
    offsets: BTreeMap<i64, i64>,
}

impl SchedulerClocks {
    /// Compares them with CLOCK_MONOTONIC by going to each CPU.
    pub(super) fn measure() -> SchedulerClocks {
        let this = nix::unistd::Pid::from_raw(0);
        let mut offsets = BTreeMap::new();
        let Ok(before) = sched_getaffinity(this) else {
            return SchedulerClocks { offsets };
        };
        for (cpu, number) in (0..CpuSet::count()).zip(0..) {
            let mut one = CpuSet::new();
            if one.set(cpu).is_err() || sched_setaffinity(this, &one).is_err() {
                // Not there; numbers without a CPU are at the end, but for those taken offline.
                if !Path::new(&format!("/sys/devices/system/cpu/cpu{cpu}")).exists() {
                    break;
                }
                continue;
            }
            if let Some(offset) = offset_here() {
                offsets.insert(number, offset);
            }
        }
        // Fails only when those CPUs have gone meanwhile.
        let _ = sched_setaffinity(this, &before);
        SchedulerClocks { offsets }
    }

    /// CLOCK_MONOTONIC when a thread last went to sleep.
    fn asleep_since(&self, pid: Pid, tid: Tid) -> Option<u64> {
        const PROCESSOR: usize = 39;
        let start = exec_start(&format!("/proc/{pid}/task/{tid}/sched"))?;
        let stat = proc::Stat::read(pid, &format!("task/{tid}/stat")).ok()?;
        let offset = self.offsets.get(&stat.field(PROCESSOR))?;
        u64::try_from(start.cast_signed() - offset).ok()
    }
}

/// This CPU's scheduler clock minus CLOCK_MONOTONIC: at most what it is, so that nobody seems to have
/// slept longer than it did.
fn offset_here() -> Option<i64> {
    let mut best = None;
    for _ in 0..TRIES {
        let before = monotonic_ns();
        // Makes our own last start on the CPU recent. Somebody else may run in between.
        std::thread::yield_now();
        let after = monotonic_ns();
        let start = exec_start("/proc/thread-self/sched")?;
        let offset = start.cast_signed() - after.cast_signed();
        best = best.max(Some(offset));
        if after - before < SOON_NS {
            break;
        }
    }
    best
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    // The clock is always there.
    sys::clock::read_ns(ClockId::CLOCK_MONOTONIC).map_or(0, i64::cast_unsigned)
}

/// How a thread sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sleeper {
    /// In which call.
    pub(super) nr: i64,
    /// CLOCK_MONOTONIC when it went to sleep, where it has a relative time-out and the kernel tells.
    pub(super) since_ns: Option<u64>,
}

/// Looks at a thread that sleeps in a call. To be asked before it is stopped, which wakes it.
pub(super) fn look(clocks: &SchedulerClocks, pid: Pid, tid: Tid) -> Option<Sleeper> {
    let text = proc::read_text(pid, &format!("task/{tid}/syscall")).ok()?;
    let (nr, timeout) = parse(&text)?;
    let since_ns = timeout.then(|| clocks.asleep_since(pid, tid)).flatten();
    Some(Sleeper { nr, since_ns })
}

/// `/proc/PID/syscall` (proc(5)): the number, six arguments, stack and instruction pointer; `running`
/// for a thread that runs. Returns the number and whether there is a relative time-out.
fn parse(text: &str) -> Option<(i64, bool)> {
    let mut words = text.split_ascii_whitespace();
    let nr = words.next()?.parse().ok()?;
    let timeout = match nr {
        POLL | NANOSLEEP | CLOCK_NANOSLEEP | RESTART_SYSCALL => true,
        // The fourth argument is the time-out.
        FUTEX => words.nth(3).is_some_and(|timeout| timeout != "0x0"),
        other => calls::has_timeout(other),
    };
    Some((nr, timeout))
}

/// `se.exec_start` in nanoseconds (kernel/sched/debug.c prints milliseconds with six decimals).
fn exec_start(path: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("se.exec_start"))?;
    let (whole, fraction) = line.rsplit(':').next()?.trim().split_once('.')?;
    let (whole, fraction): (u64, u64) = (whole.parse().ok()?, fraction.parse().ok()?);
    Some(whole * 1_000_000 + fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_with_a_relative_timeout_are_looked_at() {
        let parse = |text: &str| parse(&format!("{text} 0x0 0x0 0x7ffc 0x7f11\n"));
        assert_eq!(parse("35 0x7ffd 0x0 0x0 0x0"), Some((35, true)));
        assert_eq!(parse("202 0x7ffd 0x80 0x0 0x7ff0"), Some((202, true)));
        assert_eq!(parse("202 0x7ffd 0x80 0x0 0x0"), Some((202, false)));
        assert_eq!(parse("0 0x3 0x0 0x0 0x0"), Some((0, false)));
        assert_eq!(parse("running"), None);
    }
}
