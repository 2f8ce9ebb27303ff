//! The machine code that makes the calls of a batch.

use super::resume::{FIRST_EXIT, exits};
use std::sync::LazyLock;

// The loop. In: rbx = call table, r12 = number of calls, r14 = signal that ends it, rbp = what to go on
// with. It keeps its state in registers that system calls preserve (all but rax, rcx, r11). At its
// end it sends itself the signal, which its tracer sees, and which without a tracer does nothing: so
// it is one that the program ignores. What comes then is only run without a tracer: the thread goes
// on as it was before. Signal 0 is for threads that are being built: a breakpoint ends those.
//
// It leaves through an exit of its own ([`Exit`]). A call that was interrupted is made again there, so that it
// is known to be the last thing before the program's own code.
core::arch::global_asm!(
    ".pushsection .rodata.kupgrade_batch,\"a\",@progbits",
    ".balign 16",
    ".globl kupgrade_batch_start",
    ".globl kupgrade_batch_mark",
    ".globl kupgrade_batch_end",
    "kupgrade_batch_start:",
    "  test r12, r12",
    "  jz 8f",
    "2:",
    "  mov rax, [rbx]",
    "  mov r13, [rbx + 64]",
    "  mov rdi, [rbx + 8]",
    "  test r13b, 1",
    "  jz 3f",
    "  mov rdi, [rdi]",
    "3:",
    "  mov rsi, [rbx + 16]",
    "  test r13b, 2",
    "  jz 3f",
    "  mov rsi, [rsi]",
    "3:",
    "  mov rdx, [rbx + 24]",
    "  test r13b, 4",
    "  jz 3f",
    "  mov rdx, [rdx]",
    "3:",
    "  mov r10, [rbx + 32]",
    "  test r13b, 8",
    "  jz 3f",
    "  mov r10, [r10]",
    "3:",
    "  mov r8, [rbx + 40]",
    "  test r13b, 16",
    "  jz 3f",
    "  mov r8, [r8]",
    "3:",
    "  mov r9, [rbx + 48]",
    "  test r13b, 32",
    "  jz 3f",
    "  mov r9, [r9]",
    "3:",
    "  test r13d, 512",
    "  jnz 5f",
    "  syscall",
    "6:",
    "  mov [rbx + 56], rax",
    "  test r13d, 256",
    "  jz 4f",
    "  cmp rax, -4095",
    "  jae 8f",
    "4:",
    "  add rbx, 72",
    "  dec r12",
    "  jnz 2b",
    "  jmp 8f",
    "5:",
    "  .byte 0xc4, 0xe2, 0x78, 0x49, 0x07", // ldtilecfg [rdi]
    "  .byte 0xc4, 0xe2, 0x7b, 0x49, 0xc0", // tilezero tmm0
    "  .byte 0xc4, 0xe2, 0x78, 0x49, 0xc0", // tilerelease
    "  xor eax, eax",
    "  jmp 6b",
    "8:",
    "  test r14d, r14d",
    "  jz 9f",
    "  mov eax, 39", // getpid
    "  syscall",
    "  mov r13d, eax",
    "  mov eax, 186", // gettid
    "  syscall",
    "  mov edi, r13d",
    "  mov esi, eax",
    "  mov edx, r14d",
    "  mov eax, 234", // tgkill
    "  syscall",
    "kupgrade_batch_mark:",
    // Flags, and nothing behind here changes them. Signals are blocked while rsp is not a stack.
    "  lea rsp, [rbp]",
    "  popfq",
    "  mov rsp, [rbp + 8]",
    "  mov edi, 2", // SIG_SETMASK
    "  lea rsi, [rbp + 16]",
    "  mov edx, 0",
    "  mov r10d, 8",
    "  mov eax, 14", // rt_sigprocmask
    "  syscall",
    "  mov r15, [rbp + 32]",
    "  mov r14, [rbp + 40]",
    "  mov r13, [rbp + 48]",
    "  mov r12, [rbp + 56]",
    "  mov rbx, [rbp + 64]",
    "  mov r11, [rbp + 72]",
    "  mov r10, [rbp + 80]",
    "  mov r9, [rbp + 88]",
    "  mov r8, [rbp + 96]",
    "  mov rax, [rbp + 104]",
    "  mov rcx, [rbp + 112]",
    "  mov rdx, [rbp + 120]",
    "  mov rsi, [rbp + 128]",
    "  mov rdi, [rbp + 136]",
    "  jmp [rbp + 24]",
    "9:",
    "  int3",
    "kupgrade_batch_end:",
    ".popsection",
);

unsafe extern "C" {
    static kupgrade_batch_start: u8;
    static kupgrade_batch_mark: u8;
    static kupgrade_batch_end: u8;
}

/// Offset in [`code`] at which a thread stands when the signal that ends a batch has come.
#[must_use]
pub(crate) fn mark() -> u64 {
    let start = &raw const kupgrade_batch_start;
    (&raw const kupgrade_batch_mark as usize - start as usize) as u64
}

/// Instructions from there until the flags are loaded from where `rbp` points.
pub(crate) const UNTIL_FLAGS: usize = 2;

/// The loop's machine code: position independent, no relocations, ends in `int3`.
#[must_use]
pub fn code() -> &'static [u8] {
    let start = &raw const kupgrade_batch_start;
    let len = (&raw const kupgrade_batch_end) as usize - start as usize;
    // SAFETY: both symbols bound one read-only block of this program's image.
    unsafe { core::slice::from_raw_parts(start, len) }
}

/// The code page: the loop and the exits.
#[must_use]
pub(crate) fn page() -> &'static [u8] {
    static PAGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut page = code().to_vec();
        page.resize(FIRST_EXIT, 0xcc);
        page.extend(exits());
        page
    });
    &PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_is_small_and_ends_in_a_breakpoint() {
        assert_eq!(code().last(), Some(&0xcc));
        assert!(code().len() <= FIRST_EXIT && mark() < code().len() as u64);
    }
}
