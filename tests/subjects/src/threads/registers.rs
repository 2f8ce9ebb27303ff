//! Known values in every register, while a thread spins, sleeps or waits.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::kit::{SOON, Setting, Watch, fd, give_way, sys, tid, until};

/// Bytes of an XSAVE area with everything up to AVX-512 and PKRU.
const AREA: usize = 4096;

/// rax, rcx, rdx, rbx, rbp, rsi, rdi, r8 to r15.
const GENERAL: [&str; 15] = [
    "rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// What `hold_registers` loads and stores; the assembly knows the offsets.
#[repr(C, align(64))]
struct Frame {
    before: [u64; 15],
    /// A system call's number, or -1 for spinning.
    call: i64,
    after: [u64; 15],
    mxcsr: u32,
    _gap: u32,
    loaded: [u8; AREA],
    stored: [u8; AREA],
}

/// Threads hold their registers while this is 0.
#[unsafe(no_mangle)]
static REGISTERS_STOP: AtomicU32 = AtomicU32::new(0);

// Without AMX (components 17 and 18), whose state is large: [`super::tiles`] has that.
std::arch::global_asm!(
    ".globl hold_registers",
    "hold_registers:",
    "push rbx; push rbp; push r12; push r13; push r14; push r15",
    "push qword ptr [rdi + 120]", // the call, at [rsp + 8]
    "push rdi",                   // the frame, at [rsp]
    "mov eax, 0xfff9ffff; mov edx, -1; xrstor64 [rdi + 256]",
    "mov rax, [rdi]; mov rcx, [rdi + 8]; mov rdx, [rdi + 16]; mov rbx, [rdi + 24]",
    "mov rbp, [rdi + 32]; mov rsi, [rdi + 40]",
    "mov r8, [rdi + 56]; mov r9, [rdi + 64]; mov r10, [rdi + 72]; mov r11, [rdi + 80]",
    "mov r12, [rdi + 88]; mov r13, [rdi + 96]; mov r14, [rdi + 104]; mov r15, [rdi + 112]",
    "mov rdi, [rdi + 48]",
    "cmp qword ptr [rsp + 8], 0; jge 3f",
    "2: pause; cmp dword ptr [rip + REGISTERS_STOP], 0; je 2b; jmp 4f",
    "3: mov rax, [rsp + 8]; syscall",
    "test rax, rax; js 4f; cmp dword ptr [rip + REGISTERS_STOP], 0; je 3b",
    "4: xchg rdi, [rsp]",
    "mov [rdi + 128], rax; mov [rdi + 136], rcx; mov [rdi + 144], rdx; mov [rdi + 152], rbx",
    "mov [rdi + 160], rbp; mov [rdi + 168], rsi",
    "mov [rdi + 184], r8; mov [rdi + 192], r9; mov [rdi + 200], r10; mov [rdi + 208], r11",
    "mov [rdi + 216], r12; mov [rdi + 224], r13; mov [rdi + 232], r14; mov [rdi + 240], r15",
    "pop rax; mov [rdi + 176], rax",
    "mov eax, 0xfff9ffff; mov edx, -1; xsave64 [rdi + 4352]",
    "fninit; ldmxcsr [rdi + 248]",
    "pop rax",
    "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
    "ret",
);

unsafe extern "C" {
    /// Loads all registers, waits for [`REGISTERS_STOP`], stores them.
    fn hold_registers(frame: *mut Frame);
}

/// How a thread passes its time.
#[derive(Clone, Copy, Debug)]
enum Pastime {
    Spin,
    Nanosleep,
    Poll,
    Futex,
    Read,
}

/// Sixteen threads, each with values of its own.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    use Pastime::{Futex, Nanosleep, Poll, Read, Spin};
    let kinds = [
        Spin, Nanosleep, Poll, Futex, Read, Nanosleep, Poll, Futex, Read, Nanosleep, Poll, Futex,
        Read, Nanosleep, Poll, Read,
    ];
    let mut threads = Vec::new();
    for (number, kind) in kinds.into_iter().enumerate() {
        threads.push(Thread::start(number as u64 + 1, kind)?);
    }
    // All of them are at it.
    std::thread::sleep(Duration::from_millis(100));
    Ok(Watch::new(move || {
        // On a busy machine some may still be on their way back into their calls.
        for thread in threads.iter().filter(|thread| matches!(thread.kind, Futex)) {
            until("a thread waits", SOON, || thread.waits_on_futex())?;
        }
        REGISTERS_STOP.store(1, Ordering::SeqCst);
        let stop = REGISTERS_STOP.as_ptr();
        // SAFETY: FUTEX_WAKE on a word of ours.
        unsafe { libc::syscall(libc::SYS_futex, stop, libc::FUTEX_WAKE, i32::MAX) };
        for thread in &threads {
            // SAFETY: one byte of a static into a pipe of ours.
            sys("write", unsafe {
                libc::write(thread.pipe, b"x".as_ptr().cast(), 1)
            })?;
        }
        let results: Vec<_> = threads
            .iter()
            .map(|thread| thread.results.recv_timeout(SOON))
            .collect();
        REGISTERS_STOP.store(0, Ordering::SeqCst);
        for (thread, result) in threads.iter().zip(results) {
            result
                .with_context(|| format!("no answer: {}", thread.whereabouts()))?
                .with_context(|| format!("a thread in {:?}", thread.kind))?;
            thread.again.send(())?;
        }
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }))
}

