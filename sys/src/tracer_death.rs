//! The tracer dies before and after each of its requests, and its tracee does not notice.

use crate::batch::Batch;
use crate::gate::{self, Gate, ReturnSlot};
use crate::ptrace::{self, death};
use crate::regs::restart;
use crate::tracee::{Foothold, Tracee};
use crate::vm::ProcMem;
use crate::{Pid, Remaining, Tid, process, wait};
use core::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SLEEP: Duration = Duration::from_millis(30);
/// Tracers that may come during a sleep: one gives it a millisecond.
const MOST: u64 = 40;
/// What a tracer ends with that came to its end.
const DONE: i32 = 0;

fn map(pid: Pid, wanted: impl Fn(&str) -> bool) -> Option<Range<u64>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let line = maps.lines().find(|line| wanted(line))?;
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    Some(number(start)..number(end))
}

fn code(pid: Pid, range: &Range<u64>) -> Vec<u8> {
    let len = (range.end - range.start) as usize;
    ProcMem::open(pid)
        .unwrap()
        .read_vec(range.start, len)
        .unwrap()
}

/// Gates of both kinds there are in this process, and its restorer.
fn footholds(pid: Pid) -> Vec<(Gate, u64)> {
    let vdso = map(pid, |line| line.ends_with("[vdso]")).unwrap();
    // The C library is part of the program.
    let libc = map(pid, |line| line.contains(" r-xp ")).unwrap();
    let libc_code = code(pid, &libc);
    let restorer = gate::restorer(&libc_code, libc.start).unwrap();
    let vdso_code = code(pid, &vdso);
    let all: Vec<_> = gate::gates(&vdso_code, vdso.start)
        .chain(gate::gates(&libc_code, libc.start))
        .collect();
    let mut found: Vec<Gate> = Vec::new();
    found.extend(
        all.iter()
            .find(|gate| matches!(gate.slot, ReturnSlot::Stack(_))),
    );
    found.extend(
        all.iter()
            .find(|gate| matches!(gate.slot, ReturnSlot::Frame(_))),
    );
    found.into_iter().map(|gate| (gate, restorer)).collect()
}

/// What a tracer does: maps room, has all threads run a batch side by side, twice, unmaps.
fn trace(pid: Pid, gate: Gate, restorer: u64, sleeps_in: i64, mute: bool, limit: i64) -> i32 {
    death::LEFT.store(limit, Ordering::Relaxed);
    let tids = threads(pid);
    let mut tracees: Vec<_> = tids.iter().map(|tid| stop(pid, *tid, sleeps_in)).collect();
    if mute {
        tracees.iter_mut().for_each(Tracee::set_mute);
    }
    let first = &mut tracees[0];
    // Below the red zone.
    let free_below = first.regs().unwrap().rsp - 128;
    first.set_foothold(Foothold {
        gate,
        restorer,
        free_below,
    });
    let scratch = first.map_scratch(0, 4096).unwrap();
    for other in &mut tracees[1..] {
        other.adopt_scratch(scratch, true).unwrap();
    }
    for _ in 0..2 {
        let mut batch = Batch::new();
        let asked = batch.call("getpid", libc::SYS_getpid, []);
        let begin = |(seat, tracee): (usize, &mut Tracee)| tracee.begin(&batch, seat).unwrap();
        let running: Vec<_> = tracees.iter_mut().enumerate().map(begin).collect();
        for (tracee, running) in tracees.iter_mut().zip(running) {
            let out = tracee.end(&batch, &running).unwrap();
            assert_eq!(out.result(asked), Ok(pid.0 as u64));
        }
    }
    tracees[0].unmap_scratch(0).unwrap();
    for tid in tids {
        ptrace::detach(tid, 0).unwrap();
    }
    DONE
}

fn threads(pid: Pid) -> Vec<Tid> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let number = |task: std::fs::DirEntry| task.file_name().to_str()?.parse().ok();
    let mut tids: Vec<_> = tasks.flatten().filter_map(number).map(Tid).collect();
    tids.sort();
    tids
}

