//! What a thread goes on with when its tracer dies while a batch runs in it.

use crate::PAGE_SIZE;
use crate::regs::{Regs, restart};

/// What the loop goes on with when nobody traces its thread any more. Offsets are known to the code
/// below.
pub(crate) struct Resume<'a> {
    pub(crate) regs: &'a Regs,
    pub(crate) sigmask: u64,
}

/// Room that [`Resume`] takes.
pub(crate) const RESUME_ROOM: usize = 256;

impl Resume<'_> {
    /// The bytes for a loop at address `code`, and the two words of `exit`.
    ///
    /// Registers are loaded by the thread itself, not by `rt_sigreturn(2)`, which makes the kernel
    /// forget the sleep that `restart_syscall(2)` would go on with. A thread that steps itself (TF) goes on
    /// without: the trap that follows each instruction would come while signals are blocked, and end it.
    pub(crate) fn encode(&self, code: u64, exit: Exit) -> ([u8; RESUME_ROOM], [u8; EXIT_WORDS]) {
        let mut regs = self.regs.without_steps();
        let interrupted = regs.interrupted_syscall();
        let again = match interrupted.map(|(nr, result)| (nr, -result)) {
            Some((
                nr,
                restart::ERESTARTSYS | restart::ERESTARTNOINTR | restart::ERESTARTNOHAND,
            )) => Some(nr),
            Some((_, restart::ERESTART_RESTARTBLOCK)) => Some(libc::SYS_restart_syscall),
            _ => None,
        };
        if let Some(nr) = again {
            regs.rax = nr.cast_unsigned();
        }
        let words = [
            regs.eflags,
            regs.rsp,
            self.sigmask,
            code + exit.code(again.is_some()) as u64,
            regs.r15,
            regs.r14,
            regs.r13,
            regs.r12,
            regs.rbx,
            regs.r11,
            regs.r10,
            regs.r9,
            regs.r8,
            regs.rax,
            regs.rcx,
            regs.rdx,
            regs.rsi,
            regs.rdi,
        ];
        let mut bytes = [0; RESUME_ROOM];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let mut last = [0; EXIT_WORDS];
        last[..8].copy_from_slice(&regs.rbp.to_le_bytes());
        last[8..].copy_from_slice(&regs.rip.to_le_bytes());
        (bytes, last)
    }
}

/// Threads of a process that run batches side by side come out of the loop each through an exit of its
/// own: the last register, and where to go, can only be taken from a place that the code itself names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit(usize);

/// How many exits there are.
pub(crate) const EXITS: usize = (PAGE_SIZE - FIRST_EXIT) / EXIT_CODE;
/// Bytes of an exit's words: rbp, rip.
const EXIT_WORDS: usize = 16;
/// Room that all exits' words take, right behind the code page.
pub(crate) const EXIT_ROOM: usize = (EXITS * EXIT_WORDS).next_multiple_of(64);
/// Where the exits' code begins in the code page.
pub(super) const FIRST_EXIT: usize = 512;
/// Bytes from one exit's code to the next one's.
const EXIT_CODE: usize = 32;
/// From an exit's code to that of its half that makes an interrupted call again.
const AGAIN: usize = 13;

impl Exit {
    /// The exit of the thread with number `seat`, if there are so many.
    pub(crate) fn of(seat: usize) -> Option<Exit> {
        (seat < EXITS).then_some(Exit(seat))
    }

    /// Offset of its code in the code page; with `again`, of the half that makes a call first.
    fn code(self, again: bool) -> usize {
        FIRST_EXIT + self.0 * EXIT_CODE + if again { AGAIN } else { 0 }
    }

    /// Offset of its words behind the code page.
    pub(crate) fn words(self) -> usize {
        self.0 * EXIT_WORDS
    }

    /// Its instructions: `mov rbp, [words]; jmp [words + 8]`, and the same with a `syscall` between.
    fn instructions(self) -> [u8; EXIT_CODE] {
        let mut code = [0xcc; EXIT_CODE];
        let mut at = 0;
        let mut put = |instruction: &[u8], word: Option<usize>| {
            code[at..at + instruction.len()].copy_from_slice(instruction);
            at += instruction.len();
            if let Some(word) = word {
                // Relative to the end of the instruction.
                let here = self.code(false) + at + 4;
                let distance = (PAGE_SIZE + self.words() + word - here) as u32;
                code[at..at + 4].copy_from_slice(&distance.to_le_bytes());
                at += 4;
            }
        };
        const LOAD_RBP: &[u8] = &[0x48, 0x8b, 0x2d];
        const JUMP: &[u8] = &[0xff, 0x25];
        put(LOAD_RBP, Some(0));
        put(JUMP, Some(8));
        put(LOAD_RBP, Some(0));
        put(&[0x0f, 0x05], None);
        put(JUMP, Some(8));
        code
    }
}

/// The code of all exits, from [`FIRST_EXIT`] to the end of the code page.
pub(super) fn exits() -> impl Iterator<Item = u8> {
    (0..EXITS).flat_map(|seat| Exit(seat).instructions())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::page;

    #[test]
    fn every_exit_has_code_and_words_of_its_own() {
        assert_eq!(page().len(), PAGE_SIZE);
        assert_eq!(Exit::of(EXITS), None);
        for seat in [0, 1, EXITS - 1] {
            let exit = Exit::of(seat).unwrap();
            let word = |at: usize| {
                let distance = u32::from_le_bytes(page()[at..at + 4].try_into().unwrap());
                at + 4 + distance as usize - PAGE_SIZE
            };
            let code = exit.code(false);
            assert_eq!(word(code + 3), exit.words(), "rbp");
            assert_eq!(word(code + 9), exit.words() + 8, "rip");
            let again = exit.code(true);
            assert_eq!(word(again + 3), exit.words(), "rbp");
            assert_eq!(page()[again + 7..again + 9], [0x0f, 0x05]);
            assert_eq!(word(again + 11), exit.words() + 8, "rip");
        }
    }
}
