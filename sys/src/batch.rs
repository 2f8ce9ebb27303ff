//! System calls as data.
//!
//! A [`Batch`] is a list of calls with their input and output buffers. It is built and printed
//! here, and run by [`crate::tracee::Tracee::run`] inside another process: the list is copied to a
//! scratch mapping there, a loop of some fifty instructions makes the calls one after the other
//! and stops once. So hundreds of calls cost one stop, and what a restore does is a value that can
//! be looked at.
//!
//! Scratch layout: one page of code, then the call table, then the data the calls point to. A batch whose
//! thread must find its way back alone has more before its table: the words that exits need
//! ([`EXIT_ROOM`]), and what the thread goes on with ([`Resume`]).

use crate::PAGE_SIZE;
use crate::regs::{Regs, restart};
use core::fmt;
use std::sync::LazyLock;

/// An argument of a remote call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A plain number (or an address of the target itself).
    Value(u64),
    /// The address, in the target, of a buffer of this batch.
    Data(Buffer),
    /// The result of an earlier call of the same batch.
    Result(CallIndex),
}

macro_rules! arg_from {
    ($($int:ty),*) => {$(
        impl From<$int> for Arg {
            /// Sign-extends, as the C ABI does for arguments.
            fn from(value: $int) -> Arg {
                Arg::Value(value as i64 as u64)
            }
        }
    )*};
}
arg_from!(i32, u32, i64, usize);

impl From<u64> for Arg {
    fn from(value: u64) -> Arg {
        Arg::Value(value)
    }
}
impl From<Buffer> for Arg {
    fn from(buffer: Buffer) -> Arg {
        Arg::Data(buffer)
    }
}
impl From<CallIndex> for Arg {
    fn from(index: CallIndex) -> Arg {
        Arg::Result(index)
    }
}

/// A buffer inside a batch: offset and length in its data area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    offset: usize,
    len: usize,
}

impl Buffer {
    /// What is behind its first `offset` bytes.
    #[must_use]
    pub fn at(self, offset: usize) -> Buffer {
        let offset = offset.min(self.len);
        Buffer {
            offset: self.offset + offset,
            len: self.len - offset,
        }
    }
}

/// Names a call of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallIndex(usize);

/// What the loop does when a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Stop; later calls are not made and report `ECANCELED`.
    Stop,
    /// Go on; the result says what happened.
    Continue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    nr: i64,
    args: [Arg; 6],
    on_error: OnError,
    what: &'static str,
}

/// A list of system calls with their buffers.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    calls: Vec<Call>,
    data: Vec<u8>,
    /// Places in the data that hold the address of a buffer.
    pointers: Vec<(usize, Buffer)>,
}

