//! Registers, signal masks, and sleeps that go on. The last stage: batches run on the registers.

use super::signals::settled;
use crate::ResurrectError;
use crate::calls::nr;
use crate::restore::Restore;
use persist_mem::manifest::{Dispatch, Live, Sleep, Thread};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use sys::batch::Batch;
use sys::ptrace::SudConfiguration;
use sys::regs::{NO_SYSCALL, Regs, restart};
use sys::tracee::Tracee;
use sys::wait::{self, Status};
use sys::{Errno, PAGE_SIZE_U64, Pid, Tid, ptrace};

const SIGTRAP: i32 = 5;
const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
const POLL: i64 = 7;
const FUTEX: i64 = 202;
const CLOCK_NANOSLEEP: i64 = 230;
const TIMER_ABSTIME: u64 = 1;
const FUTEX_CMD_MASK: u64 = 0x7f;
const PROT_EXEC: u32 = 4;
/// Bytes of code that are searched.
const LOOK_AT: usize = 4 << 20;
/// Room for a time-out at the start of the batch data.
const TIMEOUT_OFFSET: u64 = PAGE_SIZE_U64;

/// Sets them.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let elapsed = restore.elapsed();
    let dispatched = dispatch_from_inside(restore)?;
    // What calls that do not sleep any longer have returned.
    let mut returned: BTreeMap<Tid, u64> = BTreeMap::new();
    super::each(restore, |pid, tracee, thread| {
        if let Some(sleep) = thread.sleep
            && let Some(result) = go_to_sleep(pid, tracee, thread, sleep, elapsed)?
        {
            returned.insert(thread.tid, result);
        }
        Ok(())
    })?;
    for (pid, live) in restore.lives().filter(|(_, live)| live.mm_of.is_none()) {
        // A child with the same memory acts for who waits for it.
        let actor = live.in_vfork.unwrap_or(pid);
        remove_scratch(pid, &mut restore.task(actor)?.first, live)?;
    }
    in_vfork(restore)?;
    super::each(restore, |pid, tracee, thread| {
        let mut regs = thread.regs;
        if let Some(result) = returned.get(&thread.tid) {
            regs.rax = *result;
            regs.orig_rax = NO_SYSCALL;
        } else if let Some(sleep) = thread.sleep {
            regs.orig_rax = sleep.nr.cast_unsigned();
            regs.rax = (-restart::ERESTART_RESTARTBLOCK).cast_unsigned();
        }
        xstate(pid, tracee, &thread.xstate)?;
        tracee
            .set_regs(&regs)
            .map_err(ResurrectError::tracee(pid, "setting its registers"))?;
        tracee
            .set_sigmask(thread.sigmask)
            .map_err(ResurrectError::tracee(pid, "setting its signal mask"))?;
        match thread.dispatch {
            Some(wanted) if !dispatched.contains(&thread.tid) => dispatch(pid, tracee, wanted),
            _ => Ok(()),
        }
    })
}

/// Threads that wait in vfork(2): they are in the call, and return from it with these registers.
fn in_vfork(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives() {
        let waiting = restore.task(pid)?.in_vfork.as_mut();
        let (Some(tracee), Some(thread)) = (waiting, live.threads.first()) else {
            continue;
        };
        xstate(pid, tracee, &thread.xstate)?;
        tracee
            .set_regs(&thread.regs)
            .map_err(ResurrectError::tracee(pid, "setting its registers"))?;
        tracee
            .set_sigmask(thread.sigmask)
            .map_err(ResurrectError::tracee(pid, "setting its signal mask"))?;
    }
    Ok(())
}

/// Syscall user dispatch where only the thread itself can switch it on (before Linux 6.4). Its selector lets
/// calls through there, or it would not have been captured. Returns whose is done.
fn dispatch_from_inside(restore: &mut Restore<'_>) -> Result<BTreeSet<Tid>, ResurrectError> {
    let mut done = BTreeSet::new();
    super::each(restore, |pid, tracee, thread| {
        let Some(wanted) = thread.dispatch else {
            return Ok(());
        };
        if ptrace::sud_configuration(tracee.tid()) != Err(Errno::EIO) {
            return Ok(());
        }
        let mut batch = Batch::new();
        let args = [
            PR_SET_SYSCALL_USER_DISPATCH.into(),
            wanted.mode.into(),
            wanted.offset.into(),
            wanted.len.into(),
            wanted.selector.into(),
        ];
        batch.call("dispatching its calls", nr::PRCTL, args);
        settled(pid, "dispatching its calls", tracee, &batch)?;
        done.insert(thread.tid);
        Ok(())
    })?;
    Ok(done)
}