struct Thread {
    kind: Pastime,
    tid: i32,
    pipe: i32,
    results: Receiver<Result<()>>,
    again: Sender<()>,
}

impl Thread {
    fn start(number: u64, kind: Pastime) -> Result<Self> {
        let mut ends = [0; 2];
        // SAFETY: the array has room for two descriptors.
        fd("pipe", unsafe { libc::pipe(ends.as_mut_ptr()) })?;
        let (result, results) = channel();
        let (again, wait) = channel();
        let (send_tid, its_tid) = channel();
        std::thread::spawn(move || {
            let _ = send_tid.send(tid());
            if matches!(kind, Pastime::Spin) {
                give_way();
            }
            loop {
                if result.send(live(number, kind, ends[0])).is_err() || wait.recv().is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            kind,
            tid: its_tid.recv()?,
            pipe: ends[1],
            results,
            again,
        })
    }

    fn told(&self, name: &str) -> String {
        let path = format!("/proc/self/task/{}/{name}", self.tid);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().to_owned()
    }

    /// For a complaint.
    fn whereabouts(&self) -> String {
        let told = ["syscall", "stat", "schedstat"].map(|name| self.told(name));
        format!("{:?} {told:?}", self.kind)
    }

    fn waits_on_futex(&self) -> bool {
        let text = self.told("syscall");
        text.split(' ').next() == Some(&libc::SYS_futex.to_string())
    }
}

/// Holds the registers once and compares.
fn live(number: u64, kind: Pastime, pipe: i32) -> Result<()> {
    let short = libc::timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    let mut byte = 0_u8;
    let mut frame = Frame::new(number)?;
    let mut arguments = |call: i64, arguments: &[u64]| {
        frame.call = call;
        for (argument, place) in arguments.iter().zip([6, 5, 2, 9]) {
            frame.before[place] = *argument;
        }
    };
    match kind {
        Pastime::Spin => idle_class(),
        Pastime::Nanosleep => arguments(libc::SYS_nanosleep, &[&raw const short as u64, 0]),
        Pastime::Poll => arguments(libc::SYS_poll, &[0, 0, 20]),
        Pastime::Futex => arguments(
            libc::SYS_futex,
            &[
                REGISTERS_STOP.as_ptr() as u64,
                libc::FUTEX_WAIT as u64,
                0,
                0,
            ],
        ),
        Pastime::Read => arguments(libc::SYS_read, &[pipe as u64, &raw mut byte as u64, 1]),
    }
    // SAFETY: the frame has the layout that the assembly expects, with a valid XSAVE image, and
    // the call's arguments point to live values.
    unsafe { hold_registers(&raw mut *frame) };
    if !matches!(kind, Pastime::Read) {
        // SAFETY: the byte that the check wrote for this thread; the buffer has one.
        sys("read", unsafe {
            libc::read(pipe, (&raw mut byte).cast(), 1)
        })?;
    }
    frame.compare(matches!(kind, Pastime::Read))
}

/// A thread that spins shall not slow the others down.
fn idle_class() {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: sets the policy of this thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &param) };
}

