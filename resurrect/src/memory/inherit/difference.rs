//! What a child has otherwise than the process that forked it: a pure function of two address spaces.

use super::super::apart::{accounted, would_merge};
use super::super::grow::Grown;
use super::super::pages::split;
use super::kernels;
use persist_mem::manifest::{
    AddressSpace, Backing, Extent, PageRange, SharedKind, SharedObject, Vma,
};
use sys::PAGE_SIZE_U64;

/// Pages in common that are given up so that a mapping stays one.
const FEW: u64 = 16;

/// The difference between two address spaces.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Difference {
    /// Parts of mappings that the child has from its parent: range, and the parent's mapping.
    pub(super) kept: Vec<Kept>,
    /// What only the parent has mapped.
    pub(super) unmap: Vec<(u64, u64)>,
    /// What only the child has mapped.
    pub(super) map: Vec<Vma>,
    /// Mappings that have grown in the child: what is around the part that it has from its parent.
    pub(super) grown: Vec<Grown>,
    /// Pages to be written.
    pub(super) write: Vec<Extent>,
    /// Pages of the parent that the child does not have, in mappings it has.
    pub(super) drop: Vec<PageRange>,
    /// Pages in common.
    pub(super) same: Vec<PageRange>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kept {
    pub(super) start: u64,
    pub(super) end: u64,
    /// Index of the parent's mapping.
    pub(super) parent: usize,
    /// The child's counts as memory that may be needed.
    pub(super) accounted: bool,
}

pub(in super::super) fn end(range: &PageRange) -> u64 {
    range.va + range.pages * PAGE_SIZE_U64
}

pub(in super::super) fn overlaps(range: &PageRange, others: &[PageRange]) -> bool {
    let from = others.partition_point(|other| end(other) <= range.va);
    others.get(from).is_some_and(|other| other.va < end(range))
}

pub(super) fn difference(
    parent: &AddressSpace,
    child: &AddressSpace,
    objects: &[SharedObject],
) -> Difference {
    let mut found = Difference::default();
    let mut before: Option<(&Vma, Difference)> = None;
    for vma in child.vmas.iter().filter(|vma| !kernels(vma)) {
        let mut parts = Difference::default();
        compare(vma, &parent.vmas, objects, &mut parts);
        parts.grow(vma, parent, child);
        // What is inherited in part comes back as several mappings (mm/vma.c, is_mergeable_anon_vma): worth it
        // only for pages in common.
        if parts.kept.len() + parts.map.len() > 1 && in_common(parent, child, &parts.kept) == 0 {
            parts = all_new(vma);
        }
        if let Some((neighbour, theirs)) = &mut before
            && are_one(&theirs.kept, &parts.kept)
            && would_merge(neighbour, vma, child)
        {
            let pages = |parts: &Difference| in_common(parent, child, &parts.kept);
            if pages(theirs) < pages(&parts) {
                *theirs = all_new(neighbour);
            } else {
                parts = all_new(vma);
            }
        }
        found.take(before.replace((vma, parts)));
    }
    found.take(before);
    // Kept parts are in ascending order, and so are the mappings they are parts of.
    let mut kept = found.kept.iter().peekable();
    for (index, vma) in parent.vmas.iter().enumerate() {
        if kernels(&vma) || is_segment(vma, objects) {
            continue;
        }
        let mut at = vma.start;
        while let Some(part) = kept.next_if(|part| part.parent == index) {
            if part.start > at {
                found.unmap.push((at, part.start));
            }
            at = part.end;
        }
        if at < vma.end {
            found.unmap.push((at, vma.end));
        }
    }
    compare_pages(parent, child, &mut found);
    found
}

impl Difference {
    /// Adds what was found of a mapping.
    fn take(&mut self, of: Option<(&Vma, Difference)>) {
        let Some((_, mut parts)) = of else { return };
        self.kept.append(&mut parts.kept);
        self.map.append(&mut parts.map);
        self.grown.append(&mut parts.grown);
    }

