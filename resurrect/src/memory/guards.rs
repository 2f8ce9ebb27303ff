//! Mappings that have had guard pages (`MADV_GUARD_INSTALL`), which they show for ever (`gu` of smaps;
//! include/linux/mm.h, VM_STICKY).

use super::inherit::{end, overlaps};
use super::map::PROT_WRITE;
use super::{Builder, pages};
use crate::ResurrectError;
use crate::calls::{Calls, nr};
use persist_mem::manifest::{AddressSpace, Extent, PageRange, Vma};
use sys::PAGE_SIZE_U64;
use sys::tracee::Tracee;

const PROT_READ: u32 = 1;
const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

/// Installs and removes one in each that has none any more. That drops the page that is there, so it is done where none
/// is, or that page is copied again. Of shared memory a page is everywhere: it is only unmapped.
pub(super) fn remember(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    mm: &AddressSpace,
) -> Result<(), ResurrectError> {
    let mut calls = Calls::new(builder.pid, "installing guard pages for a moment", leader);
    let mut dropped = Vec::new();
    for vma in mm.vmas.iter().filter(|vma| vma.has(b"gu")) {
        let has = |range: &PageRange| range.va < vma.end && vma.start < end(range);
        if mm.guards.iter().any(has) {
            continue;
        }
        let page = match (empty_page(vma, mm), small_page(vma, mm)) {
            (Some(page), _) => page,
            (None, Some(page)) => {
                let prot = PROT_READ | PROT_WRITE;
                let args = [vma.start.into(), vma.len().into(), prot.into()];
                let batch = calls.batch();
                batch.call("making memory writable", nr::MPROTECT, args);
                let va = page.va;
                dropped.push(page);
                va
            }
            (None, None) => continue,
        };
        for advice in [MADV_GUARD_INSTALL, MADV_GUARD_REMOVE] {
            let args = [page.into(), PAGE_SIZE_U64.into(), advice.into()];
            let batch = calls.batch();
            batch.try_call("installing a guard page for a moment", nr::MADVISE, args);
        }
        calls.breathe()?;
    }
    calls.flush()?;
    pages::fill(builder, leader, mm, &dropped, &[])
}

/// The first page of a mapping that was not saved.
fn empty_page(vma: &Vma, mm: &AddressSpace) -> Option<u64> {
    let mut at = vma.start;
    for extent in within(vma, mm) {
        if extent.va > at {
            break;
        }
        at = extent.va + extent.pages * PAGE_SIZE_U64;
    }
    (at < vma.end).then_some(at)
}

/// A page of a mapping that is not a part of a huge one.
fn small_page(vma: &Vma, mm: &AddressSpace) -> Option<Extent> {
    let pages = within(vma, mm).flat_map(|extent| {
        let page = |n| Extent {
            va: extent.va + n * PAGE_SIZE_U64,
            pages: 1,
            frame: extent.frame + n,
        };
        (0..extent.pages).map(page)
    });
    let mut inside = pages.filter(|page| vma.start <= page.va && page.va < vma.end);
    inside.find(|page| {
        let range = PageRange {
            va: page.va,
            pages: 1,
        };
        !overlaps(&range, &mm.huge)
    })
}

fn within<'a>(vma: &'a Vma, mm: &'a AddressSpace) -> impl Iterator<Item = &'a Extent> {
    let from = mm
        .extents
        .partition_point(|e| e.va + e.pages * PAGE_SIZE_U64 <= vma.start);
    let from = mm.extents.get(from..).unwrap_or_default();
    from.iter().take_while(|e| e.va < vma.end)
}
