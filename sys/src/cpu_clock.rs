//! Clocks of processor time that go on from where they were in an earlier life of a process.
//!
//! The kernel's begin at 0 and cannot be set, but nearly every program reads them through the vdso, which makes a
//! system call for them. In a process's own copy of that the call is replaced by a jump to code which makes it
//! and adds what had been counted before to clocks of the processes and threads in a list. That lies before the
//! code, and both near the end of the image, whose last page is filled up with zeros.
//!
//! Whose clock it is, is asked each time: children made later and other threads have the same list, and are not in it.

/// Bytes behind the code, where the rests of calls are made ([`crate::remainder`]) and what it wants to be zero.
const BEHIND: usize = crate::remainder::WHOLE;
/// Bytes of the code, filled up.
const ROOM: usize = 192;
/// The last code or data of the image may end in zeros of its own.
const APART: usize = 64;
/// `mov eax, 228; syscall`: the fallback of `clock_gettime`.
const FALLBACK: [u8; 7] = [0xb8, 0xe4, 0, 0, 0, 0x0f, 0x05];
/// Set in the id of a process's clock.
const PROCESS: u32 = 1 << 22;
/// The calls that the code makes: clock_gettime, getpid, gettid. None of them waits.
pub const CALLS: [i64; 3] = [228, 39, 186];
const IDS: u64 = (PROCESS as u64 * 2) - 1;
const SECOND: u64 = 1_000_000_000;
/// Parts of a second that are counted.
const PART: u64 = SECOND / 512;

// rdi and rsi: clock and struct timespec, as for the system call. Only rax, rcx and r11 may be changed, and nothing on
// the stack, where a function without a frame keeps what it likes. The last four bytes lead back.
core::arch::global_asm!(
    ".pushsection .rodata.kupgrade_cpu_clock,\"a\",@progbits",
    ".globl kupgrade_cpu_clock_start",
    ".globl kupgrade_cpu_clock_end",
    "kupgrade_cpu_clock_start:",
    "22:",
    "  mov eax, 228",
    "  syscall",
    "  test rax, rax",
    "  jnz 9f",
    "  cmp edi, 2",
    "  je 4f",
    "  cmp edi, 3",
    "  je 6f",
    "  test edi, edi",
    "  jns 9f",
    // A clock of a given process or thread (kernel/time/posix-cpu-timers.c): of those that count what the scheduler does.
    "  mov eax, edi",
    "  and eax, 3",
    "  cmp eax, 2",
    "  jne 8f",
    "  mov eax, edi",
    "  sar eax, 3",
    "  not eax",
    "  test edi, 4",
    "  jnz 2f",
    "  test eax, eax",
    "  jnz 5f",
    "  jmp 4f",
    "2:",
    "  test eax, eax",
    "  jnz 7f",
    "  jmp 6f",
    // Its own process: getpid(2).
    "4:",
    "  mov eax, 39",
    "  syscall",
    "5:",
    "  or eax, 0x400000",
    "  jmp 7f",
    // Its own thread: gettid(2).
    "6:",
    "  mov eax, 186",
    "  syscall",
    "7:",
    "  lea r11, [rip + 22b]",
    "33:",
    "  sub r11, 8",
    "  mov rcx, [r11]",
    "  test rcx, rcx",
    "  jz 8f",
    "  xor rcx, rax",
    "  test ecx, 0x7fffff",
    "  jnz 33b",
    "  mov r11d, ecx",
    "  shr r11d, 23",
    "  imul r11d, r11d, 1953125",
    "  shr rcx, 32",
    "  add [rsi], rcx",
    "  add r11, [rsi + 8]",
    "  cmp r11, 1000000000",
    "  jb 44f",
    "  sub r11, 1000000000",
    "  inc qword ptr [rsi]",
    "44:",
    "  mov [rsi + 8], r11",
    "8:",
    "  xor eax, eax",
    "9:",
    "  .byte 0xe9",
    "  .long 0",
    "kupgrade_cpu_clock_end:",
    ".popsection",
);

unsafe extern "C" {
    static kupgrade_cpu_clock_start: u8;
    static kupgrade_cpu_clock_end: u8;
}

/// The machine code but for the four bytes that lead back.
fn code() -> &'static [u8] {
    let start = &raw const kupgrade_cpu_clock_start;
    let len = (&raw const kupgrade_cpu_clock_end) as usize - start as usize - 4;
    // SAFETY: both symbols bound one read-only block of this program's image.
    unsafe { core::slice::from_raw_parts(start, len) }
}

/// Whose clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Whose {
    /// Of all threads of a process, by its id.
    Process(i32),
    /// Of a thread.
    Thread(i32),
}

impl Whose {
    fn key(self) -> Option<u64> {
        let (id, flag) = match self {
            Whose::Process(id) => (id, PROCESS),
            Whose::Thread(id) => (id, 0),
        };
        let id = u32::try_from(id)
            .ok()
            .filter(|id| (1..PROCESS).contains(id))?;
        Some(u64::from(id | flag))
    }
}

