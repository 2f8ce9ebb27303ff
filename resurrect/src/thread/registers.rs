//! Registers and signal masks. No batch can run after: they run on the registers.

use super::signals::settled;
use super::sleeps;
use crate::ResurrectError;
use crate::calls::nr;
use crate::restore::Restore;
use persist_mem::manifest::{Backing, ChildWait, Dispatch, Limit, Live, Thread, Vma};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use sys::batch::Batch;
use sys::ptrace::SudConfiguration;
use sys::regs::{NO_SYSCALL, Regs, restart};
use sys::tracee::Tracee;
use sys::{Errno, Pid, Tid, child_wait, ptrace, remainder};

const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
const PROT_EXEC: u32 = 4;
const REMOVING: &str = "removing the room for batches";
/// Bytes of code that are searched.
const LOOK_AT: usize = 4 << 20;

/// Sets them.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let elapsed = restore.elapsed();
    let dispatched = dispatch_from_inside(restore)?;
    let returned = sleeps::go_on(restore, elapsed, |live| live.traced.is_none())?;
    remove_scratches(restore)?;
    in_vfork(restore)?;
    let passed = u64::try_from(restore.elapsed().as_nanos()).unwrap_or(u64::MAX);
    super::each_in(restore, |pid, tracee, live, thread| {
        let regs = to_go_on(
            pid,
            tracee,
            thread,
            returned.get(&thread.tid).copied(),
            passed,
        )?;
        xstate(pid, tracee, &thread.xstate)?;
        let (regs, sigmask) = match thread.child_wait {
            Some(wait) => wait_for_child(pid, tracee, (live, thread), wait)?,
            None => (regs, thread.sigmask),
        };
        tracee
            .set_regs(&regs)
            .map_err(ResurrectError::tracee(pid, "setting its registers"))?;
        tracee
            .set_sigmask(sigmask)
            .map_err(ResurrectError::tracee(pid, "setting its signal mask"))?;
        match thread.dispatch {
            Some(wanted) if !dispatched.contains(&thread.tid) => dispatch(pid, tracee, wanted),
            _ => Ok(()),
        }
    })
}

/// The registers and the mask of signals with which a thread waits for a child before it goes on.
fn wait_for_child(
    pid: Pid,
    tracee: &Tracee,
    (live, thread): (&Live, &Thread),
    wait: ChildWait,
) -> Result<(Regs, u64), ResurrectError> {
    const DOING: &str = "having it wait for a child";
    let failed = || ResurrectError::call(pid, DOING);
    let vdso = live.mm.vmas.iter().find(|vma| vma.backing == Backing::Vdso);
    let code = vdso.zip(remainder::place(&live.mm.vdso));
    let code = code.map(|(vma, at)| vma.start + at as u64);
    let state = ptrace::get_xstate(tracee.tid()).map_err(failed())?;
    let goes_on = (&thread.regs, thread.sigmask, state.as_slice());
    let ready = code.and_then(|code| child_wait::prepare(wait.room, code, goes_on));
    let ready = ready.ok_or_else(|| failed()(Errno::ENOMEM))?;
    for (at, bytes) in &ready.memory {
        tracee.mem().write(*at, bytes).map_err(failed())?;
    }
    Ok((ready.regs, child_wait::BLOCKED))
}

/// Flags that ptrace(2) leaves as they are.
pub(crate) fn load_flags(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    // X86_EFLAGS_ID and the bit that is always set.
    const ID: u64 = 1 << 21;
    const FIXED: u64 = 1 << 1;
    super::each(restore, |pid, tracee, thread| {
        if thread.regs.eflags & ID == 0 {
            return Ok(());
        }
        tracee
            .pop_flags(ID | FIXED)
            .map_err(ResurrectError::tracee(pid, "loading its flags"))
    })
}

/// The registers that a thread goes on with: with what its call has `returned`, or what remains of its time-out.
pub(super) fn to_go_on(
    pid: Pid,
    tracee: &Tracee,
    thread: &Thread,
    returned: Option<u64>,
    passed: u64,
) -> Result<Regs, ResurrectError> {
    let mut regs = thread.regs;
    if let Some(result) = returned {
        regs.rax = result;
        regs.orig_rax = NO_SYSCALL;
    } else if let Some(sleep) = thread.sleep {
        regs.orig_rax = sleep.nr.cast_unsigned();
        regs.rax = (-restart::ERESTART_RESTARTBLOCK).cast_unsigned();
    } else if let Some(limit) = thread.limit {
        let remaining = limit.remaining.saturating_sub(passed);
        let left = Limit { remaining, ..limit };
        match left.bytes() {
            Some((at, bytes)) => tracee
                .mem()
                .write(at, &bytes)
                .map_err(ResurrectError::call(pid, "writing a time-out"))?,
            None => left.set(&mut regs),
        }
    }
    Ok(regs)
}

