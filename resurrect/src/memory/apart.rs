//! Neighbours that the kernel would make one mapping of, and that were two.
//!
//! Anonymous mappings of one kind that touch each other are one, unless both have had pages before they came to
//! touch, or to stand where they are (mremap(2)): then each has an `anon_vma` of its own, and stays what it is
//! (mm/vma.c, is_mergeable_anon_vma). So every second one is made while its neighbours are not there, touched,
//! and moved aside until they are.

use super::Builder;
use super::empty::MREMAP_MOVE_TO;
use super::inherit::moved;
use super::map::has_pages;
use crate::ResurrectError;
use crate::calls::{Calls, nr};
use crate::scratch;
use persist_mem::manifest::{AddressSpace, Backing, MemoryPolicy, Vma};
use sys::PAGE_SIZE_U64;
use sys::tracee::Tracee;

const MADV_DONTNEED: i32 = 4;
/// A flag that says nothing of what a mapping is: it has been written to since somebody asked.
const SOFT_DIRTY: &[u8; 2] = b"sd";

/// In which order mappings are made.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan<'a> {
    /// Made first, group by group, each touched and moved aside to its address there.
    pub(super) aside: [Vec<(&'a Vma, u64)>; 2],
    /// Made where they belong.
    pub(super) rest: Vec<&'a Vma>,
    /// Those of them that are touched.
    touched: Vec<&'a Vma>,
}

/// Whether the kernel would make one mapping of two of an address space, the one at the lower address first.
pub(super) fn would_merge(one: &Vma, two: &Vma, mm: &AddressSpace) -> bool {
    let small = |vma: &Vma| vma.page_size == PAGE_SIZE_U64;
    let flags = |vma: &Vma| -> Vec<[u8; 2]> {
        let all = vma.flags.iter().filter(|flag| *flag != SOFT_DIRTY);
        all.copied().collect()
    };
    one.end == two.start
        && (one.prot, one.protection_key, one.lock_on_fault)
            == (two.prot, two.protection_key, two.lock_on_fault)
        && small(one)
        && small(two)
        && moved(&one.backing, one.len()) == two.backing
        && flags(one) == flags(two)
        && policy_at(one.start, mm) == policy_at(two.start, mm)
}

/// mbind(2) parts mappings that nothing else parts.
fn policy_at(address: u64, mm: &AddressSpace) -> Option<&MemoryPolicy> {
    let mut ranges = mm.policies.iter();
    let of = ranges.find(|range| range.start <= address && address < range.end);
    of.map(|range| &range.policy)
}

/// Whether its flag `ac` goes when it loses the right to be written, unless it has had a page
/// (mm/mprotect.c, mprotect_fixup).
fn must_have_had_pages(vma: &Vma, mm: &AddressSpace) -> bool {
    accounted(vma)
        && vma.prot & super::map::PROT_WRITE == 0
        && anonymous(vma)
        && !has_pages(vma, mm)
}

/// Whether it counts as memory that may be needed (`ac`), which a private mapping does once it has been
/// writable.
pub(super) fn accounted(vma: &Vma) -> bool {
    vma.has(b"ac") && !vma.has(b"sh") && vma.page_size == PAGE_SIZE_U64
}

fn anonymous(vma: &Vma) -> bool {
    matches!(vma.backing, Backing::Anonymous { .. })
}

/// Orders mappings. `free` finds so many bytes that nothing else uses; without them neighbours become one.
pub(super) fn plan<'a>(
    vmas: &'a [Vma],
    mm: &AddressSpace,
    free: impl FnOnce(u64) -> Option<u64>,
) -> Plan<'a> {
    let touches = |n: usize| {
        let before = n.checked_sub(1).and_then(|n| vmas.get(n));
        let pair = before.zip(vmas.get(n));
        pair.is_some_and(|(one, two)| anonymous(one) && would_merge(one, two, mm))
    };
    let later: Vec<bool> = (0..vmas.len()).map(touches).collect();
    let moved = vmas.iter().zip(&later).filter(|(_, later)| **later);
    // A page stays between them.
    let room = moved.map(|(vma, _)| vma.len() + PAGE_SIZE_U64).sum::<u64>();
    let place = if room == 0 { None } else { free(room) };
    let mut plan = Plan::default();
    let Some(mut at) = place else {
        plan.rest = vmas.iter().collect();
        plan.touched = vmas
            .iter()
            .filter(|vma| must_have_had_pages(vma, mm))
            .collect();
        return plan;
    };
    let mut in_row = 0;
    for (n, vma) in vmas.iter().enumerate() {
        in_row = if later[n] { in_row + 1 } else { 0 };
        if in_row > 0 {
            plan.aside[in_row % 2].push((vma, at));
            at += vma.len() + PAGE_SIZE_U64;
            continue;
        }
        plan.rest.push(vma);
        if later.get(n + 1) == Some(&true) || must_have_had_pages(vma, mm) {
            plan.touched.push(vma);
        }
    }
    plan
}

/// Addresses that nothing of the process uses, now or later.
pub(super) fn free(builder: &Builder<'_>, mm: &AddressSpace, len: u64) -> Option<u64> {
    let mut used = vec![builder.scratch];
    used.extend(mm.vmas.iter().map(|vma| (vma.start, vma.end)));
    used.extend(mm.aio.iter().map(|ring| (ring.start, ring.end)));
    let rings = mm.rings.iter().chain(&mm.packet_rings);
    used.extend(rings.map(|ring| (ring.start, ring.end)));
    scratch::gap(used, len)
}

