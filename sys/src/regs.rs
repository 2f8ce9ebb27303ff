//! Register sets of a thread.

use serde::{Deserialize, Serialize};

/// General registers: `struct user_regs_struct` (arch/x86/include/asm/user_64.h), regset
/// `NT_PRSTATUS`. Field order is the kernel's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named after the registers")]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// Number of the system call the thread is in, or -1.
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

const _: () = assert!(size_of::<Regs>() == 27 * 8);

/// `orig_rax` of a thread that is not in a system call.
pub const NO_SYSCALL: u64 = u64::MAX;

/// `-errno` codes that only exist between the kernel and a tracer (include/linux/errno.h).
pub mod restart {
    /// Restart unless a handler without `SA_RESTART` runs.
    pub const ERESTARTSYS: i64 = 512;
    /// Restart always.
    pub const ERESTARTNOINTR: i64 = 513;
    /// Restart unless a handler runs.
    pub const ERESTARTNOHAND: i64 = 514;
    /// Go on through `restart_syscall(2)` with what the kernel kept in its restart block.
    pub const ERESTART_RESTARTBLOCK: i64 = 516;
}

/// The flag under which every instruction is followed by a SIGTRAP (TF in RFLAGS). A program may step itself so.
const TRAP_FLAG: u64 = 1 << 8;

impl Regs {
    /// The same without the flag that traps after each instruction: for code of ours in a thread that steps
    /// itself.
    #[must_use]
    pub(crate) fn without_steps(self) -> Regs {
        Regs {
            eflags: self.eflags & !TRAP_FLAG,
            ..self
        }
    }

    /// From the words of `struct user_regs_struct`; `struct pt_regs`, as it lies on a kernel stack, is those up to
    /// `ss`. What is missing is 0.
    #[must_use]
    pub fn from_words(words: &[u64]) -> Regs {
        let mut all = [0; size_of::<Regs>() / 8];
        for (place, word) in all.iter_mut().zip(words) {
            *place = *word;
        }
        // SAFETY: the structure is as many words, of which any value is valid.
        unsafe { core::mem::transmute::<[u64; size_of::<Regs>() / 8], Regs>(all) }
    }

    /// The words of `struct user_regs_struct`.
    #[must_use]
    pub fn words(&self) -> [u64; size_of::<Regs>() / 8] {
        // SAFETY: the structure is as many words.
        unsafe { core::mem::transmute::<Regs, [u64; size_of::<Regs>() / 8]>(*self) }
    }

    /// What belongs to segments: the bases of fs and gs, and the selectors of ds, es, fs and gs.
    #[must_use]
    pub(crate) fn segments(&self) -> [u64; 6] {
        [
            self.fs_base,
            self.gs_base,
            self.ds,
            self.es,
            self.fs,
            self.gs,
        ]
    }

    /// Whether a program has loaded what the kernel lets nobody set for it: a selector without the privilege of user
    /// space (1 and 2 load as 0 does), or a base in the kernel's half (`wrgsbase`; arch/x86/kernel/ptrace.c, `putreg`).
    #[must_use]
    pub fn has_forbidden_segments(&self) -> bool {
        const USER: u64 = 3;
        const KERNELS_HALF: u64 = 1 << 63;
        let [fs_base, gs_base, selectors @ ..] = self.segments();
        [fs_base, gs_base]
            .iter()
            .any(|base| base & KERNELS_HALF != 0)
            || selectors
                .iter()
                .any(|selector| *selector != 0 && selector & USER != USER)
    }

    /// The system call the thread was interrupted in: its number and negative result so far.
    /// None when it runs user code.
    #[must_use]
    pub fn interrupted_syscall(&self) -> Option<(i64, i64)> {
        let nr = self.orig_rax.cast_signed();
        (nr >= 0).then_some((nr, self.rax.cast_signed()))
    }

    /// Arguments of the interrupted system call, in the order of the ABI.
    #[must_use]
    pub fn syscall_args(&self) -> [u64; 6] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_in_the_kernels_order() {
        let words: Vec<u64> = (1..=21).collect();
        let regs = Regs::from_words(&words);
        assert_eq!((regs.r15, regs.orig_rax, regs.rip), (1, 16, 17));
        assert_eq!(regs.words()[..21], words);
        assert_eq!((regs.ss, regs.fs_base, regs.gs), (21, 0, 0));
    }
}
