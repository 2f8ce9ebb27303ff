//! What an address space is told about mappings to come, and what makes mappings final: after the last of
//! them has been made.

use crate::ResurrectError;
use crate::calls::{Calls, nr};
use crate::restore::Restore;
use persist_mem::manifest::{AddressSpace, Backing, LockFuture, Vma};

const MCL_FUTURE: i32 = 2;
const MCL_ONFAULT: i32 = 4;
const MADV_UNMERGEABLE: i32 = 13;
const PR_SET_MDWE: i32 = 65;
const PR_SET_MEMORY_MERGE: i32 = 67;

/// Tells every address space.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives().filter(|(_, live)| live.mm_of.is_none()) {
        let first = &mut restore.task(pid)?.first;
        let mut calls = Calls::new(pid, "setting its memory policies", first);
        tell(&mut calls, &live.mm)?;
        calls.flush()?;
    }
    Ok(())
}

fn tell(calls: &mut Calls<'_>, mm: &AddressSpace) -> Result<(), ResurrectError> {
    let prctl = |calls: &mut Calls<'_>, what, option: i32, value: u32| {
        let args = [option.into(), value.into(), 0.into(), 0.into(), 0.into()];
        calls.batch().call(what, nr::PRCTL, args);
    };
    for bit in (0..32).filter(|bit| mm.membarrier >> bit & 1 == 1) {
        let args = [(1_u64 << bit).into(), 0.into(), 0.into()];
        let batch = calls.batch();
        batch.call("registering for memory barriers", nr::MEMBARRIER, args);
    }
    if mm.merge_any {
        prctl(calls, "letting KSM merge its pages", PR_SET_MEMORY_MERGE, 1);
        unmerge(calls, mm)?;
    }
    super::ldt::fill(calls, &mm.ldt)?;
    super::numa::tell(calls, mm)?;
    let flags = match mm.lock_future {
        LockFuture::No => 0,
        LockFuture::Now => MCL_FUTURE,
        LockFuture::OnFault => MCL_FUTURE | MCL_ONFAULT,
    };
    if flags != 0 {
        let batch = calls.batch();
        batch.call("locking later mappings", nr::MLOCKALL, [flags.into()]);
    }
    for vma in mm.vmas.iter().filter(|vma| vma.has(b"sl")) {
        if is_kernels_own(vma) {
            continue;
        }
        let args = [vma.start.into(), vma.len().into(), 0.into()];
        calls.batch().call("sealing memory", nr::MSEAL, args);
        calls.breathe()?;
    }
    if mm.deny_write_exec != 0 {
        prctl(
            calls,
            "denying writable code",
            PR_SET_MDWE,
            mm.deny_write_exec,
        );
    }
    Ok(())
}

/// Takes out what was taken out before: all that is there has just been included (mm/ksm.c, ksm_enable_merge_any).
fn unmerge(calls: &mut Calls<'_>, mm: &AddressSpace) -> Result<(), ResurrectError> {
    let included = |vma: &&Vma| !vma.has(b"sh") && !is_kernels_own(vma);
    for vma in mm.vmas.iter().filter(included) {
        if !vma.has(b"mg") {
            let args = [vma.start.into(), vma.len().into(), MADV_UNMERGEABLE.into()];
            let batch = calls.batch();
            batch.call("keeping KSM from its pages", nr::MADVISE, args);
            calls.breathe()?;
        }
    }
    Ok(())
}

/// The kernel seals its own mappings, or does not.
fn is_kernels_own(vma: &Vma) -> bool {
    matches!(vma.backing, Backing::Vdso | Backing::Vvar)
}
