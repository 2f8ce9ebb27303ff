//! What a process has mapped since it forked a child that has, in one mapping, what was there before.
//!
//! It is put in after the children are made: until then the process has there what they have ([`super::holes`]).

use super::Builder;
use super::apart::accounted;
use super::holes::Families;
use super::inherit::{WORTH, is_kernels, same_kind};
use super::pages::split;
use super::{map, pages};
use crate::ResurrectError;
use core::ptr::from_ref;
use persist_mem::manifest::{AddressSpace, PageRange, Vma};
use std::borrow::Cow;
use std::collections::BTreeMap;
use sys::PAGE_SIZE_U64;
use sys::tracee::Tracee;

/// An address space without what comes late.
pub(super) fn without<'a>(mm: &'a AddressSpace, families: &Families<'_>) -> Cow<'a, AddressSpace> {
    let late = late(mm, families);
    if late.is_empty() {
        return Cow::Borrowed(mm);
    }
    let (_, extents) = split(&mm.extents, &late);
    let is_late = |va: u64| covers(&late, va);
    let mut rest = mm.clone();
    rest.vmas.retain(|vma| !is_late(vma.start));
    rest.huge.retain(|range| !is_late(range.va));
    rest.extents = extents;
    Cow::Owned(rest)
}

/// Puts it in.
pub(super) fn make(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    mm: &AddressSpace,
    families: &Families<'_>,
) -> Result<(), ResurrectError> {
    let late = late(mm, families);
    if late.is_empty() {
        return Ok(());
    }
    let is_late = |va: u64| covers(&late, va);
    let vmas: Vec<Vma> = mm
        .vmas
        .iter()
        .filter(|vma| is_late(vma.start))
        .cloned()
        .collect();
    map::make(builder, leader, &vmas, mm)?;
    let (extents, _) = split(&mm.extents, &late);
    let part = AddressSpace {
        huge: mm
            .huge
            .iter()
            .filter(|range| is_late(range.va))
            .copied()
            .collect(),
        vmas,
        extents,
        ..AddressSpace::default()
    };
    pages::fill_new(builder, leader, &part)
}

fn covers(late: &[PageRange], va: u64) -> bool {
    let end = |range: &PageRange| range.va + range.pages * PAGE_SIZE_U64;
    let at = late.partition_point(|range| end(range) <= va);
    late.get(at).is_some_and(|range| range.va <= va)
}

/// Ranges of mappings, ascending.
fn late(mm: &AddressSpace, families: &Families<'_>) -> Vec<PageRange> {
    let mut found = Vec::new();
    // A mapping of a child's that many are instead of is looked at once.
    let mut known = BTreeMap::new();
    for vma in &mm.vmas {
        let mut theirs = families.overlapping(mm, vma.start..vma.end);
        let instead = |whole: &Vma| {
            let beyond = whole.start < vma.start || vma.end < whole.end;
            beyond
                && !fits(whole, vma)
                && *known
                    .entry(from_ref(whole))
                    .or_insert_with(|| is_around(whole, mm))
        };
        if !is_kernels(vma) && theirs.any(instead) && !may_be_shared(vma, mm, families) {
            found.push(PageRange {
                va: vma.start,
                pages: vma.len() / PAGE_SIZE_U64,
            });
        }
    }
    found
}

/// Whether a child's mapping may be, in part, what its parent's has been at the fork.
fn fits(whole: &Vma, part: &Vma) -> bool {
    // What has had pages counts as memory that may be needed for ever (mm/mprotect.c, mprotect_fixup).
    same_kind(whole, part) && (accounted(part) || !accounted(whole))
}

/// Whether a mapping of the address space may be a part of `whole`.
fn is_around(whole: &Vma, mm: &AddressSpace) -> bool {
    let first = mm.vmas.partition_point(|vma| vma.end <= whole.start);
    let mut some = mm.vmas[first..]
        .iter()
        .take_while(|vma| vma.start < whole.end);
    some.any(|vma| fits(whole, vma))
}

