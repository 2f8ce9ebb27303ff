//! What the kernel keeps of a sleep that was interrupted: `task_struct.restart_block`
//! (include/linux/restart_block.h), from which `restart_syscall(2)` goes on with it.
//!
//! It names the moment at which the sleep ends, however often it was interrupted.

use crate::kernel::{self, Kernel, Unreadable, half, word};
use nix::time::ClockId;
use std::collections::BTreeMap;
use sys::regs::Regs;
use sys::{Pid, Tid};

const POLL: i64 = 7;
const NANOSLEEP: i64 = 35;
const FUTEX: i64 = 202;
const CLOCK_NANOSLEEP: i64 = 230;
const CLOCK_MONOTONIC: i32 = 1;
const CLOCK_PROCESS_CPUTIME_ID: i32 = 2;
const OWN_PROCESS: i32 = !0 << 3 | CLOCK_PROCESS_CPUTIME_ID;
const CLOCK_BOOTTIME: i32 = 7;
const CLOCK_TAI: i32 = 11;
/// `TT_NATIVE`: what remains was written to where the caller said.
const NATIVE: u32 = 1;

/// Where things are in `struct restart_block`.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// In `task_struct`.
    block: u64,
    size: u64,
    function: u64,
    futex_time: u64,
    clock: u64,
    kind: u64,
    rest: u64,
    expires: u64,
    has_timeout: u64,
    /// Seconds, nanoseconds.
    poll_end: [u64; 2],
}

impl Layout {
    fn of(kernel: &Kernel) -> Result<Layout, Unreadable> {
        let btf = kernel.btf();
        let block = |path: &str| Ok(btf.field("restart_block", path)?.offset);
        // Two words, or a structure since Linux 6.19.
        let poll = |word: &str| {
            block(&format!("poll.{word}")).or_else(|_| block(&format!("poll.end_time.{word}")))
        };
        Ok(Layout {
            block: btf.field("task_struct", "restart_block")?.offset,
            size: btf.size_of("restart_block")?,
            function: block("fn")?,
            futex_time: block("futex.time")?,
            clock: block("nanosleep.clockid")?,
            kind: block("nanosleep.type")?,
            rest: block("nanosleep.rmtp")?,
            expires: block("nanosleep.expires")?,
            has_timeout: block("poll.has_timeout")?,
            poll_end: [poll("tv_sec")?, poll("tv_nsec")?],
        })
    }
}

/// The kinds of calls that are gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Sleep,
    /// On a clock of the processor's time.
    ProcessorSleep,
    Poll,
    Futex,
}

/// Names of the functions that go on with them.
const FUNCTIONS: [(&str, Function); 4] = [
    ("hrtimer_nanosleep_restart", Function::Sleep),
    ("posix_cpu_nsleep_restart", Function::ProcessorSleep),
    ("do_restart_poll", Function::Poll),
    ("futex_wait_restart", Function::Futex),
];

/// What is kept for one thread.
#[derive(Debug)]
pub(super) struct Block {
    layout: Layout,
    bytes: Vec<u8>,
    /// What to add to this process's reading of CLOCK_MONOTONIC and CLOCK_BOOTTIME to have the first
    /// time namespace's.
    offsets: [i64; 2],
}

/// How long a sleep still lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nanoseconds.
    Time(u64),
    /// Nanoseconds of a process's time on the processor.
    Processor(u64),
    Forever,
}

/// Whether what is kept can be read at all.
pub(crate) fn is_readable() -> bool {
    kernel::look(|kernel| {
        kernel.tasks(&[])?;
        kernel.clock_offsets()?;
        Layout::of(kernel)
    })
    .is_ok()
}

impl Block {
    /// Of threads that were interrupted, and have done nothing since; of all of them in one go.
    pub(super) fn read(tids: &[Tid]) -> Result<BTreeMap<Tid, Block>, Unreadable> {
        if tids.is_empty() {
            return Ok(BTreeMap::new());
        }
        kernel::look(|kernel| {
            let layout = Layout::of(kernel)?;
            let offsets = kernel.clock_offsets()?;
            let tasks = kernel.tasks(tids)?;
            let place = |task: u64| (task.wrapping_add(layout.block), layout.size as usize);
            let places: Vec<_> = tasks
                .iter()
                .map(|task| task.map_or((0, 0), place))
                .collect();
            let read = kernel.read(&places)?;
            let found = tids.iter().zip(tasks).zip(read);
            let block = |((tid, task), bytes): ((&Tid, Option<u64>), Option<Vec<u8>>)| {
                let bytes = bytes.filter(|_| task.is_some())?;
                let block = Block {
                    layout,
                    bytes,
                    offsets,
                };
                Some((*tid, block))
            };
            Ok(found.filter_map(block).collect())
        })
    }

