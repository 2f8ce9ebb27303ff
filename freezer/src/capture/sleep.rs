//! Interrupted system calls.
//!
//! A thread that is stopped in a system call shows a code in `rax` that only tracers see. Left as it
//! is, the kernel that resumes the thread does what it would have done anyway: deliver a signal and
//! fail with EINTR, or make the call again. `ERESTART_RESTARTBLOCK` needs help: the rest of the
//! time-out is in the old kernel's memory. It is read from there ([`mod@super::restart`]), or where that
//! cannot be, computed from when the thread went to sleep; and given to the new kernel by making the call
//! again.

use super::restart::{Block, Left};
use crate::FreezerError;
use crate::freeze::{FrozenThread, compat, monotonic_ns};
use nix::time::ClockId;
use persist_mem::manifest::Sleep;
use std::collections::BTreeMap;
use sys::regs::{NO_SYSCALL, Regs, restart};
use sys::tracee::Tracee;
use sys::{Pid, Tid};

const POLL: i64 = 7;
const NANOSLEEP: i64 = 35;
const FUTEX: i64 = 202;
const RESTART_SYSCALL: i64 = 219;
const CLOCK_NANOSLEEP: i64 = 230;
const EINTR: i64 = 4;
const FUTEX_WAIT: u64 = 0;
const FUTEX_CMD_MASK: u64 = 0x7f;
const FUTEX_CLOCK_REALTIME: u64 = 256;

/// The call whose rest the kernel keeps for a thread, by its number, where there is one.
fn interrupted(regs: &Regs) -> Option<i64> {
    let (nr, result) = regs.interrupted_syscall()?;
    (result == -restart::ERESTART_RESTARTBLOCK).then_some(nr)
}

/// The call that a thread is interrupted in that shows restart_syscall(2), as far as the kernel tells.
pub(crate) fn interrupted_call(tid: Tid, regs: &Regs) -> Option<i64> {
    kept(std::iter::once((tid, regs))).get(&tid)?.call(regs)
}

/// What remains of the call with this number that a thread is interrupted in, where that is how long it waits and the
/// kernel tells.
pub(crate) fn left_of((pid, tid): (Pid, Tid), nr: i64, regs: &Regs) -> Option<Left> {
    kept(std::iter::once((tid, regs)))
        .get(&tid)?
        .left(pid, nr, regs)
}

/// How many nanoseconds the calls of threads still wait that are interrupted in one whose rest the kernel keeps and
/// tells.
pub(crate) fn times_left<'a>(
    pid: Pid,
    threads: impl Iterator<Item = (Tid, &'a Regs)> + Clone,
) -> BTreeMap<Tid, u64> {
    if !threads.clone().any(|(_, regs)| interrupted(regs).is_some()) {
        return BTreeMap::new();
    }
    let kept = kept(threads.clone());
    let left = |(tid, regs): (Tid, &Regs)| {
        let block = kept.get(&tid)?;
        let nr = match interrupted(regs)? {
            RESTART_SYSCALL => block.call(regs)?,
            nr => nr,
        };
        match block
            .left(pid, nr, regs)
            .filter(|_| is_relative(nr, regs))?
        {
            Left::Time(left) => Some((tid, left)),
            Left::Processor(_) | Left::Forever => None,
        }
    };
    threads.filter_map(left).collect()
}

/// What is kept of the calls of threads that are interrupted in one that needs it.
pub(super) fn kept<'a>(threads: impl Iterator<Item = (Tid, &'a Regs)>) -> BTreeMap<Tid, Block> {
    let interrupted = threads.filter(|(_, regs)| interrupted(regs).is_some());
    let tids: Vec<Tid> = interrupted.map(|(tid, _)| tid).collect();
    Block::read(&tids).unwrap_or_else(|why| {
        log::debug!("threads {tids:?}: {why}");
        BTreeMap::new()
    })
}