fn stop(pid: Pid, tid: Tid, sleeps_in: i64) -> Tracee {
    ptrace::seize(tid, ptrace::options::TRACESYSGOOD).unwrap();
    ptrace::interrupt(tid).unwrap();
    wait::wait_for(tid).unwrap();
    let mut tracee = Tracee::new(pid, tid).unwrap();
    let interrupted = tracee.regs().unwrap().interrupted_syscall();
    if interrupted.is_some_and(|(_, result)| result == -restart::ERESTART_RESTARTBLOCK) {
        // Tracers come more often than sleeps end: what is given here must not add up.
        tracee.set_remaining(Some(Remaining {
            nr: sleeps_in,
            ns: 1_000_000,
        }));
    }
    tracee.set_marker(libc::SIGURG);
    tracee
}

struct Subject(Pid);

impl Subject {
    fn start(body: fn() -> i32) -> Subject {
        Subject(process::spawn(0, &[], body).unwrap())
    }
    /// How it ended, if it did.
    fn ended(&self) -> Option<wait::Status> {
        wait::poll(self.0.leader()).unwrap()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = process::kill(self.0, libc::SIGKILL);
        let _ = wait::wait_for(self.0.leader());
    }
}

thread_local! {
    /// How many tracers have come, for the subject to see.
    static COME: &'static AtomicU64 = {
        // SAFETY: fresh zeroed memory, which stays.
        unsafe {
            let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            let kind = kind | libc::MAP_ANONYMOUS;
            let page = libc::mmap(core::ptr::null_mut(), 4096, rights, kind, -1, 0);
            assert_ne!(page, libc::MAP_FAILED);
            &*page.cast()
        }
    };
}

fn come() -> u64 {
    COME.with(|come| come.load(Ordering::Relaxed))
}

/// Lets tracers die at every moment of their lives.
fn survive(sleeps_in: i64, body: fn() -> i32) {
    // Before it is forked.
    assert_eq!(come(), 0);
    let subject = Subject::start(body);
    std::thread::sleep(Duration::from_millis(20));
    let footholds = footholds(subject.0);
    assert!(!footholds.is_empty());
    let ways = footholds
        .into_iter()
        .flat_map(|way| [(way, false), (way, true)]);
    for ((gate, restorer), mute) in ways {
        for limit in 0.. {
            let pid = subject.0;
            COME.with(|come| come.fetch_add(1, Ordering::Relaxed));
            let tracer = process::spawn(0, &[], || {
                trace(pid, gate, restorer, sleeps_in, mute, limit)
            })
            .unwrap();
            let end = wait::wait_for(tracer.leader()).unwrap();
            std::thread::sleep(Duration::from_millis(3));
            assert_eq!(subject.ended(), None, "at moment {limit} ({gate:x?})");
            if end == wait::Status::Exited(DONE) {
                assert!(limit > 50, "it did nothing");
                break;
            }
            assert_eq!(end, wait::Status::Exited(77), "at moment {limit}");
        }
    }
    // A sleep that began under the last tracer must end well, too.
    std::thread::sleep(10 * SLEEP);
    assert_eq!(subject.ended(), None);
}