const ENTRY: usize = 72;
const RESULT: usize = 56;
const FLAG_STOP_ON_ERROR: u64 = 1 << 8;

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a buffer holding `bytes` (input, or in/out), aligned to 16 bytes.
    pub fn data(&mut self, bytes: &[u8]) -> Buffer {
        self.data.resize(self.data.len().next_multiple_of(16), 0);
        let offset = self.data.len();
        self.data.extend_from_slice(bytes);
        Buffer {
            offset,
            len: bytes.len(),
        }
    }

    /// Adds a zeroed buffer of `len` bytes for output.
    pub fn space(&mut self, len: usize) -> Buffer {
        self.data(&vec![0; len])
    }

    /// Adds a NUL-terminated string.
    pub fn string(&mut self, text: &[u8]) -> Buffer {
        let mut bytes = text.to_vec();
        bytes.push(0);
        self.data(&bytes)
    }

    /// Puts the address, in the target, of `buffer` into 8 bytes of `place` from `offset` on: for
    /// structures that point to others.
    pub fn pointer(&mut self, place: Buffer, offset: usize, buffer: Buffer) {
        debug_assert!(offset + 8 <= place.len);
        self.pointers.push((place.offset + offset, buffer));
    }

    /// Adds a call that must succeed: when it fails the batch stops there. `what` names it in
    /// messages. Missing arguments are 0.
    pub fn call<const N: usize>(
        &mut self,
        what: &'static str,
        nr: i64,
        args: [Arg; N],
    ) -> CallIndex {
        self.push(what, nr, &args, OnError::Stop)
    }

    /// Adds a call that may fail.
    pub fn try_call<const N: usize>(
        &mut self,
        what: &'static str,
        nr: i64,
        args: [Arg; N],
    ) -> CallIndex {
        self.push(what, nr, &args, OnError::Continue)
    }

    fn push(&mut self, what: &'static str, nr: i64, args: &[Arg], on_error: OnError) -> CallIndex {
        let mut six = [Arg::Value(0); 6];
        six[..args.len()].copy_from_slice(args);
        self.calls.push(Call {
            nr,
            args: six,
            on_error,
            what,
        });
        CallIndex(self.calls.len() - 1)
    }

    /// Number of calls.
    #[must_use]
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there is no call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Bytes of call table and data together: the scratch space a run needs behind the code page.
    #[must_use]
    pub fn size(&self) -> usize {
        self.data_offset() + self.data.len()
    }

    fn data_offset(&self) -> usize {
        (self.calls.len() * ENTRY).next_multiple_of(16)
    }

    /// The bytes to place at address `base` in the target.
    pub(crate) fn encode(&self, base: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.size());
        for call in &self.calls {
            let mut flags = match call.on_error {
                OnError::Stop => FLAG_STOP_ON_ERROR,
                OnError::Continue => 0,
            };
            bytes.extend_from_slice(&call.nr.to_le_bytes());
            for (i, arg) in call.args.iter().enumerate() {
                let value = match *arg {
                    Arg::Value(value) => value,
                    Arg::Data(buffer) => base + (self.data_offset() + buffer.offset) as u64,
                    Arg::Result(CallIndex(index)) => {
                        flags |= 1 << i;
                        base + (index * ENTRY + RESULT) as u64
                    }
                };
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            bytes.extend_from_slice(&(-i64::from(libc::ECANCELED)).to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
        }
        bytes.resize(self.data_offset(), 0);
        bytes.extend_from_slice(&self.data);
        for (place, buffer) in &self.pointers {
            let at = self.data_offset() + place;
            let address = base + (self.data_offset() + buffer.offset) as u64;
            bytes[at..at + 8].copy_from_slice(&address.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(&self, bytes: Vec<u8>) -> Output {
        let results = (0..self.calls.len())
            .map(|i| {
                let at = i * ENTRY + RESULT;
                let mut word = [0; 8];
                word.copy_from_slice(&bytes[at..at + 8]);
                i64::from_le_bytes(word)
            })
            .collect();
        Output {
            results,
            data_offset: self.data_offset(),
            bytes,
        }
    }

    /// The first call that had to succeed and did not, by name.
    #[must_use]
    pub fn failure(&self, output: &Output) -> Option<CallFailure> {
        self.calls
            .iter()
            .zip(&output.results)
            .find_map(|(call, &result)| {
                let failed = is_error(result) && call.on_error == OnError::Stop;
                failed.then(|| CallFailure {
                    what: call.what,
                    nr: call.nr,
                    args: call.args,
                    errno: nix::errno::Errno::from_raw(-result as i32),
                })
            })
    }
}

impl fmt::Display for Batch {
    /// One call a line, for logs and tests.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, call) in self.calls.iter().enumerate() {
            write!(f, "{i:4} {} [{}](", call.what, call.nr)?;
            for (n, arg) in call.args.iter().enumerate() {
                let comma = if n == 0 { "" } else { ", " };
                match arg {
                    Arg::Value(v) => write!(f, "{comma}{v:#x}")?,
                    Arg::Data(b) => write!(f, "{comma}data+{:#x}[{}]", b.offset, b.len)?,
                    Arg::Result(CallIndex(n)) => write!(f, "{comma}result[{n}]")?,
                }
            }
            writeln!(f, ")")?;
        }
        Ok(())
    }
}

/// A remote call that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what} (system call {nr}) failed: {errno}")]
pub struct CallFailure {
    /// The name given to it.
    pub what: &'static str,
    /// Its number.
    pub nr: i64,
    /// Its arguments.
    pub args: [Arg; 6],
    /// Why.
    pub errno: nix::errno::Errno,
}

/// What a batch brought back.
#[derive(Debug)]
pub struct Output {
    results: Vec<i64>,
    data_offset: usize,
    bytes: Vec<u8>,
}

fn is_error(result: i64) -> bool {
    (-4095..0).contains(&result)
}

impl Output {
    /// The result of one call.
    ///
    /// # Errors
    /// The errno it returned.
    pub fn result(&self, call: CallIndex) -> crate::Result<u64> {
        match self.results[call.0] {
            r if is_error(r) => Err(nix::errno::Errno::from_raw(-r as i32)),
            r => Ok(r.cast_unsigned()),
        }
    }

    /// The contents of a buffer after the run.
    #[must_use]
    pub fn bytes(&self, buffer: Buffer) -> &[u8] {
        let start = self.data_offset + buffer.offset;
        &self.bytes[start..start + buffer.len]
    }

    /// A buffer's 64-bit word number `index`.
    #[must_use]
    pub fn u64(&self, buffer: Buffer, index: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes(buffer)[index * 8..index * 8 + 8]);
        u64::from_le_bytes(word)
    }

    /// A buffer's 32-bit word number `index`.
    #[must_use]
    pub fn u32(&self, buffer: Buffer, index: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.bytes(buffer)[index * 4..index * 4 + 4]);
        u32::from_le_bytes(word)
    }
}

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
    /// forget the sleep that `restart_syscall(2)` would go on with.
    pub(crate) fn encode(&self, code: u64, exit: Exit) -> ([u8; RESUME_ROOM], [u8; EXIT_WORDS]) {
        let mut regs = *self.regs;
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
const FIRST_EXIT: usize = 512;
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

fn offset(symbol: *const u8) -> u64 {
    (symbol as usize - (&raw const kupgrade_batch_start) as usize) as u64
}

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
    "  syscall",
    "  mov [rbx + 56], rax",
    "  test r13d, 256",
    "  jz 4f",
    "  cmp rax, -4095",
    "  jae 8f",
    "4:",
    "  add rbx, 72",
    "  dec r12",
    "  jnz 2b",
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
    offset(&raw const kupgrade_batch_mark)
}

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
        page.extend((0..EXITS).flat_map(|seat| Exit(seat).instructions()));
        page
    });
    &PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_places_arguments_buffers_and_references() {
        let mut batch = Batch::new();
        let path = batch.string(b"/x");
        let open = batch.call("open", 257, [(-100i32).into(), path.into()]);
        batch.try_call("close", 3, [open.into()]);
        let vector = batch.space(16);
        batch.pointer(vector, 8, path);
        let bytes = batch.encode(0x1000);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!(word(0), 257);
        assert_eq!(word(8), (-100i64).cast_unsigned());
        assert_eq!(word(16), 0x1000 + 144);
        assert_eq!(word(64), FLAG_STOP_ON_ERROR);
        assert_eq!(word(72 + 8), 0x1000 + 56, "close takes open's result");
        assert_eq!(word(72 + 64), 1);
        assert_eq!(&bytes[144..147], b"/x\0");
        assert_eq!(word(160 + 8), 0x1000 + 144, "the vector points to the path");
    }

    #[test]
    fn the_loop_is_small_and_ends_in_a_breakpoint() {
        assert_eq!(code().last(), Some(&0xcc));
        assert!(code().len() <= FIRST_EXIT && mark() < code().len() as u64);
    }

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
