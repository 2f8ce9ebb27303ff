//! Waits at a futex to which their threads were moved (`FUTEX_CMP_REQUEUE`, `FUTEX_CMP_REQUEUE_PI`, futex_requeue(2)).
//!
//! Their calls name the first futex, at which the kernel would have them wait again; there the value has changed,
//! so they would return. Instead each makes a call that waits at the second one, and returns as the first would.

use super::FrozenThread;
use super::rest::{self, Pointer, Rest};
use crate::proc;
use sys::regs::{Regs, restart};
use sys::{Pid, Tid};

const FUTEX: i64 = 202;
const FUTEX_WAIT_CALL: i64 = 455;
const COMMAND: u64 = 0x7f;
const FUTEX_WAIT: u64 = 0;
const FUTEX_WAIT_BITSET: u64 = 9;
const FUTEX_WAIT_REQUEUE_PI: u64 = 11;
const FUTEX_LOCK_PI2: u64 = 13;
const ANY_BIT: u64 = 0xffff_ffff;
const EAGAIN: i64 = 11;

/// The registers with which a thread goes on waiting where it was moved to, and the code by which the kernel
/// restarts that. None for threads that were not moved.
pub(super) fn of((pid, tid): (Pid, Tid), regs: &Regs, thread: FrozenThread) -> Option<(Regs, i64)> {
    let to = thread.moved_to?;
    let (nr, result) = regs.interrupted_syscall()?;
    if regs.rdi == to {
        // It waits where its call says.
        return None;
    }
    let command = regs.rsi & COMMAND;
    // What an interruption makes of the call (kernel/futex/waitwake.c, requeue.c).
    let interrupted = match (nr, command) {
        (FUTEX, FUTEX_WAIT_REQUEUE_PI) => result == -EAGAIN,
        (FUTEX, FUTEX_WAIT | FUTEX_WAIT_BITSET) | (FUTEX_WAIT_CALL, _) => {
            result == -restart::ERESTARTSYS || result == -restart::ERESTART_RESTARTBLOCK
        }
        _ => false,
    };
    if !interrupted {
        return None;
    }
    let mem = proc::memory(pid).ok()?;
    let value = mem.read_vec(to, 4).ok()?;
    let value = value
        .first_chunk::<4>()
        .map(|value| u32::from_le_bytes(*value))?;
    let mut again = Rest::new(0, Regs { rdi: to, ..*regs });
    let mut code = match result == -restart::ERESTARTSYS {
        true => restart::ERESTARTSYS,
        false => restart::ERESTARTNOHAND,
    };
    match (nr, command) {
        (FUTEX, FUTEX_WAIT_REQUEUE_PI) => {
            again.regs.rsi = regs.rsi & !COMMAND | FUTEX_LOCK_PI2;
            code = restart::ERESTARTNOINTR;
        }
        (FUTEX, FUTEX_WAIT) => {
            again.regs.rsi = regs.rsi & !COMMAND | FUTEX_WAIT_BITSET;
            again.regs.rdx = value.into();
            again.regs.r9 = ANY_BIT;
            if regs.r10 != 0 {
                // This one's time-out is when it ends.
                let end = thread.ends_ns?;
                let words = [end / 1_000_000_000, end % 1_000_000_000];
                again.beside = words.map(u64::to_le_bytes).concat();
                again.pointers = vec![(Pointer::R10, 0)];
            }
        }
        (FUTEX, _) => again.regs.rdx = value.into(),
        _ => again.regs.rsi = value.into(),
    }
    rest::prepared((pid, tid), regs, &again).map(|regs| (regs, code))
}
