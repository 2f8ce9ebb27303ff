//! Code with which a thread makes the rest of a system call, and returns what both parts came to.
//!
//! A stop makes a write(2) that has been partly done return what it has done so far. No register setting
//! alone makes up for that: the call for the rest returns the rest. So the thread makes that call from
//! [`code`], which adds what was done before, and goes back to where the first one was made. It finds
//! what it needs on its own stack ([`Frame`]), and nobody has to be there when it returns.
//!
//! The same code makes a call with other arguments than it was made with, which it puts back, and up to two calls
//! in place of one.
//!
//! The code lies where the vdso's image ends: its last page is filled up with zeros.

use crate::regs::Regs;

/// Bytes at the end of a vdso's image that the code is put into.
const ROOM: usize = 256;
/// Bytes before it that must be free as well.
const GAP: usize = 128;
/// All of them.
pub(crate) const WHOLE: usize = ROOM + GAP;

// rsp: the frame. All registers but rax, rcx and r11 come back as they were; those are what a system call
// leaves in them. A call that fails after the first part did not is told of by the next one.
core::arch::global_asm!(
    ".pushsection .rodata.kupgrade_remainder,\"a\",@progbits",
    ".globl kupgrade_remainder_start",
    ".globl kupgrade_series_start",
    ".globl kupgrade_loop_start",
    ".globl kupgrade_child_wait_start",
    ".globl kupgrade_remainder_end",
    "kupgrade_remainder_start:",
    "  syscall",
    "  cmp rax, [rsp + 80]",
    "  jl 1f",
    "  and rax, [rsp + 88]",
    "  add [rsp], rax",
    "  mov rax, [rsp + 96]",
    "  mov rdi, [rsp + 8]",
    "  mov rsi, [rsp + 104]",
    "  mov rdx, [rsp + 112]",
    "  mov r10, [rsp + 120]",
    "  syscall",
    "1:",
    "  mov rcx, [rsp]",
    "  test rcx, rcx",
    "  jz 3f",
    "  test rax, rax",
    "  js 2f",
    "  add rcx, rax",
    "2:",
    "  mov rax, rcx",
    "3:",
    "  mov rdi, [rsp + 8]",
    "  mov rsi, [rsp + 16]",
    "  mov rdx, [rsp + 24]",
    "  mov r10, [rsp + 32]",
    "  mov r8, [rsp + 40]",
    "  mov r9, [rsp + 48]",
    "  mov r11, [rsp + 56]",
    // A signal that comes between here and the end finds everything above rsp that is still needed.
    "  lea rsp, [rsp + 56]",
    "  popfq",
    "  pop rcx",
    "  pop rsp",
    "  jmp rcx",
    // The way through several calls ([`Series`]). rsp: its head, which tells which step was made last.
    "kupgrade_series_start:",
    "  syscall",
    "1:",
    "  mov [rsp + 80], rax",
    "  mov rcx, [rsp + 72]",
    "  mov r11, [rcx + 56]",
    "  mov r8d, [r11]",
    "  cmp r8d, [rcx + 64]",
    "  mov r8, [rcx + 72]",
    "  je 2f",
    "  mov r8, [rcx + 80]",
    "2:",
    "  test r8, r8",
    "  jz 3f",
    "  mov [rsp + 72], r8",
    "  mov rcx, r8",
    "  mov rax, [rcx]",
    "  mov rdi, [rcx + 8]",
    "  mov rsi, [rcx + 16]",
    "  mov rdx, [rcx + 24]",
    "  mov r10, [rcx + 32]",
    "  mov r8, [rcx + 40]",
    "  mov r9, [rcx + 48]",
    "  syscall",
    "  jmp 1b",
    "3:",
    "  mov rdi, [rsp]",
    "  mov rsi, [rsp + 8]",
    "  mov rdx, [rsp + 16]",
    "  mov r10, [rsp + 24]",
    "  mov r8, [rsp + 32]",
    "  mov r9, [rsp + 40]",
    "  mov r11, [rsp + 48]",
    "  lea rsp, [rsp + 48]",
    "  popfq",
    "  pop rcx",
    "  pop rsp",
    "  jmp rcx",
    // Where a thread waits that may make no call.
    "kupgrade_loop_start:",
    "4:",
    "  pause",
    "  jmp 4b",
    // rdi: a word that is cleared when the wait is over; rsp: behind the first word of a signal's frame.
    "kupgrade_child_wait_start:",
    "5:",
    "  syscall",
    "  cmp dword ptr [rdi], 0",
    "  mov eax, 202",
    "  jne 5b",
    "  mov eax, 15",
    "  syscall",
    "kupgrade_remainder_end:",
    ".popsection",
);