    /// What a kept part is a part of in the child, as far as that has come about.
    pub(super) fn whole(&self, kept: &Kept) -> (u64, u64) {
        let own = (kept.start, kept.end);
        let grown = self.grown.iter().find(|grown| grown.from == own);
        let Some(to) = grown.map(|grown| &grown.to) else {
            return own;
        };
        let mapped = |at: u64| self.map.iter().any(|vma| vma.start <= at && at < vma.end);
        let start = if mapped(to.start) { own.0 } else { to.start };
        let end = if mapped(to.end - 1) { own.1 } else { to.end };
        (start, end)
    }

    /// What was found of `vma` is one mapping that has grown, if it can be made so. Of several parts the one that has
    /// most in common grows over the others.
    fn grow(&mut self, vma: &Vma, parent: &AddressSpace, child: &AddressSpace) {
        let all = in_common(parent, child, &self.kept);
        if self.kept.len() + self.map.len() < 2 || all == 0 {
            return;
        }
        let pages = |kept: &Kept| in_common(parent, child, core::slice::from_ref(kept));
        let Some(kept) = self.kept.iter().max_by_key(|kept| pages(kept)).cloned() else {
            return;
        };
        if all - pages(&kept) > FEW {
            return;
        }
        let theirs = parent.vmas.get(kept.parent);
        let grown = theirs.and_then(|theirs| Grown::of(vma, theirs, (kept.start, kept.end)));
        if grown.is_some() {
            self.map.clear();
            self.kept = vec![kept];
            self.grown.extend(grown);
        }
    }
}

/// A mapping of which nothing is taken over.
fn all_new(vma: &Vma) -> Difference {
    Difference {
        map: vec![vma.clone()],
        ..Difference::default()
    }
}

/// Whether parts of neighbours touch within one mapping of the parent.
fn are_one(one: &[Kept], two: &[Kept]) -> bool {
    let touch = one.last().zip(two.first());
    touch.is_some_and(|(one, two)| one.end == two.start && one.parent == two.parent)
}

/// Cuts a mapping of the child into parts that the parent maps as well, and others.
fn compare(vma: &Vma, parent: &[Vma], objects: &[SharedObject], found: &mut Difference) {
    let part = |start: u64, end: u64| Vma {
        start,
        end,
        backing: moved(&vma.backing, start - vma.start),
        ..vma.clone()
    };
    let mut at = vma.start;
    let first = parent.partition_point(|other| other.end <= vma.start);
    for (index, other) in parent.iter().enumerate().skip(first) {
        if other.start >= vma.end {
            break;
        }
        if is_segment(vma, objects) || !same_kind(vma, other) {
            continue;
        }
        let (start, end) = (vma.start.max(other.start), vma.end.min(other.end));
        if start > at {
            found.map.push(part(at, start));
        }
        found.kept.push(Kept {
            start,
            end,
            parent: index,
            accounted: accounted(vma),
        });
        at = end;
    }
    if at < vma.end {
        found.map.push(part(at, vma.end));
    }
}

/// Whether two mappings show the same where they overlap, apart from what is set at the end.
pub(in super::super) fn same_kind(one: &Vma, two: &Vma) -> bool {
    /// Fixed when a mapping is made, but for `hg`, which cannot be taken back.
    const FLAGS: [&[u8; 2]; 4] = [b"gd", b"nr", b"hg", b"mw"];
    // Droppable memory does not survive a fork.
    let other = one.has(b"dp") || two.has(b"dp") || one.page_size != two.page_size;
    // Once it counts as memory that may be needed, it always does.
    let counts = accounted(two) && !accounted(one);
    if other || counts || FLAGS.iter().any(|flag| one.has(flag) != two.has(flag)) {
        return false;
    }
    match (&one.backing, &two.backing) {
        // Their names come at the end.
        (Backing::Anonymous { .. }, Backing::Anonymous { .. }) => true,
        (a, b) => {
            let zero = |backing, start: u64| moved(backing, 0_u64.wrapping_sub(start));
            zero(a, one.start) == zero(b, two.start)
        }
    }
}

/// System V segments are attached by each process for itself, later.
pub(in super::super) fn is_segment(vma: &Vma, objects: &[SharedObject]) -> bool {
    let Backing::Object { object, .. } = &vma.backing else {
        return false;
    };
    let found = objects.iter().find(|found| found.id == *object);
    found.is_some_and(|found| matches!(found.kind, SharedKind::SystemV(_)))
}

