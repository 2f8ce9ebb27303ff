//! What a process has unmapped of a mapping since it forked a child that has it whole.
//!
//! Parts that a child gets by fork(2) never become one mapping with others (mm/vma.c, is_mergeable_anon_vma). So the
//! process has them until its children are made.

use super::Builder;
use super::inherit::{is_segment, is_vdso, moved, same_kind};
use crate::ResurrectError;
use crate::calls::{Calls, nr};
use persist_mem::manifest::{AddressSpace, Backing, SharedObject, Vma};
use std::borrow::Cow;
use sys::PAGE_SIZE_U64;
use sys::tracee::Tracee;

/// A range that is free in a process, beside a mapping that reaches over it in a relative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    start: u64,
    end: u64,
    /// Index of the mapping that is to reach over it.
    of: usize,
}

/// The address space without what is unmapped of a mapping that one of `others` has whole.
pub(super) fn filled<'a>(
    mm: &'a AddressSpace,
    others: impl Iterator<Item = &'a AddressSpace> + Clone,
    objects: &[SharedObject],
) -> Cow<'a, AddressSpace> {
    let gaps = gaps(mm, others, objects);
    if gaps.is_empty() {
        return Cow::Borrowed(mm);
    }
    let mut whole = mm.clone();
    for gap in &gaps {
        let vma = &mut whole.vmas[gap.of];
        if gap.end == vma.start {
            vma.backing = moved(&vma.backing, gap.start.wrapping_sub(gap.end));
            vma.start = gap.start;
        } else {
            vma.end = gap.end;
        }
    }
    whole.vmas.dedup_by(|two, one| {
        let filled = gaps
            .iter()
            .any(|gap| gap.end == two.start || gap.start == two.start);
        let touch = filled && alike(one, two) && one.end == two.start;
        if touch {
            one.end = two.end;
        }
        touch
    });
    Cow::Owned(whole)
}

/// Takes away what [`filled`] has added.
pub(super) fn make<'a>(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    mm: &'a AddressSpace,
    others: impl Iterator<Item = &'a AddressSpace> + Clone,
) -> Result<(), ResurrectError> {
    let mut calls = Calls::new(builder.pid, "unmapping holes", leader);
    for gap in gaps(mm, others, builder.saved_objects) {
        let args = [gap.start.into(), (gap.end - gap.start).into()];
        calls.batch().call("unmapping a hole", nr::MUNMAP, args);
        calls.breathe()?;
    }
    calls.flush()
}

/// Ascending, and apart from each other.
fn gaps<'a>(
    mm: &AddressSpace,
    others: impl Iterator<Item = &'a AddressSpace> + Clone,
    objects: &[SharedObject],
) -> Vec<Gap> {
    let relatives = others.filter(|other| related(mm, other));
    let mut found: Vec<Gap> = Vec::new();
    for (of, vma) in mm.vmas.iter().enumerate() {
        if !can_be_filled(vma) || is_segment(vma, objects) {
            continue;
        }
        let before = of.checked_sub(1).and_then(|n| mm.vmas.get(n));
        let taken = found.last().map_or(0, |gap| gap.end);
        let floor = before.map_or(0, |before| before.end).max(taken);
        let after = mm.vmas.get(of + 1);
        let (mut start, mut end) = (vma.start, vma.end);
        for other in relatives.clone() {
            let first = other.vmas.partition_point(|theirs| theirs.end <= vma.start);
            let overlapping = other.vmas[first..].iter();
            let overlapping = overlapping.take_while(|theirs| theirs.start < vma.end);
            for theirs in overlapping.filter(|theirs| same_kind(theirs, vma)) {
                start = start.min(theirs.start.max(floor));
                // What only its end lacks grows (`grow`).
                let over =
                    after.filter(|after| theirs.end > after.start && same_kind(theirs, after));
                end = end.max(over.map_or(end, |after| after.start));
            }
        }
        // The stack grows by itself.
        if start < vma.start && !vma.has(b"gd") {
            found.push(Gap {
                start,
                end: vma.start,
                of,
            });
        }
        if end > vma.end {
            found.push(Gap {
                start: vma.end,
                end,
                of,
            });
        }
    }
    let rings = mm.aio.iter().map(|ring| (ring.start, ring.end));
    let rings: Vec<_> = rings
        .chain(mm.rings.iter().map(|r| (r.start, r.end)))
        .collect();
    found.retain(|gap| {
        let mut in_it = rings.iter();
        !in_it.any(|(start, end)| *start < gap.end && gap.start < *end)
    });
    found
}