impl Plan<'_> {
    /// Touches one of the groups that were made first, and moves it aside.
    pub(super) fn move_aside(
        &self,
        group: usize,
        builder: &Builder<'_>,
        leader: &mut Tracee,
    ) -> Result<(), ResurrectError> {
        let moves = &self.aside[group];
        let ranges: Vec<_> = moves.iter().map(|(vma, _)| (vma.start, vma.end)).collect();
        touch(builder, leader, &ranges)?;
        let moves = moves.iter().map(|(vma, to)| (vma.start, vma.len(), *to));
        relocate(builder, leader, moves)
    }

    /// Touches what is to be, and moves back what was moved aside.
    pub(super) fn move_back(
        &self,
        builder: &Builder<'_>,
        leader: &mut Tracee,
    ) -> Result<(), ResurrectError> {
        let ranges = self.touched.iter().map(|vma| (vma.start, vma.end));
        touch(builder, leader, &ranges.collect::<Vec<_>>())?;
        let moves = self.aside.iter().flatten();
        let moves = moves.map(|(vma, from)| (*from, vma.len(), vma.start));
        relocate(builder, leader, moves)
    }
}

/// Gives each range a page and takes it away again. It is written from outside, whatever its protection is; a kernel
/// that does not allow that (`proc_mem.force_override`) makes one mapping of two.
pub(super) fn touch(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    ranges: &[(u64, u64)],
) -> Result<(), ResurrectError> {
    let doing = "touching memory";
    for (start, _) in ranges {
        if let Err(why) = leader.mem().write(*start, &[0]) {
            log::debug!("{doing} at {start:#x}: {why}");
        }
    }
    let mut calls = Calls::new(builder.pid, doing, leader);
    for (start, end) in ranges {
        let args = [(*start).into(), (end - start).into(), MADV_DONTNEED.into()];
        calls.batch().call(doing, nr::MADVISE, args);
        calls.breathe()?;
    }
    calls.flush()
}

/// Moves mappings: from where, how many bytes, and where to.
fn relocate(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    moves: impl Iterator<Item = (u64, u64, u64)>,
) -> Result<(), ResurrectError> {
    let doing = "keeping mappings apart";
    let mut calls = Calls::new(builder.pid, doing, leader);
    for (from, len, to) in moves {
        let args = [
            from.into(),
            len.into(),
            len.into(),
            MREMAP_MOVE_TO.into(),
            to.into(),
        ];
        calls.batch().call(doing, nr::MREMAP, args);
        calls.breathe()?;
    }
    calls.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use persist_mem::manifest::PolicyRange;

    fn vma(start: u64, end: u64, prot: u32, flags: &[&[u8; 2]]) -> Vma {
        Vma {
            start,
            end,
            prot,
            flags: flags.iter().map(|flag| **flag).collect(),
            protection_key: 0,
            page_size: PAGE_SIZE_U64,
            lock_on_fault: false,
            backing: Backing::Anonymous { name: Vec::new() },
        }
    }

    #[test]
    fn neighbours_of_a_kind_are_made_apart() {
        let mm = AddressSpace::default();
        let vmas = [
            vma(0x1000, 0x3000, 3, &[b"ac"]),
            vma(0x3000, 0x4000, 3, &[b"ac", b"sd"]),
            vma(0x4000, 0x6000, 3, &[b"ac"]),
            vma(0x6000, 0x7000, 1, &[b"ac"]),
            vma(0x8000, 0x9000, 3, &[b"ac"]),
        ];
        let found = plan(&vmas, &mm, |room| {
            assert_eq!(room, 0x1000 + 0x2000 + 2 * PAGE_SIZE_U64);
            Some(0x10_0000)
        });
        assert_eq!(found.aside[1], [(&vmas[1], 0x10_0000)]);
        assert_eq!(found.aside[0], [(&vmas[2], 0x10_2000)]);
        assert_eq!(found.rest, [&vmas[0], &vmas[3], &vmas[4]]);
        assert_eq!(
            found.touched,
            [&vmas[0], &vmas[3]],
            "the first of a row, and what keeps a flag only by having had a page"
        );
        let found = plan(&vmas, &mm, |_| None);
        assert_eq!(found.rest.len(), 5, "no room: they become one");
    }

    #[test]
    fn what_the_kernel_keeps_apart_by_itself() {
        let mut mm = AddressSpace::default();
        let one = vma(0x1000, 0x2000, 3, &[b"ac"]);
        let two = |prot, flags| vma(0x2000, 0x3000, prot, flags);
        assert!(would_merge(&one, &two(3, &[b"ac"]), &mm));
        assert!(!would_merge(&one, &two(1, &[b"ac"]), &mm));
        assert!(!would_merge(&one, &two(3, &[b"ac", b"dd"]), &mm));
        let far = vma(0x3000, 0x4000, 3, &[b"ac"]);
        assert!(!would_merge(&one, &far, &mm));
        let zero = |start: u64, offset| Vma {
            backing: Backing::Zero { offset },
            ..vma(start, start + 0x1000, 3, &[])
        };
        assert!(would_merge(&zero(0x1000, 0), &zero(0x2000, 0x1000), &mm));
        assert!(!would_merge(&zero(0x1000, 0), &zero(0x2000, 0), &mm));
        mm.policies.push(PolicyRange {
            start: 0x2000,
            end: 0x3000,
            policy: MemoryPolicy {
                mode: 1,
                nodes: vec![1],
            },
        });
        assert!(!would_merge(&one, &two(3, &[b"ac"]), &mm));
    }
}