/// Whether a child may have many of its pages as well: it has them in common only with what is there at the fork, and
/// gets copies of what comes later.
fn may_be_shared(vma: &Vma, mm: &AddressSpace, families: &Families<'_>) -> bool {
    let range = PageRange {
        va: vma.start,
        pages: vma.len() / PAGE_SIZE_U64,
    };
    map::has_pages(vma, mm) && families.have(mm, vma) && {
        let (pages, _) = split(&mm.extents, &[range]);
        pages.iter().map(|extent| extent.pages).sum::<u64>() > WORTH
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use persist_mem::manifest::{Backing, Extent};

    fn vma(start: u64, end: u64, flags: &[&[u8; 2]]) -> Vma {
        Vma {
            start,
            end,
            prot: 3,
            flags: flags.iter().map(|flag| **flag).collect(),
            protection_key: 0,
            page_size: PAGE_SIZE_U64,
            lock_on_fault: false,
            backing: Backing::Anonymous { name: Vec::new() },
        }
    }

    fn mm(mut vmas: Vec<Vma>) -> AddressSpace {
        let mut vdso = vma(0x7f_0000, 0x7f_1000, &[]);
        vdso.backing = Backing::Vdso;
        vmas.push(vdso);
        AddressSpace {
            vmas,
            ..AddressSpace::default()
        }
    }

    #[test]
    fn what_was_put_in_the_middle_comes_late() {
        let file = Vma {
            backing: Backing::Zero { offset: 0 },
            ..vma(0x3000, 0x4000, &[])
        };
        let reserve = vma(0x5000, 0x6000, &[b"nr"]);
        let mut parent = mm(vec![
            vma(0x1000, 0x3000, &[b"ac"]),
            file.clone(),
            reserve,
            vma(0x8000, 0x9000, &[]),
        ]);
        let child = mm(vec![
            vma(0x1000, 0x5000, &[b"ac"]),
            vma(0x8000, 0x9000, &[]),
        ]);
        let range = PageRange {
            va: 0x3000,
            pages: 1,
        };
        let all = Families::of([&parent, &child].into_iter());
        assert_eq!(late(&parent, &all), [range]);
        assert_eq!(late(&child, &all), []);
        assert_eq!(without(&parent, &all).vmas.len(), 4);
        let other = mm(vec![file]);
        let all = Families::of([&parent, &child, &other].into_iter());
        assert_eq!(late(&parent, &all), [range], "nothing is in it");
        let with_page = AddressSpace {
            extents: vec![Extent {
                va: 0x3000,
                pages: 1,
                frame: 7,
            }],
            ..parent.clone()
        };
        let all = Families::of([&with_page, &child].into_iter());
        assert_eq!(late(&with_page, &all), [range], "nobody else has it");
        assert!(without(&with_page, &all).extents.is_empty());
        let all = Families::of([&with_page, &child, &other].into_iter());
        assert_eq!(late(&with_page, &all), [range], "a page is copied");
        parent.vmas[1] = vma(0x3000, 0x4000, &[]);
        let all = Families::of([&parent, &child].into_iter());
        assert_eq!(late(&parent, &all), [range], "it has never had a page");
    }

    #[test]
    fn what_may_be_in_common_is_there_at_the_fork() {
        let file = Vma {
            backing: Backing::Zero { offset: 0 },
            ..vma(0x10_0000, 0x20_0000, &[])
        };
        let whole = [(0, 0x10_0000), (0x20_0000, 0x30_0000)];
        let [below, above] = whole.map(|(start, end)| vma(start, end, &[]));
        let parent = AddressSpace {
            extents: vec![Extent {
                va: 0x10_0000,
                pages: WORTH + 1,
                frame: 7,
            }],
            ..mm(vec![below, file.clone(), above])
        };
        let child = mm(vec![vma(0, 0x30_0000, &[])]);
        let all = Families::of([&parent, &child].into_iter());
        assert_eq!(late(&parent, &all).len(), 1);
        let other = mm(vec![file]);
        let all = Families::of([&parent, &child, &other].into_iter());
        assert_eq!(late(&parent, &all), []);
    }
}
