//! What seccomp filters say of a system call (seccomp(2), kernel/seccomp.c).

use sys::regs::Regs;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ACTION: u32 = 0xffff_0000;
/// Words of memory that a program has (`BPF_MEMWORDS`).
const WORDS: usize = 16;

/// `struct seccomp_data`, as 32-bit words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call([u32; 16]);

impl Call {
    /// The call with this number and the arguments in `regs`, made from the instruction before `rip`.
    pub(crate) fn new(nr: i64, regs: &Regs) -> Call {
        let mut words = [0; 16];
        words[0] = nr as u32;
        words[1] = AUDIT_ARCH_X86_64;
        let args = regs.syscall_args();
        for (place, value) in (1..).zip(core::iter::once(regs.rip).chain(args)) {
            words[2 * place] = value as u32;
            words[2 * place + 1] = (value >> 32) as u32;
        }
        Call(words)
    }

    /// Whether a filter lets it happen. What is not understood does not.
    pub(crate) fn passes(&self, filter: &[[u8; 8]]) -> bool {
        let verdict = self.verdict(filter).map(|verdict| verdict & RET_ACTION);
        matches!(verdict, Some(RET_ALLOW | RET_LOG))
    }

    /// Runs a program of classic BPF, as far as seccomp allows that (`seccomp_check_filter`).
    fn verdict(&self, filter: &[[u8; 8]]) -> Option<u32> {
        let (mut a, mut x, mut mem, mut at) = (0u32, 0u32, [0u32; WORDS], 0);
        loop {
            let [low, high, yes, no, k @ ..] = *filter.get(at)?;
            let (code, k) = (u16::from_le_bytes([low, high]), u32::from_le_bytes(k));
            at += 1;
            // The operand of arithmetic and jumps: `BPF_K` or `BPF_X`.
            let operand = if code & 8 == 0 { k } else { x };
            match code & 7 {
                // LD, LDX
                0 if code == 0x20 && k.is_multiple_of(4) => a = *self.0.get(k as usize / 4)?,
                0 => a = loaded(code, k, &mem)?,
                1 => x = loaded(code, k, &mem)?,
                // ST, STX
                2 => *mem.get_mut(k as usize)? = a,
                3 => *mem.get_mut(k as usize)? = x,
                4 => a = computed(code, a, operand)?,
                5 => {
                    let far = match code & 0xf0 {
                        0x00 => k as usize,
                        test => usize::from(if holds(test, a, operand)? { yes } else { no }),
                    };
                    at += far;
                }
                6 => return Some(if code & 0x18 == 0x10 { a } else { k }),
                // TAX, TXA
                _ if code & 0x80 == 0 => x = a,
                _ => a = x,
            }
        }
    }
}

/// Immediate, from memory, or the length of the data.
fn loaded(code: u16, k: u32, mem: &[u32; WORDS]) -> Option<u32> {
    match code & 0xe0 {
        0x00 => Some(k),
        0x60 => mem.get(k as usize).copied(),
        0x80 => Some(64),
        _ => None,
    }
}

fn computed(code: u16, a: u32, b: u32) -> Option<u32> {
    Some(match code & 0xf0 {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 => a.checked_div(b)?,
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a.wrapping_shl(b),
        0x70 => a.wrapping_shr(b),
        0x80 => a.wrapping_neg(),
        0xa0 => a ^ b,
        _ => return None,
    })
}

fn holds(test: u16, a: u32, b: u32) -> Option<bool> {
    Some(match test {
        0x10 => a == b,
        0x20 => a > b,
        0x30 => a >= b,
        0x40 => a & b != 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(code: u16, yes: u8, no: u8, k: u32) -> [u8; 8] {
        let ([a, b], [c, d, e, f]) = (code.to_le_bytes(), k.to_le_bytes());
        [a, b, yes, no, c, d, e, f]
    }

    #[test]
    fn a_list_of_calls_lets_those_pass() {
        // Load the number; nanosleep passes, others end the process.
        let filter = [
            op(0x20, 0, 0, 0),
            op(0x15, 0, 1, 35),
            op(0x06, 0, 0, RET_ALLOW),
            op(0x06, 0, 0, 0x8000_0000),
        ];
        let call = |nr| Call::new(nr, &Regs::default());
        assert!(call(35).passes(&filter) && !call(219).passes(&filter));
        assert!(!call(35).passes(&filter[..2]));
    }

    #[test]
    fn places_and_arguments_are_seen() {
        let regs = Regs {
            rip: 0x7_0000_1234,
            r9: 0xabcd_0000_0000,
            ..Regs::default()
        };
        let call = Call::new(1, &regs);
        let word = |at| call.verdict(&[op(0x20, 0, 0, at), op(0x16, 0, 0, 0)]);
        assert_eq!((word(8), word(12)), (Some(0x1234), Some(7)));
        assert_eq!((word(60), word(64)), (Some(0xabcd), None));
        // The upper half less 7, through memory and the other register, over a jump.
        let program = [
            op(0x20, 0, 0, 12),
            op(0x14, 0, 0, 3),
            op(0x02, 0, 0, 5),
            op(0x61, 0, 0, 5),
            op(0x05, 0, 0, 1),
            op(0x06, 0, 0, 99),
            op(0x87, 0, 0, 0),
            op(0x24, 0, 0, 10),
            op(0x16, 0, 0, 0),
        ];
        assert_eq!(call.verdict(&program), Some(40));
    }
}
