//! Waiting for children and tracees.
//!
//! nix's `waitpid` fails with EINVAL on stops by real-time signals and has then consumed the
//! status; glibc itself uses those signals (thread cancellation, setuid across threads). So the
//! status is decoded here, with signal numbers as plain integers.

use crate::{Pid, Result, Tid};
use nix::errno::Errno;
use std::time::{Duration, Instant};

/// Why a wait returned (waitpid(2), ptrace(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Exited with this code.
    Exited(i32),
    /// Killed by this signal.
    Killed(i32),
    /// Signal-delivery stop (or a plain stop of an untraced child).
    Signal(i32),
    /// Group stop of a seized tracee (`PTRACE_EVENT_STOP` with a stopping signal).
    GroupStop(i32),
    /// Stop asked for by `PTRACE_INTERRUPT`, or the first stop of an auto-attached child.
    Trap,
    /// Another `PTRACE_EVENT_*`.
    Event(i32),
    /// System call stop (`PTRACE_O_TRACESYSGOOD`).
    Syscall,
    /// Continued by SIGCONT.
    Continued,
}

const EVENT_STOP: i32 = 128;

/// Looks before a wait sleeps. A thread that makes a call or two for us stops again within microseconds, and to
/// wake up on another processor takes longer than that.
const LOOKS: u32 = 100;

impl Status {
    /// Decodes a raw wait status.
    #[must_use]
    pub fn decode(raw: i32) -> Status {
        if libc::WIFEXITED(raw) {
            return Status::Exited(libc::WEXITSTATUS(raw));
        }
        if libc::WIFSIGNALED(raw) {
            return Status::Killed(libc::WTERMSIG(raw));
        }
        if libc::WIFCONTINUED(raw) {
            return Status::Continued;
        }
        let signal = libc::WSTOPSIG(raw);
        match raw >> 16 {
            0 if signal == libc::SIGTRAP | 0x80 => Status::Syscall,
            0 => Status::Signal(signal),
            EVENT_STOP if signal == libc::SIGTRAP => Status::Trap,
            EVENT_STOP => Status::GroupStop(signal),
            event => Status::Event(event),
        }
    }
}

/// Waits for one thread (`__WALL`). Blocks.
///
/// # Errors
/// `ECHILD` when it is neither a child nor a tracee of the calling thread.
pub fn wait_for(tid: Tid) -> Result<Status> {
    if let Some(status) = look(tid)? {
        return Ok(status);
    }
    loop {
        let mut raw = 0;
        // SAFETY: `raw` outlives the call.
        let got = unsafe { libc::waitpid(tid.0, &raw mut raw, libc::__WALL) };
        match got {
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return Err(Errno::last()),
            _ => return Ok(Status::decode(raw)),
        }
    }
}

/// Looks for a moment where the thread may run meanwhile: on another processor.
fn look(tid: Tid) -> Result<Option<Status>> {
    let mut found = poll(tid)?;
    if found.is_some() || !may_run_elsewhere() {
        return Ok(found);
    }
    for _ in 0..LOOKS {
        std::hint::spin_loop();
        found = poll(tid)?;
        if found.is_some() {
            break;
        }
    }
    Ok(found)
}

/// Whether the calling thread may run on several processors.
fn may_run_elsewhere() -> bool {
    // SAFETY: a set of no processors is all zeros.
    let mut set: libc::cpu_set_t = unsafe { core::mem::zeroed() };
    // SAFETY: the call fills at most the set, which outlives it.
    let got = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    // SAFETY: it looks at the set only.
    let count = || unsafe { libc::CPU_COUNT(&set) };
    // Fails where there are more processors than the set has room for.
    got != 0 || count() > 1
}

/// Looks without blocking whether the thread has changed state.
///
/// # Errors
/// As [`wait_for`].
pub fn poll(tid: Tid) -> Result<Option<Status>> {
    poll_any(tid.0).map(|found| found.map(|(_, status)| status))
}

/// Looks without blocking whether any child or tracee of this thread has changed state.
///
/// # Errors
/// `ECHILD` when there is none.
pub fn poll_children() -> Result<Option<(Tid, Status)>> {
    poll_any(-1)
}

fn poll_any(which: i32) -> Result<Option<(Tid, Status)>> {
    let mut raw = 0;
    // SAFETY: `raw` outlives the call.
    let got = unsafe { libc::waitpid(which, &raw mut raw, libc::__WALL | libc::WNOHANG) };
    match got {
        -1 => Err(Errno::last()),
        0 => Ok(None),
        tid => Ok(Some((Tid(tid), Status::decode(raw)))),
    }
}

/// Waits for any child or tracee. Blocks.
///
/// # Errors
/// `ECHILD` when there is none, `EINTR` when a signal came.
pub fn wait_any() -> Result<(Tid, Status)> {
    let mut raw = 0;
    // SAFETY: `raw` outlives the call.
    let got = unsafe { libc::waitpid(-1, &raw mut raw, libc::__WALL) };
    if got == -1 {
        Err(Errno::last())
    } else {
        Ok((Tid(got), Status::decode(raw)))
    }
}

/// Waits for a thread for at most `limit`. `Ok(None)` means that the time is over.
///
/// # Errors
/// As [`wait_for`].
pub fn wait_for_at_most(tid: Tid, limit: Duration) -> Result<Option<Status>> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_micros(20);
    if let Some(status) = look(tid)? {
        return Ok(Some(status));
    }
    loop {
        if let Some(status) = poll(tid)? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(2));
    }
}

/// Looks at how a zombie child or tracee ended without reaping it (waitid(2), `WNOWAIT`).
///
/// # Errors
/// `ECHILD`.
pub fn peek_exit(pid: Pid) -> Result<Option<Status>> {
    // SAFETY: an all-zero siginfo_t is valid; the call fills it.
    let mut info: libc::siginfo_t = unsafe { core::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG | libc::__WALL;
    // SAFETY: `info` outlives the call.
    let r = unsafe { libc::waitid(libc::P_PID, pid.0.cast_unsigned(), &raw mut info, flags) };
    if r == -1 {
        return Err(Errno::last());
    }
    // SAFETY: si_pid and si_status are the fields waitid fills.
    let (who, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok(match info.si_code {
        _ if who == 0 => None,
        libc::CLD_EXITED => Some(Status::Exited(status)),
        _ => Some(Status::Killed(status)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_each_kind() {
        assert_eq!(Status::decode(7 << 8), Status::Exited(7));
        assert_eq!(Status::decode(9), Status::Killed(9));
        assert_eq!(Status::decode(0x7f | 34 << 8), Status::Signal(34));
        assert_eq!(Status::decode(0x7f | 5 << 8 | 128 << 16), Status::Trap);
        assert_eq!(
            Status::decode(0x7f | 19 << 8 | 128 << 16),
            Status::GroupStop(19)
        );
        assert_eq!(Status::decode(0x7f | 5 << 8 | 3 << 16), Status::Event(3));
        assert_eq!(Status::decode(0x7f | 0x85 << 8), Status::Syscall);
    }
}
