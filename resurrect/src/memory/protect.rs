//! Protections, advice, locks, guard pages and names of mappings, once the pages are there.

use super::Builder;
use super::map::{PROT_WRITE, made_with};
use crate::ResurrectError;
use crate::calls::{Calls, nr};
use persist_mem::manifest::{AddressSpace, Backing, Vma};
use sys::PAGE_SIZE_U64;

const PR_SET_VMA: i32 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: i32 = 0;
const MADV_GUARD_INSTALL: i32 = 102;
const MADV_POPULATE_READ: i32 = 22;
const MLOCK_ONFAULT: i32 = 1;
/// Keys of the processor (pkeys(7)).
const KEYS: u32 = 16;

/// `VmFlags` of `/proc/PID/smaps` and the madvise(2) that sets each (fs/proc/task_mmu.c, mm/madvise.c).
const ADVICE: [(&[u8; 2], i32); 8] = [
    (b"rr", 1),  // MADV_RANDOM
    (b"sr", 2),  // MADV_SEQUENTIAL
    (b"dc", 10), // MADV_DONTFORK
    (b"mg", 12), // MADV_MERGEABLE
    (b"hg", 14), // MADV_HUGEPAGE
    (b"nh", 15), // MADV_NOHUGEPAGE
    (b"dd", 16), // MADV_DONTDUMP
    (b"wf", 18), // MADV_WIPEONFORK
];
/// Flags that droppable mappings (`MAP_DROPPABLE`) have of themselves.
const OF_DROPPABLE: [&[u8; 2]; 2] = [b"dd", b"wf"];

/// What a process's memory has to do with that of others.
#[derive(Clone, Copy)]
pub(super) struct Kinship {
    /// It has its mappings from who forked it.
    pub(super) inherited: bool,
    /// Pages may be in common with others.
    pub(super) family: bool,
}

/// Gives every mapping what it had. The last calls are still to be made.
pub(super) fn apply(
    builder: &Builder<'_>,
    calls: &mut Calls<'_>,
    mm: &AddressSpace,
    kin: Kinship,
) -> Result<(), ResurrectError> {
    let keys = mm.protection_keys > 1 || mm.vmas.iter().any(|vma| vma.protection_key != 0);
    if keys {
        allocate_keys(calls);
    }
    // What was inherited may have any protection.
    let has = |vma: &Vma| (!kin.inherited).then(|| made_with(vma, mm, builder));
    for vma in &mm.vmas {
        if matches!(vma.backing, Backing::Vdso | Backing::Vvar) {
            continue;
        }
        protect(calls, vma, has(vma));
        advise(calls, vma);
        name(calls, vma);
        calls.breathe()?;
    }
    // A mapping keeps its key when that is freed, and a child has those of its parent.
    if keys || kin.inherited {
        free_keys(calls, mm);
    }
    for range in &mm.guards {
        let len = range.pages * PAGE_SIZE_U64;
        let args = [range.va.into(), len.into(), MADV_GUARD_INSTALL.into()];
        let batch = calls.batch();
        batch.call("installing guard pages", nr::MADVISE, args);
        calls.breathe()?;
    }
    for vma in mm.vmas.iter().filter(|vma| vma.has(b"lo")) {
        if kin.family && is_copied(vma) {
            lock_as_it_is(calls, vma);
        } else {
            lock(calls, vma, mm);
        }
        calls.breathe()?;
    }
    Ok(())
}

fn protect(calls: &mut Calls<'_>, vma: &Vma, has: Option<u32>) {
    let place = [vma.start.into(), vma.len().into(), vma.prot.into()];
    if vma.protection_key != 0 {
        let [start, len, prot] = place;
        let args = [start, len, prot, i32::from(vma.protection_key).into()];
        let batch = calls.batch();
        batch.call("setting a protection key", nr::PKEY_MPROTECT, args);
    } else if has != Some(vma.prot) {
        calls.batch().call("protecting memory", nr::MPROTECT, place);
    }
}

