//! The frame from which `rt_sigreturn(2)` makes a thread go on as it was.
//!
//! The calls that are made in a thread before there is room of ours in its process are made with such
//! a frame ready: behind them it comes to an `rt_sigreturn` on it by itself when nobody traces it any
//! more. So a tracer may die at any moment.

use crate::regs::{Regs, restart};
use crate::xstate::{HEADER_END, SW_BYTES, XSTATE_BV, standard_size};

/// Bytes of `struct rt_sigframe` (arch/x86/include/asm/sigframe.h).
const FRAME: usize = 440;
/// From the frame to its extended state, which the kernel wants on a multiple of 64.
const XSTATE_AT: usize = 448;
/// `FP_XSTATE_MAGIC1`, `FP_XSTATE_MAGIC2` (arch/x86/include/uapi/asm/sigcontext.h).
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`.
const UC_FLAGS: u64 = 7;
/// Not a mode of sigaltstack(2): the kernel leaves the signal stack as it is then.
const NO_ALTSTACK: u32 = 4;
/// AMX tile configuration and data: not in a frame of a thread that does not use them.
const AMX: u64 = 3 << 17;

const POLL: u64 = 7;
const NANOSLEEP: u64 = 35;
const FUTEX: u64 = 202;
const CLOCK_NANOSLEEP: u64 = 230;
const FUTEX_CMD_MASK: u64 = 0x7f;
const SYSCALL_INSTRUCTION: u64 = 2;

/// Everything a thread goes on with.
pub(crate) struct Context<'a> {
    pub(crate) regs: &'a Regs,
    pub(crate) sigmask: u64,
    pub(crate) xstate: &'a [u8],
    /// What remains of the sleep it was interrupted in.
    pub(crate) remaining: Option<Remaining>,
}

/// A sleep that was interrupted and of which only the kernel knew how long it was to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// The call: the kernel shows `restart_syscall(2)` after a second interruption.
    pub nr: i64,
    /// Nanoseconds.
    pub ns: u64,
}

/// A frame for one address.
pub(crate) struct SigFrame {
    /// Where `bytes` belong.
    pub(crate) base: u64,
    pub(crate) bytes: Vec<u8>,
    /// Address of the frame itself, in `bytes`: `rsp` is to be 8 more than this at the call.
    pub(crate) frame: u64,
}

/// Room before the frame: a time-out, and what a return path pops.
const LEAD: usize = 256;

impl SigFrame {
    /// A frame that ends at or before `top`. Its first word is the address it is returned to from,
    /// `restorer`.
    pub(crate) fn below(top: u64, restorer: u64, context: &Context<'_>) -> SigFrame {
        let state = signal_xstate(context.xstate);
        let xstate_va = (top - state.len() as u64) & !63;
        let frame = xstate_va - XSTATE_AT as u64;
        let base = frame - LEAD as u64;
        let (regs, timeout) = gone_on(context.regs, context.remaining, base);
        let mut bytes = vec![0; LEAD + XSTATE_AT];
        bytes[..8].copy_from_slice(&(timeout / 1_000_000_000).to_le_bytes());
        bytes[8..16].copy_from_slice(&(timeout % 1_000_000_000).to_le_bytes());
        let body = &mut bytes[LEAD..LEAD + FRAME];
        let mut put =
            |at: usize, value: u64| body[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(0, restorer);
        put(8, UC_FLAGS);
        put(32, u64::from(NO_ALTSTACK));
        let general = [
            regs.r8,
            regs.r9,
            regs.r10,
            regs.r11,
            regs.r12,
            regs.r13,
            regs.r14,
            regs.r15,
            regs.rdi,
            regs.rsi,
            regs.rbp,
            regs.rbx,
            regs.rdx,
            regs.rax,
            regs.rcx,
            regs.rsp,
            regs.rip,
            regs.eflags,
        ];
        for (i, value) in general.into_iter().enumerate() {
            put(48 + i * 8, value);
        }
        put(192, regs.cs & 0xffff | (regs.ss & 0xffff) << 48);
        put(232, if state.is_empty() { 0 } else { xstate_va });
        put(304, context.sigmask);
        bytes.extend_from_slice(&state);
        SigFrame { base, bytes, frame }
    }
}

/// Registers for user mode, in which the kernel's codes for "make the call again" mean nothing: the
/// thread stands before the call once more, with `timeout_va` (which holds the returned number of
/// nanoseconds) as its time-out where the call would start from the beginning.
fn gone_on(regs: &Regs, remaining: Option<Remaining>, timeout_va: u64) -> (Regs, u64) {
    let Some((nr, result)) = regs.interrupted_syscall() else {
        return (*regs, 0);
    };
    let again = Regs {
        rax: nr.cast_unsigned(),
        rip: regs.rip.wrapping_sub(SYSCALL_INSTRUCTION),
        ..*regs
    };
    match -result {
        restart::ERESTARTSYS | restart::ERESTARTNOINTR | restart::ERESTARTNOHAND => (again, 0),
        restart::ERESTART_RESTARTBLOCK => {
            let Some(left) = remaining else {
                return (again, 0);
            };
            let (nr, left) = (left.nr.cast_unsigned(), left.ns);
            let mut again = Regs { rax: nr, ..again };
            match nr {
                NANOSLEEP => again.rdi = timeout_va,
                CLOCK_NANOSLEEP => {
                    again.rsi = 0;
                    again.rdx = timeout_va;
                }
                POLL if again.rdx as i32 >= 0 => again.rdx = left.div_ceil(1_000_000),
                FUTEX if again.rsi & FUTEX_CMD_MASK == 0 => again.r10 = timeout_va,
                _ => {}
            }
            (again, left)
        }
        _ => (*regs, 0),
    }
}

/// The state as a signal frame holds it: without AMX where that is not used, with the kernel's marks.
fn signal_xstate(state: &[u8]) -> Vec<u8> {
    let word = |at: usize| {
        state
            .get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    };
    if state.len() < HEADER_END {
        return Vec::new();
    }
    let mut features = word(SW_BYTES);
    if word(XSTATE_BV) & AMX == 0 {
        features &= !AMX;
    }
    let size = standard_size(features).min(state.len());
    let mut out = state[..size].to_vec();
    out[SW_BYTES..XSTATE_BV].fill(0);
    let (size32, extended) = (size as u32, size as u32 + 4);
    out[SW_BYTES..SW_BYTES + 4].copy_from_slice(&MAGIC1.to_le_bytes());
    out[SW_BYTES + 4..SW_BYTES + 8].copy_from_slice(&extended.to_le_bytes());
    out[SW_BYTES + 8..SW_BYTES + 16].copy_from_slice(&features.to_le_bytes());
    out[SW_BYTES + 16..SW_BYTES + 20].copy_from_slice(&size32.to_le_bytes());
    out.extend_from_slice(&MAGIC2.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeping(nr: u64, code: i64) -> Regs {
        Regs {
            orig_rax: nr,
            rax: (-code).cast_unsigned(),
            rip: 0x1002,
            rdi: 1,
            rsi: 1,
            rdx: 5000,
            r10: 4,
            ..Regs::default()
        }
    }

    #[test]
    fn a_call_that_starts_again_stands_before_its_instruction() {
        let regs = sleeping(0, restart::ERESTARTSYS);
        let (again, _) = gone_on(&regs, None, 0);
        assert_eq!((again.rip, again.rax, again.rdi), (0x1000, 0, 1));
        let user = Regs {
            orig_rax: u64::MAX,
            ..regs
        };
        assert_eq!(gone_on(&user, None, 0), (user, 0));
        let done = sleeping(0, -7);
        assert_eq!(gone_on(&done, None, 0).0, done);
    }

    #[test]
    fn what_remains_of_a_sleep_replaces_its_timeout() {
        let block = restart::ERESTART_RESTARTBLOCK;
        let left = |nr| {
            Some(Remaining {
                nr,
                ns: 1_500_000_001,
            })
        };
        let sleep = gone_on(&sleeping(219, block), left(35), 0x9000);
        assert_eq!((sleep.0.rdi, sleep.0.rax), (0x9000, 35));
        assert_eq!(sleep.1, 1_500_000_001);
        let poll = gone_on(&sleeping(7, block), left(7), 0x9000).0;
        assert_eq!((poll.rdx, poll.rax), (1501, 7));
        let clock = gone_on(&sleeping(230, block), left(230), 0x9000).0;
        assert_eq!((clock.rsi, clock.rdx), (0, 0x9000));
        let mut futex = sleeping(202, block);
        futex.rsi = 128;
        assert_eq!(gone_on(&futex, left(202), 0x9000).0.r10, 0x9000);
        futex.rsi = 128 | 9;
        assert_eq!(gone_on(&futex, left(202), 0x9000).0.r10, 4, "absolute");
    }

    #[test]
    fn frames_are_aligned_and_end_below_the_top() {
        let mut xstate = vec![0; 2440];
        xstate[SW_BYTES] = 7;
        let context = Context {
            regs: &Regs::default(),
            sigmask: 5,
            xstate: &xstate,
            remaining: None,
        };
        for top in [0x10_000_u64, 0x10_001, 0x10_03f] {
            let frame = SigFrame::below(top, 0xabc, &context);
            assert!(frame.base + frame.bytes.len() as u64 <= top + 4);
            assert_eq!((frame.frame + XSTATE_AT as u64) % 64, 0);
            assert_eq!(frame.bytes[LEAD..LEAD + 2], [0xbc, 0x0a]);
            assert_eq!(frame.bytes[LEAD + 304], 5);
        }
    }
}