/// The registers the thread shall go on with, and the sleep it goes on with.
pub(super) fn settle(
    tracee: &Tracee,
    regs: Regs,
    frozen: FrozenThread,
    kept: Option<&Block>,
) -> Result<(Regs, Option<Sleep>), FreezerError> {
    if frozen.in_compat_wait {
        let (pid, thread) = (tracee.pid(), format!("thread {}", tracee.tid()));
        let why = format!(
            "it waits for a time in a 32-bit call: {}",
            compat::NOT_CARRIED
        );
        return Err(FreezerError::refuse(pid, thread, why));
    }
    let Some(nr) = interrupted(&regs) else {
        return Ok((regs, None));
    };
    // An earlier stop has already turned the call into restart_syscall(2).
    let nr = if nr == RESTART_SYSCALL {
        let known = kept.and_then(|kept| kept.call(&regs));
        known.or_else(|| call_before(tracee, &regs)).unwrap_or(nr)
    } else {
        nr
    };
    let asleep = frozen
        .asleep_since_ns
        .map(|since| monotonic_ns().saturating_sub(since));
    let left = match kept.filter(|_| is_relative(nr, &regs)) {
        Some(kept) => kept.left(tracee.pid(), nr, &regs),
        None => None,
    };
    if kept.is_none() && frozen.rest_is_kept {
        // It was there before the freeze.
        let (pid, thread) = (tracee.pid(), format!("thread {}", tracee.tid()));
        let why = "what remains of the call it sleeps in can no longer be read from the kernel";
        return Err(FreezerError::refuse(pid, thread, why));
    }
    let left = match left {
        None => remaining(tracee, nr, &regs, asleep)?.map(|left| (left, false)),
        Some(Left::Time(left)) => Some((left, false)),
        Some(Left::Processor(left)) => Some((left, true)),
        Some(Left::Forever) => Some((u64::MAX, false)),
    };
    match left {
        Some((remaining, counts_cpu)) => {
            let regs = Regs {
                orig_rax: nr.cast_unsigned(),
                ..regs
            };
            let sleep = Sleep {
                nr,
                remaining,
                counts_cpu,
            };
            Ok((regs, Some(sleep)))
        }
        // What remained cannot be known: the call fails as if a signal had come.
        None => Ok((
            Regs {
                rax: (-EINTR).cast_unsigned(),
                orig_rax: NO_SYSCALL,
                ..regs
            },
            None,
        )),
    }
}

/// Whether the call's time-out is how long it waits. The others' are when they end, which the program knows.
fn is_relative(nr: i64, regs: &Regs) -> bool {
    nr != FUTEX || regs.rsi & FUTEX_CMD_MASK == FUTEX_WAIT
}

/// `mov eax, imm32; syscall` just before rip.
fn call_before(tracee: &Tracee, regs: &Regs) -> Option<i64> {
    let code = tracee.mem().read_vec(regs.rip.checked_sub(7)?, 7).ok()?;
    match code[..] {
        [0xb8, a, b, c, d, 0x0f, 0x05] => Some(i64::from(u32::from_le_bytes([a, b, c, d]))),
        _ => None,
    }
}

/// Nanoseconds that remained of a sleep.
fn remaining(
    tracee: &Tracee,
    nr: i64,
    regs: &Regs,
    asleep: Option<u64>,
) -> Result<Option<u64>, FreezerError> {
    let pid = tracee.pid();
    let timespec = |va: u64| -> Result<u64, FreezerError> {
        let word = |va| {
            tracee
                .mem()
                .read_u64(va)
                .map_err(FreezerError::call(pid, "reading a time-out"))
        };
        Ok(word(va)?
            .saturating_mul(1_000_000_000)
            .saturating_add(word(va + 8)?))
    };
    // A thread that went to sleep after it was looked at has slept for no time worth counting.
    let slept = |total: u64| Some(total.saturating_sub(asleep.unwrap_or(0)));
    // nanosleep writes what remains when it is interrupted, if the caller asked for it.
    let sleep = |request: u64, rest: u64| match rest {
        0 => Ok(slept(timespec(request)?)),
        rest => timespec(rest).map(Some),
    };
    match nr {
        NANOSLEEP => sleep(regs.rdi, regs.rsi),
        CLOCK_NANOSLEEP => sleep(regs.rdx, regs.r10),
        POLL if (regs.rdx as i32) < 0 => Ok(Some(u64::MAX)),
        POLL => Ok(slept((regs.rdx & 0xffff_ffff).saturating_mul(1_000_000))),
        FUTEX if regs.rsi & FUTEX_CMD_MASK == FUTEX_WAIT => Ok(slept(timespec(regs.r10)?)),
        FUTEX => {
            let realtime = regs.rsi & FUTEX_CLOCK_REALTIME != 0;
            let clock = if realtime {
                ClockId::CLOCK_REALTIME
            } else {
                ClockId::CLOCK_MONOTONIC
            };
            let now = sys::clock::read_ns(clock)
                .map_err(FreezerError::call(pid, "reading a clock"))?
                .cast_unsigned();
            Ok(Some(timespec(regs.r10)?.saturating_sub(now)))
        }
        _ => Ok(None),
    }
}
