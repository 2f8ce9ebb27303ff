//! Taking a new process's own memory away: it begins as a copy of this one.

use super::named_ranges;
use crate::ResurrectError;
use crate::calls::{nr, run};
use sys::batch::Batch;
use sys::ptrace;
use sys::tracee::Tracee;
use sys::{PAGE_SIZE_U64, Pid};

const RSEQ_FLAG_UNREGISTER: u64 = 1;
pub(super) const MREMAP_MOVE_TO: u64 = 1 | 2;
/// `TASK_SIZE_MAX` on x86_64 with four page table levels.
const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// The C library's restartable-sequence area goes with the rest of the memory.
pub(crate) fn forget_rseq(pid: Pid, leader: &mut Tracee) -> Result<(), ResurrectError> {
    let doing = "taking back its rseq registration";
    let rseq =
        ptrace::rseq_configuration(leader.tid()).map_err(ResurrectError::call(pid, doing))?;
    if rseq.pointer == 0 {
        return Ok(());
    }
    let mut batch = Batch::new();
    let args = [
        rseq.pointer.into(),
        rseq.size.into(),
        RSEQ_FLAG_UNREGISTER.into(),
        rseq.signature.into(),
    ];
    batch.call(doing, nr::RSEQ, args);
    run(pid, doing, leader, &batch).map(drop)
}

/// The kernel's own mappings (`[vvar]`, `[vvar_vclock]`, `[vdso]`) of a process, in ascending order.
pub(super) fn kernel_ranges(maps: &[u8]) -> Vec<(u64, u64, String)> {
    let mut found = named_ranges(maps);
    found.retain(|(_, _, name)| name == "[vdso]" || name.starts_with("[vvar"));
    found
}

/// Moves the kernel's mappings to `parking`, keeping their distances.
pub(crate) fn park_vdso(pid: Pid, leader: &mut Tracee, parking: u64) -> Result<(), ResurrectError> {
    let doing = "moving the vdso aside";
    let maps =
        sys::procdir::read(leader.pid(), "maps").map_err(ResurrectError::call(pid, doing))?;
    let ranges = kernel_ranges(&maps);
    let Some(&(base, _, _)) = ranges.first() else {
        return Ok(());
    };
    let mut batch = Batch::new();
    for (start, end, _) in ranges {
        let len = end - start;
        let to = parking + (start - base);
        let args = [
            start.into(),
            len.into(),
            len.into(),
            (MREMAP_MOVE_TO).into(),
            to.into(),
        ];
        batch.call(doing, nr::MREMAP, args);
    }
    run(pid, doing, leader, &batch).map(drop)
}

/// Unmaps everything but the scratch range from `start` to `end`, and the parking behind it.
pub(crate) fn unmap_all(
    pid: Pid,
    leader: &mut Tracee,
    start: u64,
    end: u64,
) -> Result<(), ResurrectError> {
    let doing = "giving up its old memory";
    let behind = (end + crate::scratch::PARKING_LEN).next_multiple_of(PAGE_SIZE_U64);
    let mut batch = Batch::new();
    batch.call(doing, nr::MUNMAP, [0.into(), start.into()]);
    batch.call(
        doing,
        nr::MUNMAP,
        [behind.into(), (TASK_SIZE - behind).into()],
    );
    run(pid, doing, leader, &batch).map(drop)
}

/// Takes away what a process has inherited from one that was built before it forked: the vdso goes back
/// to its parking, everything else goes. `scratch`: where the range for batches begins and ends.
pub(super) fn again(
    pid: Pid,
    leader: &mut Tracee,
    scratch: (u64, u64),
) -> Result<(), ResurrectError> {
    let (start, parking) = scratch;
    let maps = sys::procdir::read(leader.pid(), "maps");
    let maps = maps.map_err(ResurrectError::call(pid, "reading its maps"))?;
    let placed = kernel_ranges(&maps).first().map(|range| range.0);
    if placed.is_some_and(|base| base != parking) {
        park_vdso(pid, leader, parking)?;
    }
    unmap_all(pid, leader, start, parking)
}
