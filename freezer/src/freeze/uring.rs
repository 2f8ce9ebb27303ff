//! Waits for completions in io_uring_enter(2), which a stop ends.
//!
//! The call then fails with EINTR, or returns how many entries it has taken, or 0 when there are some completions and
//! fewer than it waits for (io_uring/io_uring.c, `io_cqring_wait`).

use super::sleepers;
use crate::files::{self, apart};
use crate::proc::{self, FdInfo};
use std::time::Duration;
use sys::regs::Regs;
use sys::vm::ProcMem;
use sys::{Errno, Pid, Tid};

/// io_uring_enter
pub(super) const ENTER: i64 = 426;

// include/uapi/linux/io_uring.h
const GETEVENTS: u64 = 1 << 0;
const EXT_ARG: u64 = 1 << 3;
/// How a completion with -ETIME is told of.
const ETIME: &str = ", res:-62,";
/// The descriptor is a number among registered ones.
const REGISTERED_RING: u64 = 1 << 4;
/// The time-out is a point of time.
const ABS_TIMER: u64 = 1 << 5;
/// `struct io_uring_getevents_arg`: the address of a mask, its size, a shorter time-out, the address of a time-out.
const ARG: usize = 24;
const TIME_OUT: usize = 16;

/// Whether a thread that has returned from its call, with `taken` entries, waited for more completions than there
/// are. It did not wait if it took fewer entries than it was given (`SYSCALL_DEFINE6(io_uring_enter)`).
pub(super) fn is_cut_short(pid: Pid, tid: Tid, regs: &Regs, taken: i64) -> bool {
    let waits = regs.orig_rax.cast_signed() == ENTER
        && taken == i64::from(regs.rsi as u32)
        && regs.r10 & GETEVENTS != 0;
    let fd = match waits {
        true => ring(tid, regs),
        false => None,
    };
    fd.and_then(|fd| unread(apart::table_of(pid, tid), fd))
        .is_some_and(|(unread, most)| {
            u64::from(unread) < u64::from(regs.rdx as u32).min(most.into())
        })
}

/// The descriptor of the ring that a call is for.
fn ring(tid: Tid, regs: &Regs) -> Option<i32> {
    match regs.r10 & REGISTERED_RING {
        0 => i32::try_from(regs.rdi).ok(),
        _ => files::named_ring(tid, regs.rdi as u32),
    }
}

/// When a time-out of its ring ends a wait for several completions, however few there are by then (`io_should_wake`), in
/// nanoseconds of CLOCK_MONOTONIC. One that is over before the call is made does not.
pub(super) fn over_at((pid, tid): (Pid, Tid), regs: &Regs) -> Option<u64> {
    let several =
        regs.orig_rax.cast_signed() == ENTER && regs.r10 & GETEVENTS != 0 && regs.rdx as u32 > 1;
    let fd = several.then(|| ring(tid, regs)).flatten()?;
    let now = sleepers::monotonic_ns();
    match files::first_time_out(tid, fd) {
        Some(left) => Some(now.saturating_add(left)),
        // The last one was over when the thread had been stopped, which its result does not tell.
        None => {
            let stopped = regs.rax.cast_signed() == -i64::from(nix::libc::EINTR);
            let told = || told(apart::table_of(pid, tid), fd);
            (stopped && told().is_some_and(|info| info.has(ETIME))).then_some(now)
        }
    }
}

/// Completions that are there, and how many there can be. None where one of them tells of a time-out, which has ended
/// the wait.
fn unread(pid: Pid, fd: i32) -> Option<(u32, u32)> {
    if proc::link(pid, &format!("fd/{fd}")).ok()? != b"anon_inode:[io_uring]" {
        return None;
    }
    let info = told(pid, fd)?;
    if info.has(ETIME) {
        return None;
    }
    let number = |key, radix| u32::try_from(info.number(key, radix)?).ok();
    let mask = u64::from_str_radix(info.value("CqMask")?.trim_start_matches("0x"), 16).ok()?;
    let (head, tail) = (number("CqHead", 10)?, number("CqTail", 10)?);
    Some((
        tail.wrapping_sub(head),
        u32::try_from(mask).ok()?.checked_add(1)?,
    ))
}

/// What the kernel tells of a ring: newer ones tell nothing while somebody else has it locked, such as another thread that
/// submits to it (io_uring/fdinfo.c).
fn told(pid: Pid, fd: i32) -> Option<FdInfo> {
    const LOOKS: usize = 1000;
    for _ in 0..LOOKS {
        let info = FdInfo::read(pid, fd).ok()?;
        if info.value("CqMask").is_some() {
            return Some(info);
        }
        std::thread::sleep(Duration::from_micros(20));
    }
    log::warn!("process {pid}: its ring {fd} is always locked");
    None
}

/// The call without what it has submitted.
pub(super) fn only_waiting(regs: &Regs) -> Regs {
    Regs { rsi: 0, ..*regs }
}

/// The address of a relative time-out.
pub(super) fn time_out(mem: &ProcMem, regs: &Regs) -> Option<u64> {
    let relative = regs.r10 & (EXT_ARG | ABS_TIMER) == EXT_ARG && regs.r9 as usize == ARG;
    if !relative || regs.r8 == 0 {
        return None;
    }
    let at = mem.read_u64(regs.r8 + TIME_OUT as u64).ok()?;
    (at != 0).then_some(at)
}

/// Has the call read its time-out, which is `whole` nanoseconds, at `copy`; the structure that leads there is
/// behind it.
pub(super) fn aim(mem: &ProcMem, regs: &mut Regs, copy: u64, whole: u64) -> Result<(), Errno> {
    let mut argument = mem.read_vec(regs.r8, ARG)?;
    argument[TIME_OUT..].copy_from_slice(&copy.to_le_bytes());
    let time = [whole / 1_000_000_000, whole % 1_000_000_000];
    let time = time.iter().flat_map(|part| part.to_le_bytes());
    let bytes: Vec<u8> = time.chain(argument).collect();
    mem.write(copy, &bytes)?;
    regs.r8 = copy + 16;
    Ok(())
}