fn can_be_filled(vma: &Vma) -> bool {
    let kernels = matches!(vma.backing, Backing::Vdso | Backing::Vvar);
    !kernels && vma.page_size == PAGE_SIZE_U64 && !vma.has(b"dp")
}

/// Whether two that touch, now that what was between them is filled, are one.
fn alike(one: &Vma, two: &Vma) -> bool {
    moved(&one.backing, two.start - one.start) == two.backing
        && (one.prot, &one.flags, one.protection_key, one.lock_on_fault)
            == (two.prot, &two.flags, two.protection_key, two.lock_on_fault)
}

/// Whether two may have come from one by fork(2): the kernel's code is at the same place.
fn related(one: &AddressSpace, two: &AddressSpace) -> bool {
    let code = |mm: &AddressSpace| mm.vmas.iter().find(|vma| is_vdso(vma)).map(|vma| vma.start);
    !core::ptr::eq(one, two) && code(one).is_some() && code(one) == code(two)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mm(ranges: &[(u64, u64)]) -> AddressSpace {
        let vma = |start, end, backing| Vma {
            start,
            end,
            prot: 3,
            flags: Vec::new(),
            protection_key: 0,
            page_size: PAGE_SIZE_U64,
            lock_on_fault: false,
            backing,
        };
        let anonymous = || Backing::Anonymous { name: Vec::new() };
        let mut vmas: Vec<Vma> = ranges
            .iter()
            .map(|(start, end)| vma(*start, *end, anonymous()))
            .collect();
        vmas.push(vma(0x7f_0000, 0x7f_1000, Backing::Vdso));
        AddressSpace {
            vmas,
            ..AddressSpace::default()
        }
    }

    #[test]
    fn only_what_a_relative_has_whole_is_filled() {
        let parent = mm(&[(0x1000, 0x3000), (0x4000, 0x6000), (0x8000, 0x9000)]);
        let child = mm(&[(0x1000, 0x6000), (0x8000, 0x9000)]);
        let all = [&parent, &child];
        let whole = filled(&parent, all.into_iter(), &[]);
        assert_eq!(whole.vmas, child.vmas);
        let gap = |start, end, of| Gap { start, end, of };
        assert_eq!(
            gaps(&parent, all.into_iter(), &[]),
            [gap(0x3000, 0x4000, 0)]
        );
        assert_eq!(gaps(&child, all.into_iter(), &[]), []);
        let mut stranger = child.clone();
        stranger.vmas[2].start = 0x7e_0000;
        assert_eq!(gaps(&parent, [&stranger].into_iter(), &[]), []);
        let parent = mm(&[(0x3000, 0x4000), (0x8000, 0x9000)]);
        let child = mm(&[(0x2000, 0x5000), (0x8000, 0x9000)]);
        assert_eq!(
            gaps(&parent, [&child].into_iter(), &[]),
            [gap(0x2000, 0x3000, 0)],
            "the end grows"
        );
    }

    #[test]
    fn several_holes_of_one_mapping() {
        let parent = mm(&[(0x1000, 0x2000), (0x3000, 0x4000), (0x5000, 0x6000)]);
        let child = mm(&[(0x1000, 0x6000)]);
        let whole = filled(&parent, [&child].into_iter(), &[]);
        assert_eq!(whole.vmas, child.vmas);
    }
}
