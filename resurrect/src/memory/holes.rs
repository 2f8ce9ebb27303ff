//! What a process has unmapped of a mapping since it forked a child that has it whole.
//!
//! Parts that a child gets by fork(2) never become one mapping with others (mm/vma.c, is_mergeable_anon_vma). So the
//! process has them until its children are made.

use super::Builder;
use super::inherit::{is_kernels, is_segment, moved, same_kind};
use super::late;
use crate::ResurrectError;
use crate::calls::{Calls, nr};
use persist_mem::manifest::{AddressSpace, SharedObject, Vma};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
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

/// Processes that may have come from one by fork(2): they have the auxiliary vector of one execve(2), with addresses
/// that no other has, as a rule. By that.
#[derive(Debug, Default)]
pub(crate) struct Families<'a>(BTreeMap<&'a [u8], Family<'a>>);

/// All different mappings of several processes.
#[derive(Debug, Default)]
struct Family<'a> {
    /// In ascending order.
    mappings: Vec<&'a Vma>,
    /// How many processes have each.
    owners: Vec<usize>,
    /// A binary tree above them, the root at 1: how far what is below a node reaches.
    reach: Vec<u64>,
}

impl<'a> Families<'a> {
    pub(crate) fn of(all: impl Iterator<Item = &'a AddressSpace>) -> Families<'a> {
        let mut found: BTreeMap<&[u8], Vec<&'a AddressSpace>> = BTreeMap::new();
        for mm in all {
            found.entry(&mm.auxv).or_default().push(mm);
        }
        found.retain(|_, members| members.len() > 1);
        let families = found.into_iter();
        Families(
            families
                .map(|(auxv, members)| (auxv, Family::of(&members)))
                .collect(),
        )
    }

    /// Mappings of a process's relatives, and its own, that have something of a range.
    pub(super) fn overlapping(
        &self,
        mm: &AddressSpace,
        range: Range<u64>,
    ) -> impl Iterator<Item = &'a Vma> + use<'_, 'a> {
        self.owned(mm, range).map(|(vma, _)| vma)
    }

    /// With the number of processes that have each.
    fn owned(
        &self,
        mm: &AddressSpace,
        range: Range<u64>,
    ) -> impl Iterator<Item = (&'a Vma, usize)> + use<'_, 'a> {
        let family = self.0.get(&mm.auxv[..]);
        family.into_iter().flat_map(move |family| {
            let some = family.overlapping(&range).into_iter();
            some.map(|at| (family.mappings[at], family.owners[at]))
        })
    }

    /// Whether a relative has something of a mapping of `mm`.
    pub(super) fn have(&self, mm: &AddressSpace, vma: &Vma) -> bool {
        let mut theirs = self.owned(mm, vma.start..vma.end);
        theirs.any(|(theirs, owners)| {
            let other = owners > 1 || (theirs.start, theirs.end) != (vma.start, vma.end);
            other && same_kind(theirs, vma)
        })
    }
}