/// The process that acts in the memory of `pid`: a child that has it, too, where all its threads wait for such children.
pub(crate) fn actor(lives: &BTreeMap<Pid, &Live>, pid: Pid) -> Pid {
    let next = |pid: &Pid| {
        let live = lives.get(pid).filter(|live| live.threads.is_empty())?;
        let child = live.vforks.first().map(|waiting| waiting.child)?;
        let shares = |live: &&Live| live.mm_of.is_some();
        lives.get(&child).copied().filter(shares).map(|_| child)
    };
    core::iter::successors(Some(pid), next)
        .take(lives.len())
        .last()
        .unwrap_or(pid)
}

/// Threads that wait in vfork(2): they are in the call, and return from it with these registers.
fn in_vfork(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives() {
        let task = restore.task(pid)?;
        for thread in live.vforks.iter().map(|waiting| &waiting.thread) {
            let Some(tracee) = task.in_vfork.get_mut(&thread.tid) else {
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

/// Unmaps the batch loops of all address spaces, side by side.
fn remove_scratches(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let own = |live: &Live| live.mm_of.is_none() && live.traced.is_none();
    let lives: BTreeMap<Pid, &Live> = restore.lives().collect();
    // Where nobody else acts in it, its helper has done so.
    let of: BTreeMap<Pid, Pid> = lives
        .iter()
        .filter(|(_, live)| own(live))
        .map(|(pid, live)| (actor(&lives, *pid), *pid, live))
        .filter(|(actor, pid, live)| actor != pid || !live.threads.is_empty())
        .map(|(actor, pid, _)| (actor, pid))
        .collect();
    let mut known = None;
    let mut work = Vec::new();
    for (actor, task) in &mut restore.tasks {
        let Some((pid, live)) = of.get(actor).and_then(|pid| Some((*pid, lives.get(pid)?))) else {
            continue;
        };
        let gate = gate(pid, &task.first, live, &mut known)?;
        work.push((pid, &mut task.first, gate));
    }
    let Some(first) = work.first().map(|(pid, _, _)| *pid) else {
        return Ok(());
    };
    let work = work.into_iter().map(|(_, tracee, gate)| (tracee, gate));
    sys::tracee::unmap_scratches(work.collect()).map_err(ResurrectError::tracee(first, REMOVING))
}

/// Unmaps the batch loop, through a system call instruction of the process itself.
pub(crate) fn remove_scratch(
    pid: Pid,
    first: &mut Tracee,
    live: &Live,
    known: &mut Option<u64>,
) -> Result<(), ResurrectError> {
    let gate = gate(pid, first, live, known)?;
    first
        .unmap_scratch(gate)
        .map_err(ResurrectError::tracee(pid, REMOVING))
}

fn gate(
    pid: Pid,
    first: &Tracee,
    live: &Live,
    known: &mut Option<u64>,
) -> Result<u64, ResurrectError> {
    own_gate(first, live, known).ok_or_else(|| ResurrectError::Impossible {
        pid,
        why: "no system call instruction is mapped in it".into(),
    })
}

/// A `syscall` instruction: in the vdso, else in any code. `known` is where the last process had one, counted
/// from its vdso.
pub(crate) fn own_gate(first: &Tracee, live: &Live, known: &mut Option<u64>) -> Option<u64> {
    let mut vmas = live.mm.vmas.iter();
    let saved = vmas.find(|vma| vma.backing == Backing::Vdso);
    if let (Some(vma), Some(offset)) = (saved, *known)
        && offset < vma.len().saturating_sub(1)
    {
        let place = vma.start + offset;
        let code = first.mem().read_vec(place, 2).ok();
        if code.is_some_and(|code| sys::tracee::find_gate(&code) == Some(0)) {
            return Some(place);
        }
    }
    let found = any_gate(first, live)?;
    let inside = saved.filter(|vma| (vma.start..vma.end).contains(&found));
    *known = inside.map(|vma| found - vma.start);
    Some(found)
}

/// Where all mappings are is asked last: a process may have many.
fn any_gate(first: &Tracee, live: &Live) -> Option<u64> {
    let within = |start: u64, end: u64| {
        let len = usize::try_from(end - start).ok()?.min(LOOK_AT);
        let code = first.mem().read_vec(start, len).ok()?;
        Some(start + sys::tracee::find_gate(&code)? as u64)
    };
    let mut code: Vec<&Vma> = live.mm.vmas.iter().collect();
    code.retain(|vma| vma.prot & PROT_EXEC != 0);
    code.sort_by_key(|vma| vma.backing != Backing::Vdso);
    let found = code.iter().find_map(|vma| within(vma.start, vma.end));
    found.or_else(|| {
        let place = format!("task/{}/maps", first.tid());
        let maps = sys::procdir::read(first.pid(), &place).ok()?;
        let (start, end) = crate::memory::vdso_range(&maps)?;
        within(start, end)
    })
}

/// The kernel wants its own size, which may be another kernel's or processor's.
pub(super) fn xstate(pid: Pid, tracee: &Tracee, saved: &[u8]) -> Result<(), ResurrectError> {
    let failed = || ResurrectError::call(pid, "setting its extended registers");
    // The same for all threads of a kernel.
    static SIZE: OnceLock<usize> = OnceLock::new();
    let size = match SIZE.get() {
        Some(size) => *size,
        None => {
            let now = ptrace::get_xstate(tracee.tid()).map_err(failed())?.len();
            *SIZE.get_or_init(|| now)
        }
    };
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
