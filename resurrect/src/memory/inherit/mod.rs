//! What a process takes over from the one that forked it.
//!
//! Pages that a family has shared since fork(2) are shared again only by a fork. So a process whose
//! children have pages in common with it gets its memory before they are made, and a child is built by the
//! difference: what it maps otherwise, and the pages it has of its own.

mod difference;

use super::apart::would_merge;
use super::map::{PROT_WRITE, has_pages, made_with};
use super::{Builder, map, pages};
use crate::ResurrectError;
use crate::calls::{Calls, nr};
use difference::{difference, range_of};
pub(super) use difference::{end, is_segment, moved, overlaps, same_kind};
use persist_mem::manifest::{AddressSpace, Backing, PageRange, SharedObject, Vma};
use sys::PAGE_SIZE_U64;
use sys::tracee::Tracee;

const MADV_DONTNEED: i32 = 4;
/// Pages in common that are worth a fork with memory in it.
pub(super) const WORTH: u64 = 16;

/// Whether `child` has enough in common with `parent` to be forked from its memory.
pub(super) fn related(
    parent: &AddressSpace,
    child: &AddressSpace,
    objects: &[SharedObject],
) -> bool {
    // Of one execve(2): on a kernel that is not the first, all have its code at the same place.
    let kin = parent.auxv == child.auxv;
    let has_vdso = parent.vmas.iter().any(|vma| vma.backing == Backing::Vdso);
    if !kin
        || !has_vdso
        || !parent
            .vmas
            .iter()
            .filter(kernels)
            .eq(child.vmas.iter().filter(kernels))
    {
        return false;
    }
    let same = difference(parent, child, objects).same;
    same.iter().map(|range| range.pages).sum::<u64>() >= WORTH
}

/// Whether the kernel has mapped it.
pub(super) fn is_kernels(vma: &Vma) -> bool {
    matches!(vma.backing, Backing::Vdso | Backing::Vvar)
}

fn kernels(vma: &&Vma) -> bool {
    is_kernels(vma)
}

/// What is done to a process so that mappings of a child stay two.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// Locked while it is forked.
    pub(super) locked: Vec<(u64, u64)>,
    /// Those of them and beside them that have no pages: without any the child's would be one again as soon as
    /// something is set for both.
    pub(super) empty: Vec<(u64, u64)>,
}

/// Ranges of `parent` that are to be locked while `child` is forked from it: mappings side by side that are one in
/// the parent by then, and two in the child, though the kernel would make one of them. A lock makes them two,
/// and a child has no locks (kernel/fork.c, dup_mmap), but still two mappings.
pub(super) fn to_be_split(
    parent: &AddressSpace,
    child: &AddressSpace,
    objects: &[SharedObject],
) -> Split {
    let pairs = || child.vmas.iter().zip(child.vmas.iter().skip(1));
    if !pairs().any(|(one, two)| would_merge(one, two, child)) {
        return Split::default();
    }
    let kept: Vec<PageRange> = difference(parent, child, objects)
        .kept
        .iter()
        .map(range_of)
        .collect();
    let whole = |vma: &Vma| {
        let from = kept.partition_point(|range| end(range) <= vma.start);
        let mut at = vma.start;
        for range in &kept[from..] {
            if range.va != at || at >= vma.end {
                break;
            }
            at = end(range);
        }
        at >= vma.end
    };
    let range = |vma: &Vma| (vma.start, vma.end);
    let mut split = Split::default();
    for (one, two) in pairs() {
        if !would_merge(one, two, child) || !whole(one) || !whole(two) {
            continue;
        }
        let private = matches!(two.backing, Backing::Anonymous { .. });
        let both = [one, two].into_iter().filter(|_| private);
        let empty = both.filter(|vma| !has_pages(vma, parent));
        split.empty.extend(empty.map(range));
        // Every second one of a row.
        if split.locked.last() != Some(&range(one)) {
            split.locked.push(range(two));
        }
    }
    split.empty.dedup();
    split
}

/// Turns the memory that the process has from `parent` into its own.
pub(super) fn adapt(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    parent: &AddressSpace,
    mm: &AddressSpace,
) -> Result<(), ResurrectError> {
    let mut difference = difference(parent, mm, builder.saved_objects);
    let mut calls = Calls::new(builder.pid, "changing inherited memory", leader);
    for (start, end) in &difference.unmap {
        let args = [(*start).into(), (end - start).into()];
        let batch = calls.batch();
        batch.call("unmapping inherited memory", nr::MUNMAP, args);
        calls.breathe()?;
    }
    for range in &difference.drop {
        let len = range.pages * PAGE_SIZE_U64;
        let args = [range.va.into(), len.into(), MADV_DONTNEED.into()];
        let batch = calls.batch();
        batch.call("dropping inherited pages", nr::MADVISE, args);
        calls.breathe()?;
    }
    calls.flush()?;
    for grown in &difference.grown {
        let rest = grown.make(builder, leader)?;
        difference.map.extend(rest);
    }
    difference.map.sort_by_key(|vma| vma.start);
    let mut calls = Calls::new(builder.pid, "changing inherited memory", leader);
    let written = AddressSpace {
        extents: core::mem::take(&mut difference.write),
        ..AddressSpace::default()
    };
    for kept in &difference.kept {
        let theirs = &parent.vmas[kept.parent];
        let (start, end) = difference.whole(kept);
        let part = Vma {
            start,
            end,
            ..theirs.clone()
        };
        let prot = made_with(theirs, parent, builder);
        let writable = kept.accounted || has_pages(&part, &written);
        if prot & PROT_WRITE == 0 && writable {
            let args = [
                part.start.into(),
                part.len().into(),
                (prot | PROT_WRITE).into(),
            ];
            let batch = calls.batch();
            batch.call("making inherited memory writable", nr::MPROTECT, args);
            calls.breathe()?;
        }
    }
    calls.flush()?;
    map::make(builder, leader, &difference.map, mm)?;
    // A huge page that is shared stays as it is; collapsing would give the process one of its own.
    let shared = |range: &&PageRange| !overlaps(range, &difference.same);
    let huge: Vec<PageRange> = mm.huge.iter().filter(shared).copied().collect();
    pages::fill(builder, leader, mm, &written.extents, &huge)
}