/// Syscall user dispatch: no call of ours can come after.
fn dispatch(pid: Pid, tracee: &Tracee, wanted: Dispatch) -> Result<(), ResurrectError> {
    let wanted = SudConfiguration {
        mode: wanted.mode,
        selector: wanted.selector,
        offset: wanted.offset,
        len: wanted.len,
    };
    ptrace::set_sud_configuration(tracee.tid(), &wanted)
        .map_err(ResurrectError::call(pid, "dispatching its calls"))
}

/// Unmaps the batch loop, through a system call instruction of the process itself.
fn remove_scratch(pid: Pid, first: &mut Tracee, live: &Live) -> Result<(), ResurrectError> {
    let doing = "removing the room for batches";
    let gate = own_gate(first, live).ok_or_else(|| ResurrectError::Impossible {
        pid,
        why: "no system call instruction is mapped in it".into(),
    })?;
    first
        .unmap_scratch(gate)
        .map_err(ResurrectError::tracee(pid, doing))
}

/// A `syscall` instruction: in the vdso, else in any code.
fn own_gate(first: &Tracee, live: &Live) -> Option<u64> {
    let maps = sys::procdir::read(first.pid(), &format!("task/{}/maps", first.tid())).ok()?;
    let vdso = crate::memory::vdso_range(&maps);
    let code = live.mm.vmas.iter().filter(|vma| vma.prot & PROT_EXEC != 0);
    let ranges = vdso.into_iter().chain(code.map(|vma| (vma.start, vma.end)));
    ranges.into_iter().find_map(|(start, end)| {
        let len = usize::try_from(end - start).ok()?.min(LOOK_AT);
        let code = first.mem().read_vec(start, len).ok()?;
        Some(start + sys::tracee::find_gate(&code)? as u64)
    })
}

/// The kernel wants its own size, which may be another kernel's or processor's.
fn xstate(pid: Pid, tracee: &Tracee, saved: &[u8]) -> Result<(), ResurrectError> {
    let failed = || ResurrectError::call(pid, "setting its extended registers");
    let size = ptrace::get_xstate(tracee.tid()).map_err(failed())?.len();
    let mut state = saved.to_vec();
    if state.len() > size && state[size..].iter().any(|byte| *byte != 0) {
        return Err(ResurrectError::Impossible {
            pid,
            why: "it uses extended registers that this kernel does not keep".into(),
        });
    }
    state.resize(size, 0);
    ptrace::set_xstate(tracee.tid(), &state).map_err(failed())
}

/// Makes the thread's sleeping call with what remains of its time, interrupted before it begins to sleep:
/// then the kernel itself keeps the rest, as it did before. What it returned when it has nothing to
/// sleep for.
fn go_to_sleep(
    pid: Pid,
    tracee: &mut Tracee,
    thread: &Thread,
    sleep: Sleep,
    elapsed: Duration,
) -> Result<Option<u64>, ResurrectError> {
    let doing = "going on with its sleep";
    let failed = || ResurrectError::call(pid, doing);
    let Some(scratch) = tracee.scratch() else {
        return Err(failed()(Errno::ENOMEM));
    };
    let passed = match sleep.counts_cpu {
        true => 0,
        false => u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
    };
    let left = sleep.remaining.saturating_sub(passed);
    let time = scratch.address + TIMEOUT_OFFSET;
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
    let tid = tracee.tid();
    tracee
        .set_regs(&regs)
        .map_err(ResurrectError::tracee(pid, doing))?;
    ptrace::cont_to_syscall(tid, 0).map_err(failed())?;
    wait_for(pid, tracee, |status| {
        matches!(status, Status::Syscall | Status::Signal(SIGTRAP))
    })?;
    // At the entry: asked to stop now, it meets the request as soon as it would sleep.
    ptrace::interrupt(tid).map_err(failed())?;
    ptrace::cont(tid, 0).map_err(failed())?;
    // In a stopped job the stop shows the signal that stopped it.
    wait_for(pid, tracee, |status| {
        matches!(status, Status::Trap | Status::GroupStop(_))
    })?;
    let now = tracee.regs().map_err(ResurrectError::tracee(pid, doing))?;
    let sleeps = now.rax == (-restart::ERESTART_RESTARTBLOCK).cast_unsigned();
    Ok((!sleeps).then_some(now.rax))
}

/// Waits for a stop that is expected: calls that time-outs end can be interrupted.
fn wait_for(
    pid: Pid,
    tracee: &Tracee,
    expected: impl Fn(Status) -> bool,
) -> Result<(), ResurrectError> {
    let failed = || ResurrectError::call(pid, "going on with its sleep");
    match wait::wait_for(tracee.tid()).map_err(failed())? {
        status if expected(status) => Ok(()),
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