/// What a part of a mapping shows that begins `by` bytes after it.
pub(in super::super) fn moved(backing: &Backing, by: u64) -> Backing {
    let mut backing = backing.clone();
    match &mut backing {
        Backing::File { offset, .. }
        | Backing::Object { offset, .. }
        | Backing::Zero { offset } => *offset = offset.wrapping_add(by),
        Backing::Anonymous { .. } | Backing::Vdso | Backing::Vvar => {}
    }
    backing
}

fn compare_pages(parent: &AddressSpace, child: &AddressSpace, found: &mut Difference) {
    let kept: Vec<PageRange> = found.kept.iter().map(range_of).collect();
    let (theirs, _) = split(&parent.extents, &kept);
    found.same = common(&theirs, &child.extents, &kept);
    (_, found.write) = split(&child.extents, &found.same);
    let ranges = |extents: &[Extent]| -> Vec<PageRange> {
        let range = |e: &Extent| PageRange {
            va: e.va,
            pages: e.pages,
        };
        extents.iter().map(range).collect()
    };
    let (_, dropped) = split(&theirs, &ranges(&child.extents));
    found.drop = ranges(&dropped);
}

/// How many pages both have in common in these parts.
fn in_common(parent: &AddressSpace, child: &AddressSpace, kept: &[Kept]) -> u64 {
    let kept: Vec<PageRange> = kept.iter().map(range_of).collect();
    let (theirs, _) = split(&parent.extents, &kept);
    let common = common(&theirs, &child.extents, &kept);
    common.iter().map(|range| range.pages).sum()
}

pub(super) fn range_of(kept: &Kept) -> PageRange {
    PageRange {
        va: kept.start,
        pages: (kept.end - kept.start) / PAGE_SIZE_U64,
    }
}