/// What had been counted by a clock before, in nanoseconds.
pub type Counted = (Whose, u64);

/// An entry of the list, which begins before the code and goes down: id, flag, parts of a second (9 bits), seconds.
/// No clock goes back: a part that has begun is counted.
fn entry((whose, ns): Counted) -> Option<u64> {
    let (key, parts) = (whose.key()?, ns.div_ceil(PART));
    let seconds = (parts / 512).min(u64::from(u32::MAX));
    (parts > 0).then_some(key | (parts % 512) << 23 | seconds << 32)
}

fn counted(entry: u64) -> Counted {
    let key = (entry & IDS) as u32;
    let id = (key & !PROCESS).cast_signed();
    let whose = match key & PROCESS {
        0 => Whose::Thread(id),
        _ => Whose::Process(id),
    };
    (whose, (entry >> 32) * SECOND + (entry >> 23 & 511) * PART)
}

/// Where the code is, or can be put.
fn place(image: &[u8]) -> Option<usize> {
    image.len().checked_sub(BEHIND + ROOM)
}

/// Pieces of an image that are to be written: offset, bytes.
pub type Pieces = Vec<(usize, Vec<u8>)>;

/// How an image is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where the call is made.
    site: usize,
    /// Where the code is put.
    at: usize,
    /// Clocks that there is room for.
    most: usize,
}

impl Plan {
    /// None for an image that has no room, or none of the calls that are known, or several.
    #[must_use]
    pub fn of(image: &[u8]) -> Option<Plan> {
        let at = place(image)?;
        let calls = image.windows(FALLBACK.len()).enumerate();
        let mut calls = calls.filter(|(_, bytes)| *bytes == FALLBACK);
        let site = calls.next().map(|(site, _)| site);
        let site = site.filter(|site| *site < at)?;
        if calls.next().is_some() || image[at..at + ROOM].iter().any(|byte| *byte != 0) {
            return None;
        }
        let used = image[..at].iter().rposition(|byte| *byte != 0)? + 1;
        // One more than clocks: the list ends with a zero.
        let most = (at.checked_sub(used + APART)? / 8).checked_sub(1)?;
        Some(Plan { site, at, most })
    }

    /// What is to be written for these clocks; of more than there is room for those of processes, and those that
    /// have counted most.
    #[must_use]
    pub fn pieces(&self, clocks: &[Counted]) -> Option<Pieces> {
        let Plan { site, at, most } = *self;
        let mut clocks = clocks.to_vec();
        clocks.sort_by_key(|(whose, ns)| (matches!(whose, Whose::Thread(_)), u64::MAX - ns));
        let mut list: Vec<u64> = clocks.into_iter().filter_map(entry).take(most).collect();
        list.push(0);
        let start = at - 8 * list.len();
        let words = list.iter().rev().flat_map(|word| word.to_le_bytes());
        let mut bytes: Vec<u8> = words.chain(code().iter().copied()).collect();
        bytes.extend(distance(start + bytes.len() + 4, site + FALLBACK.len())?);
        // Who was to make the call just now jumps, too.
        let mut jump = vec![0xe9];
        jump.extend(distance(site + 5, at)?);
        jump.extend([0xeb, 0xf9]);
        Some(vec![(start, bytes), (site, jump)])
    }
}

fn distance(from: usize, to: usize) -> Option<[u8; 4]> {
    let distance = i64::try_from(to).ok()? - i64::try_from(from).ok()?;
    Some(i32::try_from(distance).ok()?.to_le_bytes())
}

