//! Since when threads sleep: what remains of their time-outs is only known to the kernel.

use crate::proc;
use sys::{Pid, Tid};

const POLL: &str = "7";
const NANOSLEEP: &str = "35";
const FUTEX: &str = "202";
const RESTART_SYSCALL: &str = "219";
const CLOCK_NANOSLEEP: &str = "230";

/// The scheduler's clock now: our own last start on the CPU, made recent by yielding.
pub(super) fn scheduler_now() -> u64 {
    std::thread::yield_now();
    exec_start("/proc/thread-self/sched").unwrap_or(0)
}

/// When a thread went to sleep in a call whose time-out is relative. To be asked before it is
/// stopped, which wakes it.
pub(super) fn asleep_since(pid: Pid, tid: Tid) -> Option<u64> {
    let call = proc::read_text(pid, &format!("task/{tid}/syscall")).ok()?;
    has_relative_timeout(&call)
        .then(|| exec_start(&format!("/proc/{pid}/task/{tid}/sched")))
        .flatten()
}

/// `/proc/PID/syscall` (proc(5)): the number, six arguments, stack and instruction pointer;
/// `running` for a thread that runs.
fn has_relative_timeout(call: &str) -> bool {
    let mut words = call.split_ascii_whitespace();
    match words.next() {
        Some(POLL | NANOSLEEP | CLOCK_NANOSLEEP | RESTART_SYSCALL) => true,
        // The fourth argument is the time-out.
        Some(FUTEX) => words.nth(3).is_some_and(|timeout| timeout != "0x0"),
        _ => false,
    }
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
        assert!(has_relative_timeout(
            "35 0x7ffd 0x0 0x0 0x0 0x0 0x0 0x7ffc 0x7f11\n"
        ));
        assert!(has_relative_timeout(
            "202 0x7ffd 0x80 0x0 0x7ff0 0x0 0x0 0x7ffc 0x7f11\n"
        ));
        assert!(!has_relative_timeout(
            "202 0x7ffd 0x80 0x0 0x0 0x0 0x0 0x7ffc 0x7f11\n"
        ));
        assert!(!has_relative_timeout("running\n"));
        assert!(!has_relative_timeout(
            "0 0x3 0x0 0x0 0x0 0x0 0x0 0x7ffc 0x7f11\n"
        ));
    }
}
