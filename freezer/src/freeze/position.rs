//! Where a stopped thread stands in its code.
//!
//! Two places do not survive: the vdso, whose code and data belong to this kernel, and
//! restartable sequences (rseq(2)), which the kernel aborts on every preemption and which would be
//! forgotten when the thread runs something else in between.

use super::calls::Repeated;
use super::run_on::run_on;
use super::{FrozenThread, ring_offsets};
use crate::{FreezerError, proc};
use core::ops::Range;
use persist_mem::rings::Layout;
use sys::regs::Regs;
use sys::{Pid, Tid, cpu_clock, ptrace};

/// Tries to meet a thread outside of the vdso. One that does nothing but read the clock is outside
/// in some per cent of them.
const TRIES: usize = 500;

/// The registers that a thread has stopped with. None when it has been killed in between: the next round sees that.
pub(super) fn stopped_with(pid: Pid, tid: Tid) -> Result<Option<Regs>, FreezerError> {
    match ptrace::get_regs(tid) {
        Ok(regs) => Ok(Some(regs)),
        Err(sys::Errno::ESRCH) => Ok(None),
        // Fewer registers are told of then (arch/x86/kernel/ptrace.c, task_user_regset_view).
        Err(sys::Errno::EIO) => {
            let why = format!("its thread {tid} is in 32-bit code, which is not carried");
            Err(FreezerError::refuse(pid, "thread", why))
        }
        Err(errno) => {
            let doing = format!("reading the registers of thread {tid}");
            Err(FreezerError::call(pid, doing)(errno))
        }
    }
}

/// Moves a thread that has stopped with `regs` to where it can be described, also for a kernel that lays `rings` out
/// otherwise than this one; returns the call that it should repeat.
pub(super) fn settle(
    pid: Pid,
    tid: Tid,
    regs: Regs,
    thread: &mut FrozenThread,
    rings: Option<Layout>,
) -> Result<Option<Repeated>, FreezerError> {
    if regs.has_forbidden_segments() {
        let why = format!(
            "its thread {tid} has a segment register that only itself can set: a selector of 1 or 2, or a base in the \
             kernel's half"
        );
        return Err(FreezerError::refuse(pid, "thread", why));
    }
    let regs = match rings {
        Some(layout) => ring_offsets::let_go(pid, tid, regs, thread, layout)?,
        None => regs,
    };
    let regs = match regs.interrupted_syscall() {
        // What such a call of the vdso has told is not what the clock shows yet.
        Some((nr, _)) if !cpu_clock::CALLS.contains(&nr) => regs,
        _ => leave_vdso(pid, tid, regs, thread)?,
    };
    // Also of a thread that has come to it from the vdso.
    if regs.interrupted_syscall().is_some() {
        return Repeated::find(pid, tid, &regs, *thread);
    }
    leave_critical_section(pid, tid, &regs)?;
    Ok(None)
}

fn leave_vdso(
    pid: Pid,
    tid: Tid,
    regs: Regs,
    thread: &mut FrozenThread,
) -> Result<Regs, FreezerError> {
    let Some(vdso) = vdso(pid)? else {
        return Ok(regs);
    };
    // Inside of a call made by the vdso itself is inside, too.
    let inside = |regs: &Regs| vdso.contains(&regs.rip);
    match run_on(
        (pid, tid),
        regs,
        thread,
        TRIES,
        "letting it leave the vdso",
        inside,
    )? {
        (regs, true) => Ok(regs),
        _ => {
            let why = "it does not leave the vdso";
            Err(FreezerError::refuse(pid, format!("thread {tid}"), why))
        }
    }
}

pub(super) fn vdso(pid: Pid) -> Result<Option<Range<u64>>, FreezerError> {
    let maps = proc::read_text(pid, "maps")?;
    Ok(maps
        .lines()
        .find(|line| line.ends_with("[vdso]"))
        .and_then(|line| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some(number(start)?..number(end)?)
        }))
}

/// Sends a thread inside a restartable sequence to its abort handler, as the kernel would on any
/// preemption (kernel/rseq.c). Setting the registers is one step: there is no state in between.
fn leave_critical_section(pid: Pid, tid: Tid, regs: &Regs) -> Result<(), FreezerError> {
    let Some(sequence) = Sequence::of(pid, tid)? else {
        return Ok(());
    };
    // Otherwise the kernel ends it in place of that.
    let inside = regs.rip.wrapping_sub(sequence.start) < sequence.len;
    if !inside || !sequence.valid {
        return Ok(());
    }
    let aborted = Regs {
        rip: sequence.abort,
        ..*regs
    };
    ptrace::set_regs(tid, &aborted)
        .map_err(FreezerError::call(pid, "leaving a restartable sequence"))
}

/// The restartable sequence that a thread says it is in (`struct rseq_cs`).
struct Sequence {
    start: u64,
    len: u64,
    abort: u64,
    valid: bool,
}

impl Sequence {
    /// None when it says nothing.
    fn of(pid: Pid, tid: Tid) -> Result<Option<Sequence>, FreezerError> {
        let rseq = ptrace::rseq_configuration(tid).map_err(FreezerError::call(
            pid,
            format!("reading the rseq of thread {tid}"),
        ))?;
        if rseq.pointer == 0 {
            return Ok(None);
        }
        let mem = proc::memory(pid).map_err(FreezerError::call(pid, "opening its memory"))?;
        // struct rseq: cpu_id_start, cpu_id, rseq_cs.
        let descriptor = mem.read_u64(rseq.pointer + 8);
        let descriptor = descriptor.map_err(FreezerError::call(pid, "reading its rseq area"))?;
        if descriptor == 0 {
            return Ok(None);
        }
        // struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip.
        let word = |at| mem.read_u64(descriptor.wrapping_add(at)).ok();
        let words = [0, 8, 16, 24].map(word);
        let [Some(kind), Some(start), Some(len), Some(abort)] = words else {
            return Ok(Some(Sequence::invalid()));
        };
        let signature = mem.read_vec(abort.wrapping_sub(4), 4).ok();
        let signed = signature.as_deref() == Some(&rseq.signature.to_le_bytes());
        Ok(Some(Sequence {
            start,
            len,
            abort,
            valid: signed && kind == 0 && abort.wrapping_sub(start) >= len,
        }))
    }

    fn invalid() -> Sequence {
        Sequence {
            start: 0,
            len: 0,
            abort: 0,
            valid: false,
        }
    }
}

/// Refuses a stopped thread that the kernel ends as soon as it goes on, since its restartable sequence is none.
pub(crate) fn refuse_doomed(pid: Pid, tid: Tid) -> Result<(), FreezerError> {
    match Sequence::of(pid, tid)? {
        Some(Sequence { valid: false, .. }) => {
            let why = "its restartable sequence (rseq) has no abort handler with its signature: \
                       the kernel ends it";
            Err(FreezerError::refuse(pid, format!("thread {tid}"), why))
        }
        _ => Ok(()),
    }
}
