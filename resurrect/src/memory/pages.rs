//! Filling in saved pages, huge ones where there were huge ones and nowhere else.

use super::Builder;
use super::map::has_pages;
use super::place;
use crate::ResurrectError;
use crate::calls::{Calls, nr, run};
use crate::processor::OneProcessor;
use persist_mem::manifest::{AddressSpace, Extent, PageRange};
use std::sync::atomic::{AtomicUsize, Ordering};
use sys::batch::Batch;
use sys::tracee::Tracee;
use sys::vm::{Source, write_process};
use sys::{Errno, PAGE_SIZE_U64};

/// Pages copied in one piece: what one thread takes at a time is a few MiB at most.
const PIECE: u64 = 512;
/// Pieces copied in one call, at most.
const AT_ONCE: usize = 16;
/// No more pages than this are copied by this thread alone.
const FEW: u64 = 2048;

const MADV_HUGEPAGE: i32 = 14;
const MADV_COLLAPSE: i32 = 25;
const PR_SET_THP_DISABLE: i32 = 41;

/// When the kernel gives out transparent huge pages by itself
/// (`/sys/kernel/mm/transparent_hugepage/enabled`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HugePages {
    Always,
    Advised,
    Never,
}

impl HugePages {
    pub(super) fn of_this_kernel() -> HugePages {
        let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        match text.as_deref().unwrap_or("") {
            text if text.contains("[always]") => HugePages::Always,
            text if text.contains("[madvise]") => HugePages::Advised,
            _ => HugePages::Never,
        }
    }
}

/// Copies all pages into memory that has none yet.
pub(super) fn fill_new(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    mm: &AddressSpace,
) -> Result<(), ResurrectError> {
    let (huge, small) = split(&mm.extents, &mm.huge);
    let small = place::many(builder, leader, mm, small)?;
    copy_both(builder, leader, mm, &huge, &small)?;
    collapse(builder, leader, &mm.huge)
}

/// Copies the pages of extents into the process, into huge pages in the given ranges.
pub(super) fn fill(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    mm: &AddressSpace,
    extents: &[Extent],
    ranges: &[PageRange],
) -> Result<(), ResurrectError> {
    let (huge, small) = split(extents, ranges);
    copy_both(builder, leader, mm, &huge, &small)?;
    collapse(builder, leader, ranges)
}

fn copy_both(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    mm: &AddressSpace,
    huge: &[Extent],
    small: &[Extent],
) -> Result<(), ResurrectError> {
    let advised = mm
        .vmas
        .iter()
        .any(|vma| vma.has(b"hg") && has_pages(vma, mm));
    let by_itself = match builder.kernel.huge_pages {
        HugePages::Always => true,
        HugePages::Advised => advised,
        HugePages::Never => false,
    };
    if !huge.is_empty() && advised {
        advise(builder, leader, mm)?;
    }
    copy(builder, leader, huge)?;
    if by_itself && !small.is_empty() {
        switch(builder, leader, true)?;
        copy(builder, leader, small)?;
        switch(builder, leader, false)?;
        return Ok(());
    }
    copy(builder, leader, small)
}

/// `MADV_HUGEPAGE` before the pages come, so that they come as huge ones.
fn advise(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    mm: &AddressSpace,
) -> Result<(), ResurrectError> {
    let mut calls = Calls::new(builder.pid, "asking for huge pages", leader);
    for vma in mm.vmas.iter().filter(|vma| vma.has(b"hg")) {
        let args = [vma.start.into(), vma.len().into(), MADV_HUGEPAGE.into()];
        calls
            .batch()
            .try_call("asking for huge pages", nr::MADVISE, args);
        calls.breathe()?;
    }
    calls.flush()
}

/// Keeps the kernel from giving huge pages where there were none.
fn switch(builder: &Builder<'_>, leader: &mut Tracee, off: bool) -> Result<(), ResurrectError> {
    let doing = "switching huge pages";
    let mut batch = Batch::new();
    let args = [
        PR_SET_THP_DISABLE.into(),
        i32::from(off).into(),
        0.into(),
        0.into(),
        0.into(),
    ];
    batch.call(doing, nr::PRCTL, args);
    run(builder.pid, doing, leader, &batch).map(drop)
}

/// Makes ranges huge that have not become so by themselves. Where there is no huge page to be had they stay
/// small, as they might have before.
fn collapse(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    ranges: &[PageRange],
) -> Result<(), ResurrectError> {
    let doing = "collapsing huge pages";
    let mut calls = Calls::new(builder.pid, doing, leader);
    for range in ranges {
        let len = range.pages * PAGE_SIZE_U64;
        let args = [range.va.into(), len.into(), MADV_COLLAPSE.into()];
        calls.batch().try_call(doing, nr::MADVISE, args);
        calls.breathe()?;
    }
    calls.flush()
}