/// Allocates all keys that are to be had. Their rights come with the registers.
fn allocate_keys(calls: &mut Calls<'_>) {
    let batch = calls.batch();
    for _ in 1..KEYS {
        let args = [0.into(), 0.into()];
        batch.try_call("allocating a protection key", nr::PKEY_ALLOC, args);
    }
}

/// Frees those that were not allocated.
fn free_keys(calls: &mut Calls<'_>, mm: &AddressSpace) {
    let batch = calls.batch();
    for key in (1..KEYS).filter(|key| mm.protection_keys >> key & 1 == 0) {
        batch.try_call("freeing a protection key", nr::PKEY_FREE, [key.into()]);
    }
}

fn advise(calls: &mut Calls<'_>, vma: &Vma) {
    let own: &[&[u8; 2]] = if vma.has(b"dp") { &OF_DROPPABLE } else { &[] };
    let wanted = ADVICE
        .iter()
        .filter(|(flag, _)| vma.has(flag) && !own.contains(flag));
    for (_, advice) in wanted {
        let args = [vma.start.into(), vma.len().into(), (*advice).into()];
        calls.batch().call("advising on memory", nr::MADVISE, args);
    }
}

fn name(calls: &mut Calls<'_>, vma: &Vma) {
    let (Backing::Anonymous { name } | Backing::Object { name, .. }) = &vma.backing else {
        return;
    };
    if name.is_empty() {
        return;
    }
    let text = calls.batch().string(name);
    let args = [
        PR_SET_VMA.into(),
        PR_SET_VMA_ANON_NAME.into(),
        vma.start.into(),
        vma.len().into(),
        text.into(),
    ];
    calls.batch().call("naming memory", nr::PRCTL, args);
}

/// Locking brings pages in, which is an error where none may be; the lock stays all the same.
fn lock(calls: &mut Calls<'_>, vma: &Vma, mm: &AddressSpace) {
    let flags = if vma.lock_on_fault { MLOCK_ONFAULT } else { 0 };
    let args = [vma.start.into(), vma.len().into(), flags.into()];
    let guarded = mm
        .guards
        .iter()
        .any(|range| range.va < vma.end && range.va + range.pages * PAGE_SIZE_U64 > vma.start);
    // A file may end before its mapping does.
    let short = !matches!(vma.backing, Backing::Anonymous { .. });
    let batch = calls.batch();
    if vma.prot == 0 || guarded || short {
        batch.try_call("locking memory", nr::MLOCK2, args);
    } else {
        batch.call("locking memory", nr::MLOCK2, args);
    }
}

/// Whether locking gives the process copies of its own of all pages that it has in common with others.
fn is_copied(vma: &Vma) -> bool {
    let private = !vma.has(b"sh") && vma.page_size == PAGE_SIZE_U64;
    let writable = vma.prot & PROT_WRITE != 0;
    private && writable && !vma.lock_on_fault && vma.len() > PAGE_SIZE_U64
}

/// Locks memory without that. mlock(2) first notes that it is locked, and then brings pages in, up to the first that
/// cannot be (mm/gup.c, __mm_populate): that is made the first of all.
fn lock_as_it_is(calls: &mut Calls<'_>, vma: &Vma) {
    let first = Vma {
        end: vma.start + PAGE_SIZE_U64,
        ..vma.clone()
    };
    let all = [vma.start.into(), vma.len().into()];
    let batch = calls.batch();
    let none = [first.start.into(), first.len().into(), 0.into()];
    batch.call("protecting memory", nr::MPROTECT, none);
    let [start, len] = all;
    batch.try_call("locking memory", nr::MLOCK2, [start, len, 0.into()]);
    protect(calls, &first, None);
    let args = [start, len, MADV_POPULATE_READ.into()];
    let batch = calls.batch();
    batch.try_call("bringing memory in", nr::MADVISE, args);
}
