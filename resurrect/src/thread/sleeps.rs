//! Sleeps that go on.
//!
//! A thread makes its sleeping call with what remains of its time, interrupted before it begins to sleep: then
//! the kernel itself keeps the rest, as it did before. All threads do so side by side, a step at a time.

use crate::ResurrectError;
use crate::calls::nr;
use crate::restore::Restore;
use persist_mem::manifest::{Live, Sleep, Thread};
use std::collections::BTreeMap;
use std::time::Duration;
use sys::regs::{NO_SYSCALL, Regs, restart};
use sys::tracee::Tracee;
use sys::wait::{self, Status};
use sys::{Errno, PAGE_SIZE_U64, Pid, Tid, ptrace};

const SIGTRAP: i32 = 5;
const POLL: i64 = 7;
const FUTEX: i64 = 202;
const CLOCK_NANOSLEEP: i64 = 230;
const TIMER_ABSTIME: u64 = 1;
const FUTEX_CMD_MASK: u64 = 0x7f;
const DOING: &str = "going on with its sleep";
/// Room for time-outs (`struct timespec`) from the start of the batch data on, and for how many: processes may
/// have the same memory.
const TIMEOUT_OFFSET: u64 = PAGE_SIZE_U64;
const TIMEOUT: u64 = 16;
const AT_ONCE: usize = 1024;

/// Nanoseconds of a call that had been interrupted for good by a stop: it must not end here, since a handler of
/// SIGCONT would still end it with EINTR.
const INTERRUPTED: u64 = 200_000_000;

/// A thread that is to sleep on.
struct Sleeper<'a> {
    pid: Pid,
    tracee: &'a mut Tracee,
    thread: &'a Thread,
    sleep: Sleep,
    /// Its job is stopped.
    stopped: bool,
}

/// Brings every sleeping thread to where it was in its call. Returns what calls have returned that had nothing
/// to sleep for, by the threads' ids in their namespace. `of` chooses whose.
pub(super) fn go_on(
    restore: &mut Restore<'_>,
    elapsed: Duration,
    of: impl Fn(&Live) -> bool,
) -> Result<BTreeMap<Tid, u64>, ResurrectError> {
    let lives: BTreeMap<Pid, &Live> = restore.lives().filter(|(_, live)| of(live)).collect();
    let mut sleepers: Vec<Sleeper<'_>> = Vec::new();
    for (pid, task) in &mut restore.tasks {
        let Some(live) = lives.get(pid) else {
            continue;
        };
        for (tracee, thread) in task.all().zip(super::in_order(&live.threads)) {
            let Some(sleep) = thread.sleep else { continue };
            sleepers.push(Sleeper {
                pid: *pid,
                tracee,
                thread,
                sleep,
                stopped: live.stopped.is_some(),
            });
        }
    }
    let mut returned = BTreeMap::new();
    for some in sleepers.chunks_mut(AT_ONCE) {
        for (place, sleeper) in (0..).zip(&mut *some) {
            enter(sleeper, TIMEOUT_OFFSET + place * TIMEOUT, elapsed)?;
        }
        for sleeper in &*some {
            interrupt(sleeper.pid, sleeper.tracee)?;
        }
        for sleeper in &*some {
            if let Some(result) = result(sleeper.pid, sleeper.tracee)? {
                returned.insert(sleeper.thread.tid, result);
            }
        }
    }
    Ok(returned)
}

/// Lets a thread run to the entry of its call, with a time-out at an offset in its scratch mapping.
fn enter(sleeper: &mut Sleeper<'_>, place: u64, elapsed: Duration) -> Result<(), ResurrectError> {
    let Sleeper {
        pid,
        tracee,
        thread,
        sleep,
        stopped,
    } = sleeper;
    let pid = *pid;
    let failed = || ResurrectError::call(pid, DOING);
    let Some(scratch) = tracee.scratch() else {
        return Err(failed()(Errno::ENOMEM));
    };
    let passed = match sleep.counts_cpu {
        true => 0,
        false => u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
    };
    let least = if *stopped { INTERRUPTED } else { 0 };
    let left = sleep.remaining.saturating_sub(passed).max(least);
    let time = scratch.address + place;
    let mut timespec = (left / 1_000_000_000).to_le_bytes().to_vec();
    timespec.extend_from_slice(&(left % 1_000_000_000).to_le_bytes());
    tracee.mem().write(time, &timespec).map_err(failed())?;
    let mut regs = Regs {
        rip: scratch.address + gate(),
        rax: sleep.nr.cast_unsigned(),
        orig_rax: NO_SYSCALL,
        ..thread.regs
    };
    match sleep.nr {
        nr::NANOSLEEP => regs.rdi = time,
        CLOCK_NANOSLEEP => {
            regs.rsi &= !TIMER_ABSTIME;
            regs.rdx = time;
        }
        // Without a time-out it stays so.
        POLL if (regs.rdx as i32) < 0 => {}
        POLL => regs.rdx = left.div_ceil(1_000_000),
        // FUTEX_WAIT has a relative time-out; the others' is absolute and stays.
        FUTEX if regs.rsi & FUTEX_CMD_MASK == 0 => regs.r10 = time,
        FUTEX => {}
        other => {
            let why = format!("it sleeps in call {other}, which cannot be gone on with");
            return Err(ResurrectError::Impossible { pid, why });
        }
    }
    tracee
        .set_regs(&regs)
        .map_err(ResurrectError::tracee(pid, DOING))?;
    ptrace::cont_to_syscall(tracee.tid(), 0).map_err(failed())
}

/// At the entry: asked to stop now, it meets the request as soon as it would sleep.
fn interrupt(pid: Pid, tracee: &Tracee) -> Result<(), ResurrectError> {
    let failed = || ResurrectError::call(pid, DOING);
    let is_there = |status| matches!(status, Status::Syscall | Status::Signal(SIGTRAP));
    // A SIGCONT that was queued for the process is told of first (kernel/signal.c, prepare_signal).
    while wait_for(pid, tracee, |status| {
        is_there(status) || status == Status::Trap
    })? == Status::Trap
    {
        ptrace::cont_to_syscall(tracee.tid(), 0).map_err(failed())?;
    }
    ptrace::interrupt(tracee.tid()).map_err(failed())?;
    ptrace::cont(tracee.tid(), 0).map_err(failed())
}

/// What the call has returned; None when it is to sleep on.
fn result(pid: Pid, tracee: &Tracee) -> Result<Option<u64>, ResurrectError> {
    // In a stopped job the stop shows the signal that stopped it.
    wait_for(pid, tracee, |status| {
        matches!(status, Status::Trap | Status::GroupStop(_))
    })?;
    let now = tracee.regs().map_err(ResurrectError::tracee(pid, DOING))?;
    let sleeps = now.rax == (-restart::ERESTART_RESTARTBLOCK).cast_unsigned();
    Ok((!sleeps).then_some(now.rax))
}

/// Waits for a stop that is expected: calls that time-outs end can be interrupted.
fn wait_for(
    pid: Pid,
    tracee: &Tracee,
    expected: impl Fn(Status) -> bool,
) -> Result<Status, ResurrectError> {
    match wait::wait_for(tracee.tid()).map_err(ResurrectError::call(pid, DOING))? {
        status if expected(status) => Ok(status),
        status => Err(ResurrectError::Impossible {
            pid,
            why: format!("it stopped with {status:?} while going on with its sleep"),
        }),
    }
}

/// Offset of a `syscall` instruction in the batch loop.
fn gate() -> u64 {
    sys::tracee::find_gate(sys::batch::code()).map_or(0, |at| at as u64)
}