unsafe extern "C" {
    static kupgrade_remainder_start: u8;
    static kupgrade_series_start: u8;
    static kupgrade_loop_start: u8;
    static kupgrade_child_wait_start: u8;
    static kupgrade_remainder_end: u8;
}

/// The machine code, which begins with its `syscall` instruction.
#[must_use]
pub fn code() -> &'static [u8] {
    let start = &raw const kupgrade_remainder_start;
    let len = (&raw const kupgrade_remainder_end) as usize - start as usize;
    // SAFETY: both symbols bound one read-only block of this program's image.
    unsafe { core::slice::from_raw_parts(start, len) }
}

/// Offset in a vdso's image at which [`code`] is, or can be put. None when the image has no room.
#[must_use]
pub fn place(image: &[u8]) -> Option<usize> {
    let at = image.len().checked_sub(ROOM)?;
    let (code, room) = (code(), &image[at..]);
    let nothing = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    // The last code or data of the image may end in zeros of its own.
    let before = image.get(at.checked_sub(GAP)?..at)?;
    let free = nothing(room) || room.starts_with(code) && nothing(&room[code.len()..]);
    (free && nothing(before)).then_some(at)
}

/// Takes the code out of an image. True when it was there.
pub fn take_out(image: &mut [u8]) -> bool {
    let Some(room) = place(image).and_then(|at| image.get_mut(at..)) else {
        return false;
    };
    let there = room.starts_with(code());
    room.fill(0);
    there
}

/// What [`code`] goes on with, at the stack pointer it is begun with.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What the first part came to. With 0 the result of the call, or its error, is what is returned.
    pub done: u64,
    /// The registers behind the first part.
    pub regs: &'a Regs,
    /// Another call after the one that the code begins with.
    pub then: Option<Then>,
}

/// A second call, on the descriptor of the one that was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Then {
    /// It is made if the first call returns so much, or more. Else what that returned counts.
    pub enough: i64,
    /// Whether what the first call returned counts as well.
    pub counts: bool,
    /// Its number, and the second to fourth argument.
    pub nr: i64,
    #[allow(missing_docs, reason = "see above")]
    pub args: [u64; 3],
}

/// Bytes of a [`Frame`].
pub const FRAME: usize = 128;

impl Frame<'_> {
    /// The frame as [`code`] reads it.
    #[must_use]
    pub fn bytes(&self) -> [u8; FRAME] {
        let Regs {
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            eflags,
            rip,
            rsp,
            ..
        } = *self.regs;
        let then = self.then.unwrap_or(Then {
            enough: i64::MAX,
            counts: false,
            nr: 0,
            args: [0; 3],
        });
        let mask = if then.counts { u64::MAX } else { 0 };
        let (enough, nr) = (then.enough.cast_unsigned(), then.nr.cast_unsigned());
        let [a, b, c] = then.args;
        let words = [
            self.done, rdi, rsi, rdx, r10, r8, r9, eflags, rip, rsp, enough, mask, nr, a, b, c,
        ];
        let mut bytes = [0; FRAME];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// A call of a [`Series`], and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Number and arguments.
    pub call: [u64; 7],
    /// A word of four bytes of the series' room that is looked at behind the call, by its offset, and what it is
    /// then, or else other steps follow. None looks at nothing.
    pub look: Option<(u64, u32)>,
    /// The step that follows when it is so, by its place; the series ends behind the last one.
    pub then: Option<usize>,
    /// The one when it is not.
    pub or: Option<usize>,
}

/// Several calls in place of the one in which a thread was interrupted, with whose registers and whose result, that
/// of the last one made, it goes on.
#[derive(Clone, Debug)]
pub struct Series<'a> {
    /// The registers behind the call that it was interrupted in.
    pub regs: &'a Regs,
    /// The calls, in whose arguments [`Series::ROOM`] is an address.
    pub steps: Vec<Step>,
    /// Bytes that they may use, zeros at first.
    pub room: usize,
}

/// Bytes of a series' head, and of a step.
const HEAD: usize = 88;
/// In the head: what the last call returned.
const RESULT: u64 = 80;
const STEP: usize = 88;