/// Where the state component lies in an XSAVE area (CPUID leaf 0xd), if there is one.
fn component(number: u32) -> Option<std::ops::Range<usize>> {
    let found = __cpuid_count(0xd, number);
    let (size, start) = (found.eax as usize, found.ebx as usize);
    (size != 0).then_some(start..start + size)
}

/// AVX, opmask, ZMM_Hi256, Hi16_ZMM.
const EXTENDED: [u32; 4] = [2, 5, 6, 7];

/// XCR0: the components that the kernel has switched on.
fn enabled() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register that exists wherever XSAVE does.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) };
    u64::from(high) << 32 | u64::from(low)
}

impl Frame {
    fn new(number: u64) -> Result<Box<Self>> {
        if __cpuid_count(0xd, 0).ebx as usize > AREA {
            // AMX: its state is large, and off unless it is asked for.
            if EXTENDED
                .into_iter()
                .filter_map(component)
                .any(|range| range.end > AREA)
            {
                bail!("the XSAVE area is too large");
            }
        }
        let value =
            |place: usize| (number << 32 | place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut frame = Box::new(Self {
            before: std::array::from_fn(value),
            call: -1,
            after: [0; 15],
            mxcsr: 0x1f80,
            _gap: 0,
            loaded: [0; AREA],
            stored: [0; AREA],
        });
        let area = &mut frame.loaded;
        let mut fill = |range: std::ops::Range<usize>| {
            for at in range.step_by(8) {
                area[at..at + 8].copy_from_slice(&value(at).to_le_bytes());
            }
        };
        fill(32..416); // st0 to st7, xmm0 to xmm15
        let on = enabled();
        let mut state = 3;
        for number in EXTENDED {
            if let Some(range) = component(number).filter(|_| on >> number & 1 == 1) {
                fill(range);
                state |= 1 << number;
            }
        }
        area[0..2].copy_from_slice(&0x0f7f_u16.to_le_bytes()); // round to zero, 64 bits
        area[4] = 0xff; // all eight in use
        area[24..28].copy_from_slice(&0x3f80_u32.to_le_bytes()); // round down
        area[512..520].copy_from_slice(&u64::to_le_bytes(state));
        Ok(frame)
    }

    fn compare(&self, reads: bool) -> Result<()> {
        for (place, name) in GENERAL.iter().enumerate() {
            let expected = match (self.call, *name) {
                (0.., "rax") => u64::from(reads),
                // Belong to the instruction itself.
                (0.., "rcx" | "r11") => continue,
                _ => self.before[place],
            };
            if self.after[place] != expected {
                bail!("{name} is {:#x}, not {expected:#x}", self.after[place]);
            }
        }
        let part = |name: &str, range: std::ops::Range<usize>| {
            if self.loaded[range.clone()] != self.stored[range.clone()] {
                bail!(
                    "{name} differs: {:x?}, not {:x?}",
                    &self.stored[range.clone()],
                    &self.loaded[range]
                );
            }
            Ok(())
        };
        part("x87 control word", 0..2)?;
        part("x87 tags", 4..5)?;
        part("MXCSR", 24..28)?;
        (0..8).try_for_each(|st| part("an x87 register", 32 + st * 16..42 + st * 16))?;
        part("XMM", 160..416)?;
        let on = enabled();
        for number in EXTENDED {
            if let Some(range) = component(number).filter(|_| on >> number & 1 == 1) {
                part(&format!("state component {number}"), range)?;
            }
        }
        Ok(())
    }
}