/// The parts of extents that lie in the ranges, and the others. Both lists are in ascending order.
pub(super) fn split(extents: &[Extent], ranges: &[PageRange]) -> (Vec<Extent>, Vec<Extent>) {
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    let end_of = |range: &PageRange| range.va + range.pages * PAGE_SIZE_U64;
    let mut next = 0;
    for extent in extents {
        let end = extent.va + extent.pages * PAGE_SIZE_U64;
        let mut at = extent.va;
        while at < end {
            while ranges.get(next).is_some_and(|range| end_of(range) <= at) {
                next += 1;
            }
            let (stop, list) = match ranges.get(next) {
                Some(range) if range.va <= at => (end.min(end_of(range)), &mut inside),
                Some(range) => (end.min(range.va), &mut outside),
                None => (end, &mut outside),
            };
            list.push(Extent {
                va: at,
                pages: (stop - at) / PAGE_SIZE_U64,
                frame: extent.frame + (at - extent.va) / PAGE_SIZE_U64,
            });
            at = stop;
        }
    }
    (inside, outside)
}

fn copy(builder: &Builder<'_>, leader: &Tracee, extents: &[Extent]) -> Result<(), ResurrectError> {
    let host = leader.pid();
    copy_by(builder, extents, |some| write_process(host, some))?
        .map_err(ResurrectError::call(builder.pid, "copying its pages"))
}

/// Copies with all processors: most of the time goes into the pages that the kernel must find, and clear, for it.
pub(super) fn copy_by(
    builder: &Builder<'_>,
    extents: &[Extent],
    copy: impl Fn(&[(Source, u64)]) -> sys::Result<()> + Sync,
) -> Result<sys::Result<()>, ResurrectError> {
    let pieces = pieces(builder, extents)?;
    let pages: u64 = extents.iter().map(|extent| extent.pages).sum();
    Ok(if pages > FEW {
        OneProcessor::without(builder.processor, || copy_pieces(&pieces, copy))
    } else {
        pieces.chunks(AT_ONCE).try_for_each(copy)
    })
}

fn copy_pieces(
    pieces: &[(Source, u64)],
    copy: impl Fn(&[(Source, u64)]) -> sys::Result<()> + Sync,
) -> sys::Result<()> {
    let threads = match std::thread::available_parallelism() {
        Ok(threads) => threads.get(),
        Err(_) => 1,
    };
    let next = AtomicUsize::new(0);
    // So many that all have work to the end.
    let at_once = (pieces.len() / (4 * threads)).clamp(1, AT_ONCE);
    let work = || {
        loop {
            let start = next.fetch_add(at_once, Ordering::Relaxed);
            let end = pieces.len().min(start + at_once);
            match pieces.get(start..end) {
                None | Some([]) => return Ok(()),
                Some(some) => copy(some)?,
            }
        }
    };
    std::thread::scope(|scope| {
        // As many as there may be; this one does what the others do not.
        let other = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
        let others: Vec<_> = (1..threads).map_while(other).collect();
        let mut done = work();
        for other in others {
            done = done.and(other.join().unwrap_or(Err(Errno::EFAULT)));
        }
        done
    })
}

/// Sources and their addresses in the process.
fn pieces(builder: &Builder<'_>, extents: &[Extent]) -> Result<Vec<(Source, u64)>, ResurrectError> {
    let pid = builder.pid;
    let mut pieces = Vec::new();
    for extent in extents {
        let mut done = 0;
        while done < extent.pages {
            let pages = PIECE.min(extent.pages - done);
            let frame = extent.frame + done;
            let source = builder.store.source(frame, pages);
            let source = source.ok_or(ResurrectError::NoPages { pid, frame, pages })?;
            pieces.push((source, extent.va + done * PAGE_SIZE_U64));
            done += pages;
        }
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_cut_at_huge_ranges() {
        let extent = |va, pages, frame| Extent { va, pages, frame };
        let extents = [extent(0x1000, 4, 10), extent(0x9000, 2, 30)];
        let ranges = [
            PageRange {
                va: 0x2000,
                pages: 2,
            },
            PageRange {
                va: 0x9000,
                pages: 9,
            },
        ];
        let (inside, outside) = split(&extents, &ranges);
        assert_eq!(inside, [extent(0x2000, 2, 11), extent(0x9000, 2, 30)]);
        assert_eq!(outside, [extent(0x1000, 1, 10), extent(0x4000, 1, 13)]);
        assert_eq!(split(&extents, &[]).1, extents);
    }
}
