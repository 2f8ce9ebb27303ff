//! Threads that go on in a call and are to sleep in it again before others go on.
//!
//! Who waits for the same thing has its turn in the order in which it came to wait, and a program that runs must not
//! find that somebody does not wait who did.

use crate::procdir;
use crate::regs::{Regs, restart};
use crate::vm::ProcMem;
use crate::{Pid, Tid};
use nix::fcntl::OFlag;
use nix::sched::sched_yield;
use nix::time::ClockId;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// How long a thread may run until it sleeps.
const EACH: Duration = Duration::from_millis(15);
/// How long all may take together, and what more each has that waits in line.
const WITHIN: Duration = Duration::from_millis(300);
const LINED_UP: Duration = Duration::from_millis(3);
/// And that together.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How often another thread is given the processor before this one sleeps for a moment.
const YIELDS: usize = 20;
/// How many threads may wait in one line for their order to be kept: it takes a moment for each.
const LONGEST: usize = 100;

const FUTEX: i64 = 202;
const RESTART_SYSCALL: i64 = 219;
const CLOCK_NANOSLEEP: i64 = 230;
const MQ_TIMEDSEND: i64 = 242;
const MQ_TIMEDRECEIVE: i64 = 243;
const FUTEX_WAITV: i64 = 449;
const FUTEX_WAIT: i64 = 455;

/// A stopped thread that is about to be let go, seen from outside.
#[derive(Debug)]
pub struct Asleep {
    pid: Pid,
    tid: Tid,
    /// `/proc/PID/task/TID/stat`. None when it is gone.
    stat: Option<File>,
}

impl Asleep {
    /// One thread of a process.
    #[must_use]
    pub fn of(pid: Pid, tid: Tid) -> Asleep {
        let stat = open(pid, tid, "stat");
        Asleep { pid, tid, stat }
    }

    /// Whether it sleeps, is stopped with its job, or has ended.
    #[must_use]
    pub fn is(&self) -> bool {
        self.state()
            .is_none_or(|state| matches!(state, b'S' | b'T' | b'Z' | b'X'))
    }

    /// The letter that proc(5) has for what it does; None when it is gone.
    fn state(&self) -> Option<u8> {
        let text = self.stat.as_ref().and_then(read)?;
        // Behind the name, which may hold anything and is short (proc(5)).
        let name_ends = text.iter().rposition(|byte| *byte == b')')?;
        text.get(name_ends + 2).copied()
    }