impl<'a> Family<'a> {
    fn of(members: &[&'a AddressSpace]) -> Family<'a> {
        let mappings = members.iter().flat_map(|mm| &mm.vmas);
        let mut mappings: Vec<&Vma> = mappings.filter(|vma| can_be_filled(vma)).collect();
        let range = |vma: &&Vma| (vma.start, vma.end);
        mappings.sort_by_key(range);
        let alike = |one: &&Vma, two: &&Vma| range(one) == range(two) && same_kind(one, two);
        let owners = mappings.chunk_by(alike).map(<[&Vma]>::len).collect();
        mappings.dedup_by(|two, one| alike(one, two));
        let leaves = mappings.len().next_power_of_two();
        let mut reach = vec![0; 2 * leaves];
        for (vma, reach) in mappings.iter().zip(&mut reach[leaves..]) {
            *reach = vma.end;
        }
        for node in (1..leaves).rev() {
            reach[node] = reach[2 * node].max(reach[2 * node + 1]);
        }
        Family {
            mappings,
            owners,
            reach,
        }
    }

    /// Those that have something of a range, ascending.
    fn overlapping(&self, range: &Range<u64>) -> Vec<usize> {
        let leaves = self.reach.len() / 2;
        let end = self.mappings.partition_point(|vma| vma.start < range.end);
        let mut found = Vec::new();
        // Nodes, and the first mapping below each and how many there are.
        let mut left = vec![(1, 0, leaves)];
        while let Some((node, first, count)) = left.pop() {
            if first >= end || self.reach[node] <= range.start {
                continue;
            }
            if count == 1 {
                found.push(first);
                continue;
            }
            let half = count / 2;
            left.push((2 * node + 1, first + half, half));
            left.push((2 * node, first, half));
        }
        found
    }
}

/// The address space as it was when a mapping was whole of which a relative still has all.
pub(super) fn filled<'a>(
    mm: &'a AddressSpace,
    families: &Families<'_>,
    objects: &[SharedObject],
) -> Cow<'a, AddressSpace> {
    let early = late::without(mm, families);
    let gaps = gaps(&early, families, objects);
    if gaps.is_empty() {
        return early;
    }
    let mut whole = early.into_owned();
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

/// Takes away what [`filled`] has added, and puts in what it has left out.
pub(super) fn make(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    mm: &AddressSpace,
    families: &Families<'_>,
) -> Result<(), ResurrectError> {
    let mut calls = Calls::new(builder.pid, "unmapping holes", leader);
    let early = late::without(mm, families);
    for gap in gaps(&early, families, builder.saved_objects) {
        let args = [gap.start.into(), (gap.end - gap.start).into()];
        calls.batch().call("unmapping a hole", nr::MUNMAP, args);
        calls.breathe()?;
    }
    calls.flush()?;
    late::make(builder, leader, mm, families)
}

/// Ascending, and apart from each other.
fn gaps(mm: &AddressSpace, families: &Families<'_>, objects: &[SharedObject]) -> Vec<Gap> {
    let mut found: Vec<Gap> = Vec::new();
    for (of, vma) in mm.vmas.iter().enumerate() {
        let before = of.checked_sub(1).and_then(|n| mm.vmas.get(n));
        let after = mm.vmas.get(of + 1);
        let taken = found.last().map_or(0, |gap| gap.end);
        let floor = before.map_or(0, |before| before.end).max(taken);
        let room = floor < vma.start || after.is_some_and(|after| vma.end < after.start);
        if !room || !can_be_filled(vma) || is_segment(vma, objects) {
            continue;
        }
        let (mut start, mut end) = (vma.start, vma.end);
        let theirs = families.overlapping(mm, vma.start..vma.end);
        for theirs in theirs.filter(|theirs| same_kind(theirs, vma)) {
            start = start.min(theirs.start.max(floor));
            // What only its end lacks grows (`grow`).
            let over = after.filter(|after| theirs.end > after.start && same_kind(theirs, after));
            end = end.max(over.map_or(end, |after| after.start));
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
    !is_kernels(vma) && vma.page_size == PAGE_SIZE_U64 && !vma.has(b"dp")
}

/// Whether two that touch, now that what was between them is filled, are one.
fn alike(one: &Vma, two: &Vma) -> bool {
    moved(&one.backing, two.start - one.start) == two.backing
        && (one.prot, &one.flags, one.protection_key, one.lock_on_fault)
            == (two.prot, &two.flags, two.protection_key, two.lock_on_fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use persist_mem::manifest::Backing;

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
        let all = Families::of([&parent, &child].into_iter());
        let whole = filled(&parent, &all, &[]);
        assert_eq!(whole.vmas, child.vmas);
        let gap = |start, end, of| Gap { start, end, of };
        assert_eq!(gaps(&parent, &all, &[]), [gap(0x3000, 0x4000, 0)]);
        assert_eq!(gaps(&child, &all, &[]), []);
        let mut stranger = child.clone();
        stranger.auxv = vec![1];
        assert_eq!(
            gaps(
                &parent,
                &Families::of([&parent, &stranger].into_iter()),
                &[]
            ),
            []
        );
        let parent = mm(&[(0x3000, 0x4000), (0x8000, 0x9000)]);
        let child = mm(&[(0x2000, 0x5000), (0x8000, 0x9000)]);
        assert_eq!(
            gaps(&parent, &Families::of([&parent, &child].into_iter()), &[]),
            [gap(0x2000, 0x3000, 0)],
            "the end grows"
        );
    }

    #[test]
    fn several_holes_of_one_mapping() {
        let parent = mm(&[(0x1000, 0x2000), (0x3000, 0x4000), (0x5000, 0x6000)]);
        let child = mm(&[(0x1000, 0x6000)]);
        let whole = filled(&parent, &Families::of([&parent, &child].into_iter()), &[]);
        assert_eq!(whole.vmas, child.vmas);
    }

    #[test]
    fn all_that_overlap_are_found() {
        let one = mm(&[(0x1000, 0x9000), (0xa000, 0xb000)]);
        let two = mm(&[(0x2000, 0x3000), (0x8000, 0xc000)]);
        let all = Families::of([&one, &two].into_iter());
        let found = |range| {
            let found = all.overlapping(&one, range);
            found.map(|vma| vma.start).collect::<Vec<_>>()
        };
        assert!(found(0x0..0x1000).is_empty());
        assert_eq!(found(0x4000..0x5000), [0x1000]);
        assert_eq!(found(0x2000..0x8001), [0x1000, 0x2000, 0x8000]);
        assert_eq!(found(0x9000..0xa001), [0x8000, 0xa000]);
        assert!(found(0xc000..0xd000).is_empty());
        let many: Vec<_> = (0..9).map(|n| (0x1000 * n, 0x1000 * (n + 1))).collect();
        let (whole, parts) = (mm(&[(0, 0x9000)]), mm(&many));
        let all = Families::of([&whole, &parts].into_iter());
        let found = all.overlapping(&parts, 0x5000..0x6000);
        let found: Vec<_> = found.map(|vma| (vma.start, vma.end)).collect();
        assert_eq!(found, [(0, 0x9000), (0x5000, 0x6000)]);
    }
}
