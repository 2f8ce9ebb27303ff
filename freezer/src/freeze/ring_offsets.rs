//! A thread that is using an offset of a ring of io_uring, for a jump to a kernel that lays rings out otherwise
//! ([`persist_mem::rings`]): in a register it is a number like others, which cannot be changed. The thread runs on a
//! little until it has none. One that always has such a number is stopped as it is, and looked at again when its rings
//! are known.

use super::run_on::run_on;
use super::{FrozenThread, position};
use crate::{FreezerError, proc};
use persist_mem::rings::Layout;
use sys::regs::Regs;
use sys::{Pid, Tid};

const TRIES: usize = 100;

/// Lets a thread that has stopped with `regs` finish that; returns what it has stopped with now.
pub(super) fn let_go(
    pid: Pid,
    tid: Tid,
    regs: Regs,
    thread: &mut FrozenThread,
    layout: Layout,
) -> Result<Regs, FreezerError> {
    if thread.group_stop.is_some() || !is_inside(&regs, layout) || !has_ring(pid)? {
        return Ok(regs);
    }
    let vdso = position::vdso(pid)?.unwrap_or_default();
    let inside = |regs: &Regs| vdso.contains(&regs.rip) || is_inside(regs, layout);
    let (regs, _) = run_on(
        (pid, tid),
        regs,
        thread,
        TRIES,
        "letting go of its ring",
        inside,
    )?;
    Ok(regs)
}

fn is_inside(regs: &Regs, layout: Layout) -> bool {
    in_use(regs, |word| layout.is_offset(word))
}

/// Whether a thread outside of a call has an offset in a register.
pub(crate) fn in_use(regs: &Regs, is_offset: impl Fn(u64) -> bool) -> bool {
    let all = [
        regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.r8, regs.r9,
        regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    regs.interrupted_syscall().is_none() && all.into_iter().any(is_offset)
}

fn has_ring(pid: Pid) -> Result<bool, FreezerError> {
    let maps = proc::read_text(pid, "maps")?;
    Ok(maps
        .lines()
        .any(|line| line.ends_with("anon_inode:[io_uring]")))
}
