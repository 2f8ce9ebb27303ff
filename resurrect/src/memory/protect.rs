//! Protections, advice and names of mappings, once the pages are there.

use super::map::has_pages;
use crate::ResurrectError;
use crate::calls::{Calls, nr};
use persist_mem::manifest::{AddressSpace, Backing};
use sys::Pid;
use sys::tracee::Tracee;

const PROT_WRITE: u32 = 2;
const PR_SET_VMA: i32 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: i32 = 0;

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

/// Gives every mapping what it had.
pub(super) fn apply(
    pid: Pid,
    leader: &mut Tracee,
    mm: &AddressSpace,
) -> Result<(), ResurrectError> {
    let mut calls = Calls::new(pid, "protecting its mappings", leader);
    for vma in &mm.vmas {
        if matches!(vma.backing, Backing::Vdso | Backing::Vvar) {
            continue;
        }
        let (start, len) = (vma.start, vma.len());
        if vma.prot & PROT_WRITE == 0 && has_pages(vma, mm) {
            let args = [start.into(), len.into(), vma.prot.into()];
            calls.batch().call("protecting memory", nr::MPROTECT, args);
        }
        for (_, advice) in ADVICE.iter().filter(|(flag, _)| vma.has(flag)) {
            let args = [start.into(), len.into(), (*advice).into()];
            calls.batch().call("advising on memory", nr::MADVISE, args);
        }
        if let Backing::Anonymous { name } = &vma.backing
            && !name.is_empty()
        {
            let text = calls.batch().string(name);
            let args = [
                PR_SET_VMA.into(),
                PR_SET_VMA_ANON_NAME.into(),
                start.into(),
                len.into(),
                text.into(),
            ];
            calls.batch().call("naming memory", nr::PRCTL, args);
        }
        calls.breathe()?;
    }
    calls.flush()
}