    /// Waits for that, until `end` at most and not for long when it runs. False when it does not sleep by then: what
    /// it waited for is there.
    pub fn wait_until(&self, end: Instant) -> bool {
        for _ in 0..YIELDS {
            if self.is() {
                return true;
            }
            // The call always succeeds.
            let _ = sched_yield();
        }
        // On a busy host it gets no processor for a while, and so it is asked how long it ran itself.
        let runs = open(self.pid, self.tid, "schedstat");
        let has_run = || runs.as_ref().and_then(read).as_deref().and_then(run_time);
        let (before, begun) = (has_run(), Instant::now());
        let mut blocked = None;
        while !self.is() {
            let now = Instant::now();
            // Who waits for what cannot be interrupted (a disk, a child in vfork) runs no longer, and may do so for long.
            blocked = (self.state() == Some(b'D')).then(|| blocked.unwrap_or(now));
            let ran = before.and_then(|before| Some(has_run()?.saturating_sub(before)));
            let ran = ran.unwrap_or_else(|| now - begun);
            if now > end || ran > EACH || blocked.is_some_and(|since| now - since > EACH) {
                return false;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        true
    }
}

/// How long all those that wait may take until they do so again, `in_line` of them one after the other.
#[must_use]
pub fn within(in_line: usize) -> Duration {
    let more =
        u32::try_from(in_line).map_or(LONGEST_WAIT, |threads| LINED_UP.saturating_mul(threads));
    WITHIN.saturating_add(more).min(LONGEST_WAIT)
}

/// What the first number of `/proc/PID/task/TID/schedstat` tells: how long a thread ran.
fn run_time(text: &[u8]) -> Option<Duration> {
    let first = text.split(|byte| *byte == b' ').next()?;
    let nanoseconds = core::str::from_utf8(first).ok()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}

fn open(pid: Pid, tid: Tid, what: &str) -> Option<File> {
    procdir::open(pid, &format!("task/{tid}/{what}"), OFlag::O_RDONLY).ok()
}

fn read(file: &File) -> Option<Vec<u8>> {
    let mut text = [0; 64];
    let len = file.read_at(&mut text, 0).ok()?;
    Some(text[..len].to_vec())
}

/// Whether a stopped thread with these registers makes its call again when it goes on.
#[must_use]
pub fn is_made_again(regs: &Regs) -> bool {
    let codes = [
        restart::ERESTARTSYS,
        restart::ERESTARTNOINTR,
        restart::ERESTARTNOHAND,
        restart::ERESTART_RESTARTBLOCK,
    ];
    let interrupted = regs.interrupted_syscall();
    interrupted.is_some_and(|(_, result)| codes.contains(&-result))
}

/// When the call of a thread with these registers ends at the latest: by which clock, and its nanoseconds. None where
/// that is not what its arguments tell.
#[must_use]
pub fn ends_at<'a>(
    regs: &Regs,
    mem: impl FnOnce() -> Option<&'a ProcMem>,
) -> Option<(ClockId, i64)> {
    let (clock, at) = absolute(regs).filter(|(_, at)| *at != 0)?;
    let mem = mem()?;
    let (seconds, rest) = (mem.read_u64(at).ok()?, mem.read_u64(at + 8).ok()?);
    let whole = seconds.cast_signed().saturating_mul(1_000_000_000);
    Some((clock, whole.saturating_add(rest.cast_signed())))
}

/// The clock of a call's absolute time-out, and the address of that.
fn absolute(regs: &Regs) -> Option<(ClockId, u64)> {
    const TIMER_ABSTIME: u64 = 1;
    const COMMAND: u64 = 0x7f;
    const REALTIME: u64 = 256;
    const LOCK_PI: u64 = 6;
    let clock = |number: u64| ClockId::from_raw(number as i32);
    let (nr, _) = regs.interrupted_syscall()?;
    match nr {
        CLOCK_NANOSLEEP if regs.rsi & TIMER_ABSTIME != 0 => Some((clock(regs.rdi), regs.rdx)),
        // FUTEX_WAIT_BITSET, FUTEX_WAIT_REQUEUE_PI, FUTEX_LOCK_PI2
        FUTEX => match regs.rsi & COMMAND {
            9 | 11 | 13 if regs.rsi & REALTIME == 0 => Some((ClockId::CLOCK_MONOTONIC, regs.r10)),
            LOCK_PI | 9 | 11 | 13 => Some((ClockId::CLOCK_REALTIME, regs.r10)),
            _ => None,
        },
        MQ_TIMEDSEND | MQ_TIMEDRECEIVE => Some((ClockId::CLOCK_REALTIME, regs.r8)),
        FUTEX_WAITV => Some((clock(regs.r8), regs.r10)),
        FUTEX_WAIT => Some((clock(regs.r9), regs.r8)),
        _ => None,
    }
}

/// What has the threads that wait for the same thing come to their turn one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// A futex: where in its page, since processes may have it at different addresses.
    Futex(u64),
    /// A semaphore set, or a queue of messages, by its id; the second tells them apart.
    SystemV(u64, bool),
    /// Something that has a descriptor, for calls that wait for the same to happen to it.
    File(Happens),
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Happens {
    /// There is something to be had.
    Input,
    /// There is room.
    Output,
    /// A file that is watched tells of something.
    Event,
    /// A lock is free.
    Lock,
}

impl Line {
    /// Whether it is one of a process's memory alone, for a thread with these registers.
    #[must_use]
    pub fn is_private(self, regs: &Regs) -> bool {
        // FUTEX_PRIVATE_FLAG
        let futex = regs
            .interrupted_syscall()
            .is_some_and(|(nr, _)| nr == FUTEX);
        matches!(self, Line::Futex(_)) && futex && regs.rsi & 128 != 0
    }

