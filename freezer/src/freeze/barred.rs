//! Sleeps with which a thread's seccomp filters do not let it go on.
//!
//! The kernel goes on with an interrupted sleep through `restart_syscall(2)`, and filters see that. A program that lists
//! the calls which it needs may have left it out, and would be ended by a stop, or see its sleep fail. Such a
//! sleep is made again under its own number, with what remains.

use super::FrozenThread;
use super::calls::TimeOut;
use crate::capture::{self, Left};
use crate::seccomp_filter::Call;
use sys::regs::{Regs, restart};
use sys::{Errno, Pid, Tid, ptrace};

const POLL: i64 = 7;
const NANOSLEEP: i64 = 35;
const FUTEX: i64 = 202;
const RESTART_SYSCALL: i64 = 219;
const CLOCK_NANOSLEEP: i64 = 230;
const FUTEX_CMD_MASK: u64 = 0x7f;

/// A sleep that is made again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Barred {
    pub(super) timeout: TimeOut,
    /// Nanoseconds that remain, where it has a time-out that is relative.
    pub(super) left: Option<u64>,
}

/// The sleep of a stopped thread that may not be gone on with.
pub(super) fn of((pid, tid): (Pid, Tid), regs: &Regs, thread: FrozenThread) -> Option<Barred> {
    let (nr, result) = regs.interrupted_syscall()?;
    if result != -restart::ERESTART_RESTARTBLOCK || thread.group_stop.is_some() {
        return None;
    }
    let timeout = match nr {
        NANOSLEEP => TimeOut::Rdi,
        CLOCK_NANOSLEEP => TimeOut::Rdx,
        POLL => TimeOut::MillisecondsRdx,
        FUTEX if regs.rsi & FUTEX_CMD_MASK == 0 => TimeOut::R10,
        // Until a moment that is given.
        FUTEX => TimeOut::None,
        _ => return None,
    };
    if pass(tid, RESTART_SYSCALL, regs) || !pass(tid, nr, regs) {
        return None;
    }
    let left = match timeout {
        TimeOut::None => None,
        _ => match capture::left_of_sleep((pid, tid), nr, regs)? {
            Left::Time(left) => Some(left),
            Left::Forever => None,
            // What a clock of processor time counts is no matter of how long nobody runs.
            Left::Processor(_) => return None,
        },
    };
    Some(Barred { timeout, left })
}

/// Whether the filters of a stopped thread let it make a call with these registers.
pub(super) fn pass(tid: Tid, nr: i64, regs: &Regs) -> bool {
    let call = Call::new(nr, regs);
    let mut filters = (0..).map(|index| ptrace::seccomp_filter(tid, index));
    let found = filters.find_map(|filter| match filter {
        Ok(Some(code)) => (!call.passes(&code)).then_some(false),
        // EINVAL: it has none at all.
        Ok(None) | Err(Errno::EINVAL) => Some(true),
        Err(why) => {
            log::debug!("thread {tid}: its filters cannot be read: {why}");
            Some(true)
        }
    });
    found.unwrap_or(true)
}