impl Series<'_> {
    /// In an argument: the address of the room. No address is one like this.
    pub const ROOM: u64 = 0x8000_0000_0000_00aa;
    /// As a place to look at: what the call has returned.
    pub const RESULT: u64 = u64::MAX;

    /// Bytes that it takes on the stack.
    #[must_use]
    pub fn size(&self) -> usize {
        HEAD + self.steps.len() * STEP + self.room
    }

    /// Those bytes, for this address, which is to be the stack pointer.
    #[must_use]
    pub fn bytes(&self, at: u64) -> Vec<u8> {
        let Regs {
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            eflags,
            rip,
            rsp,
            ..
        } = *self.regs;
        let step = |place: usize| at + (HEAD + place * STEP) as u64;
        let room = step(self.steps.len());
        let next = |place: Option<usize>| place.map_or(0, step);
        let mut words = vec![rdi, rsi, rdx, r10, r8, r9, eflags, rip, rsp, step(0), 0];
        for (place, one) in self.steps.iter().enumerate() {
            let argument = |word: u64| if word == Self::ROOM { room } else { word };
            words.extend(one.call.map(argument));
            // Without anything to look at it looks at what it compares with.
            let own = step(place) + 64;
            let (look, expected) = match one.look {
                Some((Self::RESULT, is)) => (at + RESULT, is),
                Some((offset, is)) => (room + offset, is),
                None => (own, 0),
            };
            words.extend([look, expected.into(), next(one.then), next(one.or)]);
        }
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(self.size(), 0);
        bytes
    }
}

/// Offset in [`code`] of the part that makes a [`Series`], which begins with its `syscall` instruction.
#[must_use]
pub fn series() -> u64 {
    let start = &raw const kupgrade_remainder_start;
    (&raw const kupgrade_series_start as usize - start as usize) as u64
}

/// Offset in [`code`] of a loop without an end and without calls.
#[must_use]
pub fn endless() -> u64 {
    let start = &raw const kupgrade_remainder_start;
    (&raw const kupgrade_loop_start as usize - start as usize) as u64
}

/// Offset in [`code`] of the wait for a child ([`crate::child_wait`]), which begins with its `syscall` instruction.
#[must_use]
pub fn child_wait() -> u64 {
    let start = &raw const kupgrade_remainder_start;
    (&raw const kupgrade_child_wait_start as usize - start as usize) as u64
}

/// The registers behind the call that a thread was interrupted in before it was sent through a series, and is in
/// the last call of: `code` is where the code is, `read` reads a word of its memory. None elsewhere.
#[must_use]
pub fn before_series(regs: &Regs, code: u64, read: impl Fn(u64) -> Option<u64>) -> Option<Regs> {
    let start = &raw const kupgrade_series_start;
    let all = &raw const kupgrade_loop_start as usize - start as usize;
    let within = code + series()..code + series() + all as u64;
    if !within.contains(&regs.rip) {
        return None;
    }
    let step = read(regs.rsp + 72)?;
    let [nr, then, or] = [0, 72, 80].map(|at| read(step + at));
    let (nr, again) = (nr?, libc::SYS_restart_syscall.cast_unsigned());
    if ![nr, again].contains(&regs.orig_rax) || then? != 0 || or? != 0 {
        return None;
    }
    Some(Regs {
        orig_rax: nr,
        eflags: read(regs.rsp + 48)?,
        rip: read(regs.rsp + 56)?,
        rsp: read(regs.rsp + 64)?,
        ..*regs
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_begins_with_its_call_and_fits() {
        assert!(code().starts_with(&[0x0f, 0x05]));
        // pause, and a jump back to it.
        assert!(code()[endless() as usize..].starts_with(&[0xf3, 0x90, 0xeb, 0xfc]));
        assert!(code()[child_wait() as usize..].starts_with(&[0x0f, 0x05]));
        assert!(code().len() <= ROOM, "{} bytes", code().len());
    }

    #[test]
    fn room_is_where_nothing_was() {
        let mut image = vec![7; 4096];
        assert_eq!(place(&image), None);
        image[3000..].fill(0);
        let at = place(&image).unwrap();
        let plain = image.clone();
        image[at..at + code().len()].copy_from_slice(code());
        assert_eq!(place(&image), Some(at));
        assert!(take_out(&mut image) && !take_out(&mut image.clone()));
        assert_eq!(image, plain);
        assert_eq!(place(&[0; 100]), None);
    }
}