    /// The line that a thread with these registers waits in. Threads of different lines never wait for the same
    /// thing; those of one may.
    #[must_use]
    pub fn of(regs: &Regs) -> Option<Line> {
        const PAGE: u64 = 4096;
        let (nr, _) = regs.interrupted_syscall()?;
        Some(match nr {
            FUTEX | FUTEX_WAIT | RESTART_SYSCALL => Line::Futex(regs.rdi % PAGE),
            // semop, semtimedop
            65 | 220 => Line::SystemV(regs.rdi, false),
            // msgsnd, msgrcv
            69 | 70 => Line::SystemV(regs.rdi, true),
            // read, readv, accept, accept4, recvfrom, recvmsg, recvmmsg
            0 | 19 | 43 | 288 | 45 | 47 | 299 | MQ_TIMEDRECEIVE => Line::File(Happens::Input),
            // write, writev, connect, sendto, sendmsg, sendmmsg
            1 | 20 | 42 | 44 | 46 | 307 | MQ_TIMEDSEND => Line::File(Happens::Output),
            // epoll_wait, epoll_pwait, epoll_pwait2
            232 | 281 | 441 => Line::File(Happens::Event),
            // fcntl, flock
            72 | 73 => Line::File(Happens::Lock),
            _ => return None,
        })
    }
}

/// Those of threads and their lines that are to begin to wait one after the other, since others may wait for the same.
#[must_use]
pub fn in_line<L: Ord>(threads: impl Iterator<Item = (Tid, Option<L>)>) -> BTreeSet<Tid> {
    let mut lines: BTreeMap<L, Vec<Tid>> = BTreeMap::new();
    for (tid, line) in threads {
        if let Some(line) = line {
            lines.entry(line).or_default().push(tid);
        }
    }
    let several = lines
        .into_values()
        .filter(|line| (2..=LONGEST).contains(&line.len()));
    several.flatten().collect()
}

/// By what threads are sorted to go on: who waits in line comes behind the others, by the time `since` which it does so.
/// What comes meanwhile for a process is that of its `leader`.
#[must_use]
pub fn place(in_line: bool, leader: bool, since: Option<u64>) -> (bool, u64) {
    match in_line {
        false => (false, u64::from(!leader)),
        true => (true, since.unwrap_or(u64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::ProcMem;

    #[test]
    fn who_waits_in_line_comes_last_and_by_its_time() {
        let mut threads = [
            (1, true, false, None),
            (2, true, true, Some(9)),
            (3, true, false, Some(7)),
            (4, false, false, Some(1)),
            (5, false, true, None),
        ];
        threads.sort_by_key(|(_, in_line, leader, since)| place(*in_line, *leader, *since));
        assert_eq!(threads.map(|(number, ..)| number), [5, 4, 3, 2, 1]);
    }

    #[test]
    fn who_ran_and_how_long_they_may_take() {
        assert_eq!(
            run_time(b"15000001 77 3\n"),
            Some(Duration::from_nanos(15_000_001))
        );
        assert_eq!(run_time(b""), None);
        assert_eq!(within(0), WITHIN);
        assert_eq!(within(10), WITHIN + 10 * LINED_UP);
        assert_eq!(within(usize::MAX), LONGEST_WAIT);
        assert_eq!(within(1_000_000), LONGEST_WAIT);
    }

    fn call(nr: i64, rdi: u64) -> Regs {
        Regs {
            orig_rax: nr.cast_unsigned(),
            rax: (-restart::ERESTARTSYS).cast_unsigned(),
            rdi,
            ..Regs::default()
        }
    }

    #[test]
    fn who_waits_alone_is_in_no_line() {
        let calls = [
            call(FUTEX, 0x1008),
            call(FUTEX, 0x7008),
            call(FUTEX, 0x1010),
            call(61, 3),
        ];
        let all = (1..).map(Tid).zip(calls.iter().map(Line::of));
        assert_eq!(in_line(all), [1, 2].map(Tid).into());
        let many = (0..)
            .map(Tid)
            .zip((0..=LONGEST).map(|_| Line::of(&calls[0])));
        assert!(in_line(many).is_empty());
    }

    #[test]
    fn a_point_in_time_is_read_where_the_call_has_it() {
        let point = [5_u64, 7];
        let own = Pid(std::process::id().cast_signed());
        let mem = ProcMem::open(own).unwrap();
        let regs = Regs {
            rsi: 1,
            rdx: (&raw const point) as u64,
            ..call(CLOCK_NANOSLEEP, 1)
        };
        let end = Some((ClockId::CLOCK_MONOTONIC, 5_000_000_007));
        assert!(is_made_again(&regs));
        assert_eq!(ends_at(&regs, || Some(&mem)), end);
        assert_eq!(ends_at(&Regs { rsi: 0, ..regs }, || Some(&mem)), None);
    }

    #[test]
    fn who_runs_is_not_waited_for() {
        let own = Pid(std::process::id().cast_signed());
        let me = Tid(nix::unistd::gettid().as_raw());
        let begun = Instant::now();
        assert!(!Asleep::of(own, me).wait_until(begun + Duration::from_secs(5)));
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert!(Asleep::of(own, Tid(i32::MAX)).wait_until(begun));
    }
    #[test]
    fn who_waits_in_vfork_is_not_waited_for() {
        let (send, tid) = std::sync::mpsc::channel();
        let parent = std::thread::spawn(move || {
            send.send(nix::unistd::gettid().as_raw()).unwrap();
            let flags = libc::c_long::from(libc::CLONE_VFORK | libc::SIGCHLD);
            // SAFETY: the child has a copy of this memory, and makes only calls that may be made between fork and exec.
            unsafe {
                let child = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
                if child == 0 {
                    libc::usleep(1_500_000);
                    libc::_exit(0);
                }
                assert_eq!(
                    libc::waitpid(child as i32, core::ptr::null_mut(), 0),
                    child as i32
                );
            }
        });
        let thread = Asleep::of(
            Pid(std::process::id().cast_signed()),
            Tid(tid.recv().unwrap()),
        );
        while thread.state() != Some(b'D') {
            std::thread::sleep(Duration::from_millis(1));
        }
        let begun = Instant::now();
        assert!(!thread.wait_until(begun + Duration::from_secs(5)));
        assert!(begun.elapsed() < Duration::from_secs(1));
        parent.join().unwrap();
    }
}
