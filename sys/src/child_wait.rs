//! How a thread waits until a child that was made with its memory does not use that any more, as vfork(2) does, and
//! nobody has it wait.
//!
//! The kernel clears a word of the child's and wakes who waits at it when the child ends or executes a program
//! (set_tid_address(2)), in the same moment in which it tells a parent in vfork(2). So the thread waits at that word,
//! with all signals blocked, by a few instructions ([`remainder::child_wait`]), and goes on by `rt_sigreturn(2)`
//! from a frame that lies behind it: what is on the thread's own stack may be the child's.

use crate::PAGE_SIZE_U64;
use crate::regs::{NO_SYSCALL, Regs};
use crate::remainder;
use crate::sigframe::{Context, SigFrame};

const FUTEX: u64 = 202;
/// What the word is while the child has the memory.
const SET: u32 = 1;
/// A frame, without extended state, and what else lies about it.
const BESIDE: usize = 2048;

/// Calls that it makes: futex(2) and `rt_sigreturn(2)`.
pub const CALLS: [u32; 2] = [202, 15];
/// Signals that are blocked in it.
pub const BLOCKED: u64 = u64::MAX;

/// Bytes of room for a thread with so much extended state, whole pages.
#[must_use]
pub fn room(xstate: usize) -> u64 {
    ((xstate + BESIDE) as u64).next_multiple_of(PAGE_SIZE_U64) + PAGE_SIZE_U64
}

/// A wait that is ready to begin.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The registers that it begins with.
    pub regs: Regs,
    /// What belongs into memory, with addresses.
    pub memory: Vec<(u64, Vec<u8>)>,
}

/// A wait in the room at `at` of `len` bytes, where [`remainder::code`] is at `code`. The thread goes on with `regs`,
/// a mask of signals and extended state, as a tracer reads it. None where that has no room.
#[must_use]
pub fn prepare(
    (at, len): (u64, u64),
    code: u64,
    (regs, sigmask, xstate): (&Regs, u64, &[u8]),
) -> Option<Ready> {
    let context = Context {
        regs,
        sigmask,
        xstate,
        remaining: None,
    };
    // Behind the extended state there is one more word.
    if (xstate.len() + BESIDE) as u64 > len {
        return None;
    }
    let frame = SigFrame::below(at + len - 8, 0, &context);
    let regs = Regs {
        rip: code + remainder::child_wait(),
        rsp: frame.frame + 8,
        rax: FUTEX,
        orig_rax: NO_SYSCALL,
        rdi: at,
        // FUTEX_WAIT, of whoever has the memory.
        rsi: 0,
        rdx: SET.into(),
        r10: 0,
        ..regs.without_steps()
    };
    let memory = vec![(at, SET.to_le_bytes().to_vec()), (frame.base, frame.bytes)];
    Some(Ready { regs, memory })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_and_frame_lie_apart_in_the_room() {
        let xstate = vec![0; 2700];
        let len = room(xstate.len());
        let regs = Regs::default();
        let ready = prepare((0x1000, len), 0x9000, (&regs, 5, &xstate)).unwrap();
        let [(word, _), (frame, bytes)] = &ready.memory[..] else {
            panic!("{ready:?}");
        };
        assert_eq!(*word, 0x1000);
        assert!(*frame >= 0x1000 + 64 && frame + bytes.len() as u64 <= 0x1000 + len);
        assert!(prepare((0x1000, PAGE_SIZE_U64), 0, (&regs, 5, &xstate)).is_none());
    }
}
