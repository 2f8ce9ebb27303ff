//! What an address space has been told about mappings to come, which no mapping shows.

use super::numa;
use crate::FreezerError;
use crate::proc::{Mapping, Pagemap, Status};
use persist_mem::manifest::{AddressSpace, LockFuture};
use sys::batch::{Batch, CallIndex, Output};
use sys::tracee::{Scratch, Tracee, TraceeError};
use sys::{PAGE_SIZE_U64, Pid, Tid, ptrace};

const PRCTL: i64 = 157;
const PKEY_ALLOC: i64 = 330;
const PKEY_FREE: i64 = 331;
const PR_GET_MDWE: i32 = 66;
const PR_GET_MEMORY_MERGE: i32 = 68;
/// Keys of the processor, key 0 among them (pkeys(7)).
const KEYS: usize = 16;

/// Kilobytes of locked memory, by one of its threads.
pub(super) fn locked(status: &Status) -> u64 {
    let text = status.value("VmLck").unwrap_or("0");
    text.trim_end_matches(" kB").trim().parse().unwrap_or(0)
}

/// mlockall(2) `MCL_FUTURE` by what became of the scratch mapping: locked or not, and brought in or
/// not. To be asked when the mapping is new and nothing has been written behind its code page.
pub(super) fn lock_future(
    (pid, tid): (Pid, Tid),
    locked_before: u64,
    scratch: Scratch,
) -> Result<LockFuture, FreezerError> {
    let status = Status::read(pid, &format!("task/{tid}/status"))?;
    if locked(&status) <= locked_before {
        return Ok(LockFuture::No);
    }
    let end = scratch.address + scratch.len as u64;
    let last = Pagemap::open(pid)?.states(end - PAGE_SIZE_U64, end)?;
    let present = last.first().is_some_and(|page| page.present());
    Ok(if present {
        LockFuture::Now
    } else {
        LockFuture::OnFault
    })
}

/// prctl settings.
pub(super) struct Asked {
    mdwe: CallIndex,
    merge: CallIndex,
    ldt: super::ldt::Asked,
    nodes: (numa::Questions, numa::Modes),
}

pub(super) fn ask(batch: &mut Batch, maps: &[Mapping], mm: &AddressSpace) -> Asked {
    let mut questions = numa::Questions::of(maps, mm);
    let modes = questions.ask(batch);
    // Kernels that do not know them cannot have them set.
    Asked {
        nodes: (questions, modes),
        ldt: super::ldt::ask(batch),
        mdwe: batch.try_call("asking for MDWE", PRCTL, [PR_GET_MDWE.into()]),
        merge: batch.try_call("asking for KSM", PRCTL, [PR_GET_MEMORY_MERGE.into()]),
    }
}

/// What was asked, and protection keys.
pub(super) fn read(
    asked: Asked,
    out: &Output,
    first: &mut Tracee,
    maps: &[Mapping],
    mm: &mut AddressSpace,
) -> Result<(), TraceeError> {
    mm.deny_write_exec = out.result(asked.mdwe).unwrap_or(0) as u32;
    mm.merge_any = out.result(asked.merge).is_ok_and(|on| on == 1);
    mm.protection_keys = 1;
    if maps.iter().any(|map| map.protection_key.is_some()) {
        mm.protection_keys = protection_keys(first)?;
    }
    super::ldt::read(&asked.ldt, out, first, mm)?;
    let (questions, modes) = asked.nodes;
    questions.finish(&modes, out, first, mm)
}

/// The keys that are allocated: those that cannot be had any more. Allocating one sets its rights for the
/// thread, so it is allocated with the rights that the thread has for it: kernels before 6.2 do not take
/// them from the extended state that is put back.
fn protection_keys(first: &mut Tracee) -> Result<u16, TraceeError> {
    let request = |doing| {
        let tid = first.tid();
        move |errno| TraceeError::Request { tid, doing, errno }
    };
    let failed = request("reading its extended state");
    let put_back = request("putting back its extended state");
    let xstate = ptrace::get_xstate(first.tid()).map_err(failed)?;
    let mut batch = Batch::new();
    let tried: Vec<_> = (0..KEYS)
        .map(|_| batch.try_call("trying a protection key", PKEY_ALLOC, [0.into(), 0.into()]))
        .collect();
    let out = first.run(&batch)?;
    let free: Vec<u64> = tried.iter().filter_map(|c| out.result(*c).ok()).collect();
    let pkru = ptrace::pkru(&xstate).unwrap_or(0);
    let mut batch = Batch::new();
    let free_all = |batch: &mut Batch| {
        for key in &free {
            batch.call("freeing a protection key", PKEY_FREE, [(*key).into()]);
        }
    };
    free_all(&mut batch);
    // The lowest that is free is given first, as before.
    for key in &free {
        let rights = u64::from((pkru >> ((2 * key) & 31)) & 3);
        let args = [0.into(), rights.into()];
        batch.call("putting back the rights of a key", PKEY_ALLOC, args);
    }
    free_all(&mut batch);
    let freed = first.run(&batch);
    ptrace::set_xstate(first.tid(), &xstate).map_err(put_back)?;
    freed?;
    let taken = free
        .iter()
        .fold(u16::MAX, |keys, key| keys & !(1 << (key & 15)));
    Ok(taken)
}