    /// Which call goes on when that is not seen from outside any more, by the function that goes on with it.
    pub(super) fn call(&self, regs: &Regs) -> Option<i64> {
        let function = word(&self.bytes, self.layout.function)?;
        let found = kernel::look(|kernel| {
            let is = |(name, _): &&(&'static str, Function)| kernel.symbol(name) == Some(function);
            Ok(FUNCTIONS.iter().find(is).map(|(_, kind)| *kind))
        });
        match found.ok()?? {
            Function::Poll => Some(POLL),
            Function::Futex => Some(FUTEX),
            Function::Sleep => self.sleep(regs),
            Function::ProcessorSleep => Some(CLOCK_NANOSLEEP),
        }
    }

    /// nanosleep(2) or clock_nanosleep(2): they differ in where their arguments are.
    fn sleep(&self, regs: &Regs) -> Option<i64> {
        let clock = half(&self.bytes, self.layout.clock)?.cast_signed();
        if half(&self.bytes, self.layout.kind)? == NATIVE {
            let rest = word(&self.bytes, self.layout.rest)?;
            return match (regs.rsi == rest, regs.r10 == rest) {
                (true, false) => Some(NANOSLEEP),
                (false, true) => Some(CLOCK_NANOSLEEP),
                _ => None,
            };
        }
        match clock {
            // Where both are possible both do the same: no flags are no place for what remains.
            CLOCK_MONOTONIC if regs.rsi == 0 => Some(NANOSLEEP),
            CLOCK_BOOTTIME | CLOCK_TAI => Some(CLOCK_NANOSLEEP),
            _ => None,
        }
    }

    /// What remains of a call with this number. None for calls that are not known from here.
    pub(super) fn left(&self, pid: Pid, nr: i64, regs: &Regs) -> Option<Left> {
        let word = |at| word(&self.bytes, at).map(u64::cast_signed);
        match nr {
            POLL if half(&self.bytes, self.layout.has_timeout)? == 0 => Some(Left::Forever),
            POLL => {
                let [seconds, rest] = self.layout.poll_end.map(word);
                let end = seconds?.saturating_mul(1_000_000_000).saturating_add(rest?);
                self.until(CLOCK_MONOTONIC, end)
            }
            FUTEX => self.until(CLOCK_MONOTONIC, word(self.layout.futex_time)?),
            NANOSLEEP => self.until(CLOCK_MONOTONIC, word(self.layout.expires)?),
            CLOCK_NANOSLEEP => {
                let end = word(self.layout.expires)?;
                match regs.rdi as i32 {
                    // A relative sleep is no matter of what time it is (hrtimer_setup_sleeper).
                    0 | CLOCK_MONOTONIC => self.until(CLOCK_MONOTONIC, end),
                    clock @ (CLOCK_BOOTTIME | CLOCK_TAI) => self.until(clock, end),
                    // A number of process 0 means who asks; the C library uses that.
                    CLOCK_PROCESS_CPUTIME_ID | OWN_PROCESS => {
                        // clock_getcpuclockid(3)
                        let clock = ClockId::from_raw(!pid.0 << 3 | 2);
                        let now = sys::clock::read_ns(clock).ok()?;
                        Some(Left::Processor(u64::try_from(end - now).unwrap_or(0)))
                    }
                    clock if clock < 0 => {
                        let left = end - processor_time(pid, clock)?;
                        Some(Left::Processor(u64::try_from(left).unwrap_or(0)))
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn until(&self, clock: i32, end: i64) -> Option<Left> {
        let here = sys::clock::read_ns(ClockId::from_raw(clock)).ok()?;
        let offset = match clock {
            CLOCK_MONOTONIC => self.offsets[0],
            CLOCK_BOOTTIME => self.offsets[1],
            _ => 0,
        };
        let left = end.saturating_sub(here.saturating_add(offset));
        Some(Left::Time(u64::try_from(left).unwrap_or(0)))
    }
}

/// What a clock of another task tells a process, in nanoseconds: its time on the processor
/// (include/linux/posix-timers.h, `CPUCLOCK_PID`). None for those that count ticks.
fn processor_time(pid: Pid, clock: i32) -> Option<i64> {
    const SCHEDULED: i32 = 2;
    const OF_THREAD: i32 = 4;
    if clock & 3 != SCHEDULED {
        return None;
    }
    if clock & OF_THREAD == 0 {
        return sys::clock::read_ns(ClockId::from_raw(clock)).ok();
    }
    let time = super::process::thread_time(pid, Tid(!(clock >> 3)))?;
    i64::try_from(time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(layout: &[(u64, u64)]) -> Block {
        let mut bytes = vec![0; 56];
        for (at, value) in layout {
            let at = *at as usize;
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        Block {
            layout: Layout {
                block: 0,
                size: 56,
                function: 8,
                futex_time: 40,
                clock: 16,
                kind: 20,
                rest: 24,
                expires: 32,
                has_timeout: 28,
                poll_end: [32, 40],
            },
            bytes,
            offsets: [0, 0],
        }
    }

    fn monotonic() -> u64 {
        sys::clock::read_ns(ClockId::CLOCK_MONOTONIC)
            .unwrap()
            .cast_unsigned()
    }

    #[test]
    fn what_remains_is_the_time_until_the_end() {
        let end = monotonic() + 5_000_000_000;
        let about_five = |left: Option<Left>| match left {
            Some(Left::Time(left)) => (4_000_000_000..=5_000_000_000).contains(&left),
            _ => false,
        };
        let regs = Regs {
            rdi: 1,
            ..Regs::default()
        };
        let sleep = block(&[(32, end)]);
        assert!(about_five(sleep.left(Pid(1), NANOSLEEP, &regs)));
        assert!(about_five(sleep.left(Pid(1), CLOCK_NANOSLEEP, &regs)));
        let poll = block(&[
            (24, 1 << 32),
            (32, end / 1_000_000_000),
            (40, end % 1_000_000_000),
        ]);
        assert!(about_five(poll.left(Pid(1), POLL, &regs)));
        assert!(about_five(block(&[(40, end)]).left(Pid(1), FUTEX, &regs)));
        let past = block(&[(32, 1)]).left(Pid(1), NANOSLEEP, &regs);
        assert_eq!(past, Some(Left::Time(0)));
        assert_eq!(block(&[]).left(Pid(1), POLL, &regs), Some(Left::Forever));
        assert_eq!(block(&[]).left(Pid(1), 0, &regs), None);
    }

    #[test]
    fn sleeps_are_told_apart_by_where_their_arguments_are() {
        let native = |rest: u64| block(&[(16, 1 | 1 << 32), (24, rest)]);
        let regs = Regs {
            rsi: 0x7000,
            r10: 0x8000,
            ..Regs::default()
        };
        assert_eq!(native(0x7000).sleep(&regs), Some(NANOSLEEP));
        assert_eq!(native(0x8000).sleep(&regs), Some(CLOCK_NANOSLEEP));
        assert_eq!(native(0x9000).sleep(&regs), None);
        let without = |clock| block(&[(16, clock)]);
        assert_eq!(without(1).sleep(&Regs::default()), Some(NANOSLEEP));
        assert_eq!(without(7).sleep(&Regs::default()), Some(CLOCK_NANOSLEEP));
        assert_eq!(without(1).sleep(&regs), None);
    }

    #[test]
    fn a_stopped_sleeper_is_read() {
        let child = sys::process::spawn(0, &[], || {
            std::thread::sleep(std::time::Duration::from_secs(100));
            0
        });
        let child = child.unwrap();
        let asleep = || crate::proc::Stat::read(child, "stat").map(|stat| stat.state());
        while asleep().unwrap() != 'S' {
            std::thread::yield_now();
        }
        let frozen = crate::freeze(child).unwrap();
        let regs = sys::ptrace::get_regs(child.leader()).unwrap();
        let block = Block::read(&[child.leader()]);
        frozen.kill();
        match block {
            Err(Unreadable::NotAllowed(_) | Unreadable::NoTypes(_)) => {}
            block => {
                let block = block.unwrap().remove(&child.leader()).unwrap();
                let nr = regs.orig_rax.cast_signed();
                let (mut again, mut other) = (regs, regs);
                again.orig_rax = 219;
                other.rsi = 0x1000;
                other.r10 = 0x1000;
                assert_eq!(
                    block.call(&again),
                    Some(nr),
                    "std sleeps with clock_nanosleep"
                );
                assert_eq!(block.call(&other), None);
                let Some(Left::Time(left)) = block.left(child, nr, &regs) else {
                    panic!("{block:?}");
                };
                assert!((90_000_000_000..=100_001_000_000).contains(&left), "{left}");
            }
        }
    }
}