/// Takes them out of an image, which is then the kernel's again. Returns the list, empty when there was none.
pub fn take_out(image: &mut [u8]) -> Vec<Counted> {
    let code = code();
    let back = place(image).filter(|at| image[*at..].starts_with(code));
    let Some((at, back)) = back.and_then(|at| {
        let end = at + code.len() + 4;
        let bytes = image.get(end - 4..end)?;
        let distance = i32::from_le_bytes(bytes.try_into().ok()?);
        Some((at, end.checked_add_signed(distance as isize)?))
    }) else {
        return Vec::new();
    };
    let Some(site) = back.checked_sub(FALLBACK.len()).filter(|_| back < at) else {
        return Vec::new();
    };
    image[site..back].copy_from_slice(&FALLBACK);
    image[at..at + ROOM].fill(0);
    let mut found = Vec::new();
    for word in image[..at].rchunks_exact_mut(8) {
        let entry = u64::from_le_bytes(*word.first_chunk().unwrap_or(&[0; 8]));
        if entry == 0 {
            break;
        }
        found.push(counted(entry));
        word.fill(0);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pid, vm::ProcMem};
    use std::io::Write;

    /// This kernel's vdso: where it is, and its bytes.
    fn own() -> (u64, Vec<u8>) {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mem = ProcMem::open(Pid(std::process::id().cast_signed())).unwrap();
        (start, mem.read_vec(start, (end - start) as usize).unwrap())
    }

    fn write(image: &mut [u8], pieces: &Pieces) {
        for (at, bytes) in pieces {
            image[*at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    #[test]
    fn what_is_put_in_is_taken_out() {
        let (_, image) = own();
        let clocks = [
            (Whose::Thread(77), 3),
            (Whose::Process(4_194_303), 12 * SECOND + 1),
            (Whose::Thread(4_194_303), 5 * SECOND),
            (Whose::Thread(78), 0),
        ];
        let mut changed = image.clone();
        write(
            &mut changed,
            &Plan::of(&image).unwrap().pieces(&clocks).unwrap(),
        );
        let expected = [
            (Whose::Process(4_194_303), 12 * SECOND + PART),
            (Whose::Thread(4_194_303), 5 * SECOND),
            (Whose::Thread(77), PART),
        ];
        assert_eq!(take_out(&mut changed), expected);
        assert!(changed == image, "it is the kernel's again");
        assert_eq!(take_out(&mut changed), []);
        assert_eq!(Plan::of(&[0; 4096]), None);
        assert!(code().len() + 4 <= ROOM);
    }

    #[test]
    fn those_that_counted_most_have_room() {
        let (_, image) = own();
        let clocks: Vec<_> = (1..5000)
            .map(|id| (Whose::Thread(id), id as u64 * SECOND))
            .collect();
        let mut changed = image.clone();
        write(
            &mut changed,
            &Plan::of(&image).unwrap().pieces(&clocks).unwrap(),
        );
        let found = take_out(&mut changed);
        assert!(found.len() > 30 && found.len() < 4999, "{}", found.len());
        assert_eq!(found[0].0, Whose::Thread(4999));
        assert!(changed == image);
    }

    /// Reads a clock as programs do.
    fn read(clock: i32) -> u64 {
        let time = nix::time::clock_gettime(nix::time::ClockId::from_raw(clock)).unwrap();
        time.tv_sec().cast_unsigned() * SECOND + time.tv_nsec().cast_unsigned()
    }

    fn by_call(clock: i32) -> u64 {
        let mut time = [0_u64; 2];
        // SAFETY: two words are a struct timespec.
        unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time.as_mut_ptr()) };
        time[0] * SECOND + time[1]
    }

    /// In a child, whose vdso is its own.
    fn in_child(work: fn() -> Result<(), String>) {
        // SAFETY: the child works with what it has and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let done = work();
            if let Err(why) = &done {
                let _ = writeln!(std::io::stderr(), "{why}");
            }
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(done.is_err())) };
        }
        let mut status = 0;
        // SAFETY: waits for the child.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0);
    }

    fn expect(what: &str, clock: i32, before: u64) -> Result<(), String> {
        let (first, seen, last) = (by_call(clock), read(clock), by_call(clock));
        match (first + before..=last + before).contains(&seen) {
            true => Ok(()),
            false => Err(format!(
                "{what}: {seen} is not {first} to {last} and {before}"
            )),
        }
    }

    fn adds() -> Result<(), String> {
        let (start, image) = own();
        let me = std::process::id().cast_signed();
        let clocks = [
            (Whose::Process(me), 100 * SECOND + 500 * PART),
            (Whose::Thread(me), 50 * SECOND + 511 * PART),
        ];
        let mem = ProcMem::open(Pid(me)).unwrap();
        for (at, bytes) in Plan::of(&image)
            .and_then(|plan| plan.pieces(&clocks))
            .ok_or("no room")?
        {
            mem.write(start + at as u64, &bytes).unwrap();
        }
        let (process, thread) = (clocks[0].1, clocks[1].1);
        for _ in 0..2000 {
            expect("process", libc::CLOCK_PROCESS_CPUTIME_ID, process)?;
            expect("thread", libc::CLOCK_THREAD_CPUTIME_ID, thread)?;
            expect("a process", !me << 3 | 2, process)?;
            expect("a thread", !me << 3 | 6, thread)?;
            expect("this process", !0 << 3 | 2, process)?;
            expect("this thread", !0 << 3 | 6, thread)?;
            // Its user time is another clock.
            expect("user time", !me << 3 | 1, 0)?;
            expect("a clock of all", libc::CLOCK_MONOTONIC, 0)?;
            expect("a clock that is called for", libc::CLOCK_MONOTONIC_RAW, 0)?;
        }
        if nix::time::clock_gettime(nix::time::ClockId::from_raw(99)).is_ok() {
            return Err("there is no such clock".into());
        }
        let other = || expect("another thread", libc::CLOCK_THREAD_CPUTIME_ID, 0);
        std::thread::spawn(other).join().map_err(|_| "panic")??;
        // SAFETY: as in `in_child`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let own = expect("a child", libc::CLOCK_PROCESS_CPUTIME_ID, 0)
                .and_then(|()| expect("its thread", libc::CLOCK_THREAD_CPUTIME_ID, 0));
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(own.is_err())) };
        }
        let mut status = 0;
        // SAFETY: waits for the child.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        (status == 0)
            .then_some(())
            .ok_or("a child has it, too".into())
    }

    #[test]
    fn only_its_own_clocks_go_on() {
        in_child(adds);
    }
}