/// Where both have the same page at the same address, inside of `kept`.
fn common(theirs: &[Extent], ours: &[Extent], kept: &[PageRange]) -> Vec<PageRange> {
    let (ours, _) = split(ours, kept);
    let page_end = |e: &Extent| e.va + e.pages * PAGE_SIZE_U64;
    let mut same = Vec::new();
    let (mut i, mut j) = (0, 0);
    while let (Some(a), Some(b)) = (theirs.get(i), ours.get(j)) {
        let (start, stop) = (a.va.max(b.va), page_end(a).min(page_end(b)));
        if start < stop {
            let frame = |e: &Extent| e.frame + (start - e.va) / PAGE_SIZE_U64;
            if frame(a) == frame(b) {
                let pages = (stop - start) / PAGE_SIZE_U64;
                same.push(PageRange { va: start, pages });
            }
        }
        if page_end(a) <= page_end(b) {
            i += 1;
        } else {
            j += 1;
        }
    }
    same
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vma(start: u64, end: u64) -> Vma {
        Vma {
            start,
            end,
            prot: 3,
            flags: Vec::new(),
            protection_key: 0,
            page_size: PAGE_SIZE_U64,
            lock_on_fault: false,
            backing: Backing::Anonymous { name: Vec::new() },
        }
    }

    fn extent(va: u64, pages: u64, frame: u64) -> Extent {
        Extent { va, pages, frame }
    }

    #[test]
    fn what_the_parent_has_in_parts_stays_one() {
        let protected = Vma {
            prot: 1,
            ..vma(0x1_4000, 0x2_0000)
        };
        let parent = AddressSpace {
            vmas: vec![vma(0x1_0000, 0x1_4000), protected],
            extents: vec![extent(0x1_0000, 4, 100), extent(0x1_4000, 1, 200)],
            ..AddressSpace::default()
        };
        let child = AddressSpace {
            vmas: vec![vma(0x1_0000, 0x2_0000)],
            extents: vec![extent(0x1_0000, 4, 100), extent(0x1_4000, 1, 200)],
            ..AddressSpace::default()
        };
        let found = difference(&parent, &child, &[]);
        let grown = Grown {
            from: (0x1_0000, 0x1_4000),
            to: child.vmas[0].clone(),
        };
        assert_eq!(found.grown, [grown], "over the other part");
        assert_eq!(found.unmap, [(0x1_4000, 0x2_0000)]);
        assert_eq!(found.write, [extent(0x1_4000, 1, 200)]);
    }

    #[test]
    fn the_difference_of_a_child() {
        let parent = AddressSpace {
            vmas: vec![vma(0x1_0000, 0x2_0000), vma(0x3_0000, 0x4_0000)],
            extents: vec![extent(0x1_0000, 8, 100), extent(0x3_0000, 2, 200)],
            ..AddressSpace::default()
        };
        let child = AddressSpace {
            vmas: vec![vma(0xf000, 0x1_8000), vma(0x5_0000, 0x6_0000)],
            extents: vec![
                extent(0xf000, 1, 50),
                extent(0x1_0000, 3, 100),
                extent(0x1_3000, 1, 60),
                extent(0x1_5000, 1, 105),
                extent(0x5_0000, 1, 70),
            ],
            ..AddressSpace::default()
        };
        let found = difference(&parent, &child, &[]);
        assert_eq!(found.unmap, [(0x1_8000, 0x2_0000), (0x3_0000, 0x4_0000)]);
        assert_eq!(
            found.map,
            [vma(0xf000, 0x1_0000), vma(0x5_0000, 0x6_0000)],
            "what the parent does not have"
        );
        assert_eq!(found.grown, [], "it is not a stack");
        let range = |va, pages| PageRange { va, pages };
        assert_eq!(found.same, [range(0x1_0000, 3), range(0x1_5000, 1)]);
        assert_eq!(
            found.write,
            [
                extent(0xf000, 1, 50),
                extent(0x1_3000, 1, 60),
                extent(0x5_0000, 1, 70)
            ]
        );
        assert_eq!(found.drop, [range(0x1_4000, 1), range(0x1_6000, 2)]);
    }

    #[test]
    fn what_has_grown_stays_one() {
        let stack = |start, end| Vma {
            flags: vec![*b"gd"],
            ..vma(start, end)
        };
        let mm = |vma: Vma| AddressSpace {
            extents: vec![extent(0x1_8000, 8, 100)],
            vmas: vec![vma],
            ..AddressSpace::default()
        };
        let parent = mm(stack(0x1_8000, 0x2_0000));
        let child = mm(stack(0x1_0000, 0x2_0000));
        let found = difference(&parent, &child, &[]);
        let grown = |from, vma: &Vma| Grown {
            from,
            to: vma.clone(),
        };
        assert_eq!(found.map, []);
        let all = (0x1_8000, 0x2_0000);
        assert_eq!(found.grown, [grown(all, &child.vmas[0])]);
        assert_eq!(found.whole(&found.kept[0]), (0x1_0000, 0x2_0000));

        let parent = mm(vma(0x1_8000, 0x2_0000));
        let child = mm(vma(0x1_8000, 0x2_8000));
        let found = difference(&parent, &child, &[]);
        assert_eq!(found.grown, [grown(all, &child.vmas[0])], "upwards");
        let child = mm(vma(0x1_0000, 0x2_0000));
        let found = difference(&parent, &child, &[]);
        assert_eq!(found.grown, [], "only stacks grow downwards");
        assert_eq!(found.map, [vma(0x1_0000, 0x1_8000)]);
    }

    #[test]
    fn two_that_were_one_in_the_parent() {
        let parent = AddressSpace {
            vmas: vec![vma(0x1_0000, 0x2_0000)],
            extents: vec![extent(0x1_0000, 16, 100)],
            ..AddressSpace::default()
        };
        let mut child = AddressSpace {
            vmas: vec![vma(0x1_0000, 0x1_8000), vma(0x1_8000, 0x2_0000)],
            extents: vec![extent(0x1_0000, 8, 300), extent(0x1_8000, 8, 108)],
            ..AddressSpace::default()
        };
        let found = difference(&parent, &child, &[]);
        assert_eq!(found.map, [vma(0x1_0000, 0x1_8000)], "the one of its own");
        assert_eq!(found.unmap, [(0x1_0000, 0x1_8000)]);
        child.extents = vec![extent(0x1_0000, 8, 100), extent(0x1_8000, 8, 300)];
        let found = difference(&parent, &child, &[]);
        assert_eq!(found.map, [vma(0x1_8000, 0x2_0000)], "the other one");
        assert_eq!(found.kept.len(), 1);
    }

    #[test]
    fn other_files_are_not_taken_over() {
        let file = |offset| Vma {
            backing: Backing::Zero { offset },
            ..vma(0x1_0000, 0x2_0000)
        };
        assert!(same_kind(&file(0), &file(0)));
        assert!(!same_kind(&file(0), &file(0x1000)), "another offset");
        assert!(!same_kind(&file(0), &vma(0x1_0000, 0x2_0000)));
        let part = Vma {
            start: 0x1_4000,
            ..file(0x4000)
        };
        assert!(same_kind(&file(0), &part), "the same file, moved");
    }

    /// By page number: the frame, None for a page never written, and what it is a page of.
    type Pages = std::collections::BTreeMap<u64, (Option<u64>, u64)>;

    /// 0 for anonymous memory, else the page of the file and 1.
    fn shows(vma: &Vma, page: u64) -> u64 {
        match vma.backing {
            Backing::Zero { offset } => 1 + (offset >> 12) + page - (vma.start >> 12),
            _ => 0,
        }
    }

    fn pages(mm: &AddressSpace) -> Pages {
        let mut pages = Pages::new();
        for vma in &mm.vmas {
            let all = vma.start >> 12..vma.end >> 12;
            pages.extend(all.map(|page| (page, (None, shows(vma, page)))));
        }
        for extent in &mm.extents {
            for n in 0..extent.pages {
                set(&mut pages, (extent.va >> 12) + n, Some(extent.frame + n));
            }
        }
        pages
    }

    fn set(pages: &mut Pages, page: u64, frame: Option<u64>) {
        pages.get_mut(&page).expect("something is mapped").0 = frame;
    }

    /// A small address space: numbers from a generator decide what is mapped and written.
    fn random(next: &mut impl FnMut(u64) -> u64) -> AddressSpace {
        let mut mm = AddressSpace::default();
        let mut page = 1;
        while page < 40 {
            let (gap, len) = (next(3), 1 + next(8));
            let start = page + gap;
            let mut part = vma(start << 12, (start + len) << 12);
            if next(4) == 0 {
                part.backing = Backing::Zero {
                    offset: (start << 12) + (next(2) << 12),
                };
            }
            mm.vmas.push(part);
            for at in (start..start + len)
                .filter(|_| next(3) > 0)
                .collect::<Vec<_>>()
            {
                // Half of the pages are common to all: the frame tells the address.
                let frame = if next(2) == 0 { at } else { 1000 + next(1000) };
                mm.extents.push(extent(at << 12, 1, frame));
            }
            page = start + len;
        }
        mm
    }

    #[test]
    fn any_child_comes_out_of_any_parent() {
        let mut state = 1_u64;
        let mut next = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for round in 0..2000 {
            let (parent, child) = (random(&mut next), random(&mut next));
            let found = difference(&parent, &child, &[]);
            let mut memory = pages(&parent);
            for (start, end) in &found.unmap {
                for page in start >> 12..end >> 12 {
                    assert!(
                        memory.remove(&page).is_some(),
                        "round {round}: unmapped twice"
                    );
                }
            }
            for range in &found.drop {
                (range.va >> 12..end(range) >> 12).for_each(|page| set(&mut memory, page, None));
            }
            for vma in &found.map {
                for page in vma.start >> 12..vma.end >> 12 {
                    let before = memory.insert(page, (None, shows(vma, page)));
                    assert!(before.is_none(), "round {round}: mapped twice");
                }
            }
            for grown in &found.grown {
                let ((start, end), to) = (grown.from, &grown.to);
                for page in (to.start >> 12..start >> 12).chain(end >> 12..to.end >> 12) {
                    let before = memory.insert(page, (None, shows(to, page)));
                    assert!(before.is_none(), "round {round}: grown over a mapping");
                }
            }
            for written in &found.write {
                for n in 0..written.pages {
                    set(&mut memory, (written.va >> 12) + n, Some(written.frame + n));
                }
            }
            assert_eq!(memory, pages(&child), "round {round}");
        }
    }
}
