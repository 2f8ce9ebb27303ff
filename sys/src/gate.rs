//! Instructions of a process through which system calls are made in it before it has room of ours.
//!
//! A gate is a `syscall` instruction behind which the code soon returns. With the return address
//! on the stack pointing to a `rt_sigreturn` call (a program's signal restorer), a thread sent
//! through the gate comes back to where it was, by itself.

/// Where the return address lies when the code behind a gate returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnSlot {
    /// So many bytes above the stack pointer.
    Stack(i64),
    /// So many bytes above the frame pointer.
    Frame(i64),
}

/// A `syscall` instruction and the way back from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Address of the `syscall` instruction.
    pub call: u64,
    /// Where the return address must be.
    pub slot: ReturnSlot,
}

/// Finds the gates in code that starts at address `base`.
pub fn gates(code: &[u8], base: u64) -> impl Iterator<Item = Gate> {
    positions(code, &SYSCALL).filter_map(move |at| {
        Some(Gate {
            call: base + at as u64,
            slot: way_back(&code[at + SYSCALL.len()..])?,
        })
    })
}

/// Finds a restorer: code that does nothing but call `rt_sigreturn(2)`.
#[must_use]
pub fn restorer(code: &[u8], base: u64) -> Option<u64> {
    // mov eax, 15 or mov rax, 15; syscall
    let long: &[u8] = &[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
    let short: &[u8] = &[0xb8, 15, 0, 0, 0, 0x0f, 0x05];
    [long, short]
        .iter()
        .find_map(|pattern| positions(code, pattern).next())
        .map(|at| base + at as u64)
}

const SYSCALL: [u8; 2] = [0x0f, 0x05];

fn positions<'a>(code: &'a [u8], pattern: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    memchr::memmem::find_iter(code, pattern)
}

/// Follows the code behind a system call that succeeds to its `ret`. Only instructions that change
/// registers alone are followed.
fn way_back(code: &[u8]) -> Option<ReturnSlot> {
    let mut rest = code;
    let mut slot = ReturnSlot::Stack(0);
    for _ in 0..24 {
        let length = match *rest {
            [0xc3, ..] => return Some(slot),
            // pop rbp changes what a later `leave` uses: only as the last thing before ret.
            [0x5d, 0xc3, ..] => return Some(moved(slot, 8)),
            [0x58..=0x5b | 0x5e | 0x5f, ..] => {
                slot = moved(slot, 8);
                1
            }
            [0x41, 0x58..=0x5f, ..] => {
                slot = moved(slot, 8);
                2
            }
            // leave: the frame pointer is behind the saved one.
            [0xc9, 0xc3, ..] => return Some(ReturnSlot::Frame(8)),
            // lea rsp, [rbp + disp8]
            [0x48, 0x8d, 0x65, disp, ..] => {
                slot = ReturnSlot::Frame(i64::from(disp.cast_signed()));
                4
            }
            // add rsp, imm8
            [0x48, 0x83, 0xc4, imm, ..] => {
                slot = moved(slot, i64::from(imm.cast_signed()));
                4
            }
            // cmp rax, -4095; jae or ja (not taken by a call that succeeds)
            [0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0x73 | 0x77, _, ..] => 8,
            // xor of 32-bit registers with each other
            [0x31, 0xc0..=0xff, ..] => 2,
            [0x45, 0x31, 0xc0..=0xff, ..] => 3,
            [0x90, ..] => 1,
            _ => return None,
        };
        rest = &rest[length..];
    }
    None
}

fn moved(slot: ReturnSlot, by: i64) -> ReturnSlot {
    match slot {
        ReturnSlot::Stack(at) => ReturnSlot::Stack(at + by),
        ReturnSlot::Frame(at) => ReturnSlot::Frame(at + by),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(code: &[u8]) -> Option<ReturnSlot> {
        gates(code, 0x100).next().map(|gate| gate.slot)
    }

    #[test]
    fn ways_back_of_common_libraries() {
        // syscall; ret
        assert_eq!(first(&[0x90, 0x0f, 0x05, 0xc3]), Some(ReturnSlot::Stack(0)));
        assert_eq!(
            gates(&[0x90, 0x0f, 0x05, 0xc3], 0x100).next().unwrap().call,
            0x101
        );
        // pop rbp; ret
        assert_eq!(first(&[0x0f, 0x05, 0x5d, 0xc3]), Some(ReturnSlot::Stack(8)));
        // leave; ret
        assert_eq!(first(&[0x0f, 0x05, 0xc9, 0xc3]), Some(ReturnSlot::Frame(8)));
        // glibc: cmp rax, -4095; jae +1; ret
        let glibc = [
            0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0x73, 0x01, 0xc3,
        ];
        assert_eq!(first(&glibc), Some(ReturnSlot::Stack(0)));
        // vdso of 6.18: lea rsp, [rbp - 16]; pop rbx; pop r14; pop rbp; xor edx, edx; ...
        let vdso = [
            0x0f, 0x05, 0x48, 0x8d, 0x65, 0xf0, 0x5b, 0x41, 0x5e, 0x5d, 0xc3,
        ];
        assert_eq!(first(&vdso), Some(ReturnSlot::Frame(8)));
        // mov [rsp + 48], eax; ret writes to memory
        assert_eq!(first(&[0x0f, 0x05, 0x89, 0x44, 0x24, 0x30, 0xc3]), None);
        assert_eq!(first(&[0x0f, 0x05]), None);
    }

    #[test]
    fn restorers_of_common_libraries() {
        let glibc = [0x90, 0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
        assert_eq!(restorer(&glibc, 0x100), Some(0x101));
        assert_eq!(restorer(&[0xb8, 15, 0, 0, 0, 0x0f, 0x05], 0), Some(0));
        assert_eq!(restorer(&[0xb8, 14, 0, 0, 0, 0x0f, 0x05], 0), None);
    }
}