#[test]
fn registers_survive() {
    survive(0, || {
        loop {
            let ok: u64;
            // SAFETY: changes no memory and only registers that are named.
            unsafe {
                core::arch::asm!(
                    "mov r8, 0x1111111111111111",
                    "mov r9, 0x2222222222222222",
                    "mov r10, 0x3333333333333333",
                    "mov r12, 0x4444444444444444",
                    "mov r15, 0x5555555555555555",
                    "movq xmm3, r8",
                    "movq xmm9, r9",
                    // Below the stack pointer, in the red zone.
                    "mov [rsp - 8], r8",
                    "mov [rsp - 128], r9",
                    "mov rcx, 20000",
                    "2: dec rcx",
                    "jnz 2b",
                    "xor eax, eax",
                    "cmp r8, [rsp - 8]",
                    "jne 3f",
                    "cmp r9, [rsp - 128]",
                    "jne 3f",
                    "movq r11, xmm3",
                    "cmp r11, r8",
                    "jne 3f",
                    "movq r11, xmm9",
                    "cmp r11, r9",
                    "jne 3f",
                    "mov r11, 0x1111111111111111",
                    "cmp r8, r11",
                    "jne 3f",
                    "mov r11, 0x4444444444444444",
                    "cmp r12, r11",
                    "jne 3f",
                    "mov r11, 0x5555555555555555",
                    "cmp r15, r11",
                    "jne 3f",
                    "mov eax, 1",
                    "3:",
                    out("rax") ok, out("rcx") _, out("r8") _, out("r9") _, out("r10") _,
                    out("r11") _, out("r12") _, out("r15") _, out("xmm3") _, out("xmm9") _,
                );
            }
            if ok != 1 {
                return 1;
            }
        }
    });
}

#[test]
fn threads_that_run_side_by_side_survive() {
    // Goes round with a number in a register; ends the process when it is another one.
    macro_rules! go_round {
        ($number:literal) => {{
            // SAFETY: changes no memory and only registers that are named.
            unsafe {
                core::arch::asm!(
                    concat!("mov r12, ", $number),
                    "2: mov rcx, 20000",
                    "3: dec rcx",
                    "jnz 3b",
                    concat!("cmp r12, ", $number),
                    "je 2b",
                    out("rcx") _, out("r12") _,
                );
            }
            // SAFETY: ends the process.
            unsafe { libc::_exit($number) }
        }};
    }
    survive(0, || {
        std::thread::spawn(|| go_round!(11));
        std::thread::spawn(|| go_round!(12));
        go_round!(13)
    });
}

/// Fails when a sleep fails or is too long.
fn timed(wait: impl Fn() -> bool) -> i32 {
    loop {
        let before = come();
        if !wait() {
            return 2;
        }
        if come() - before > MOST {
            return 3;
        }
    }
}

#[test]
fn nanosleep_survives() {
    survive(libc::SYS_clock_nanosleep, || {
        timed(|| {
            let request = libc::timespec {
                tv_sec: 0,
                tv_nsec: SLEEP.as_nanos() as i64,
            };
            // SAFETY: the request is live.
            unsafe { libc::nanosleep(&raw const request, core::ptr::null_mut()) == 0 }
        })
    });
}

#[test]
fn poll_survives() {
    survive(libc::SYS_poll, || {
        timed(|| {
            // SAFETY: no descriptors.
            unsafe { libc::poll(core::ptr::null_mut(), 0, SLEEP.as_millis() as i32) == 0 }
        })
    });
}

#[test]
fn blocked_signals_stay_blocked_and_handlers_stay() {
    extern "C" fn handler(_: i32) {}
    survive(0, || {
        let action = handler as extern "C" fn(i32) as usize;
        // SAFETY: the handler does nothing; the sets are live.
        unsafe {
            libc::signal(libc::SIGTRAP, action);
            let mut set: libc::sigset_t = core::mem::zeroed();
            libc::sigaddset(&raw mut set, libc::SIGTRAP);
            libc::sigaddset(&raw mut set, libc::SIGUSR1);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const set, core::ptr::null_mut());
            loop {
                let mut now: libc::sigset_t = core::mem::zeroed();
                libc::sigprocmask(0, core::ptr::null(), &raw mut now);
                let blocked: Vec<i32> = (1..64)
                    .filter(|n| libc::sigismember(&raw const now, *n) == 1)
                    .collect();
                if blocked != [libc::SIGTRAP, libc::SIGUSR1] {
                    return 4;
                }
                let mut found: libc::sigaction = core::mem::zeroed();
                libc::sigaction(libc::SIGTRAP, core::ptr::null(), &raw mut found);
                if found.sa_sigaction != action {
                    return 5;
                }
            }
        }
    });
}
