//! Old pages in place: the store after a jump. Page numbers are page frame numbers.
//!
//! A mapping of `/dev/mem` costs a check for each of its pages and an entry in the kernel's list
//! of them, so kept runs that lie close together are mapped as one, when something in them is
//! first asked for.

use crate::physmem::{PhysMem, PhysMemError, PhysView};
use crate::ranges::RangeSet;
use crate::store::PageStore;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use sys::PAGE_SIZE_U64;
use sys::vm::Source;

/// Kept runs with at most this many bytes between them share a mapping.
const GAP: u64 = 256 * 1024;

/// Kept pages, read through `/dev/mem`.
#[derive(Debug)]
pub struct PhysStore {
    memory: PhysMem,
    kept: RangeSet,
    /// What is mapped as one, ascending.
    spans: Vec<Range<u64>>,
    views: Mutex<BTreeMap<u64, PhysView>>,
}

/// Joins kept runs that are close to each other within one memory block: what lies between them
/// is old memory, too.
fn spans(kept: &RangeSet, block: u64) -> Vec<Range<u64>> {
    let mut spans: Vec<Range<u64>> = Vec::new();
    for run in kept.iter() {
        match spans.last_mut() {
            Some(last)
                if run.start - last.end <= GAP && (last.end - 1) / block == run.start / block =>
            {
                last.end = run.end;
            }
            _ => spans.push(run.clone()),
        }
    }
    spans
}

impl PhysStore {
    /// A store of the `kept` bytes; memory goes back in blocks of `block` bytes.
    #[must_use]
    pub fn new(memory: PhysMem, kept: RangeSet, block: u64) -> PhysStore {
        PhysStore {
            spans: spans(&kept, block.max(PAGE_SIZE_U64)),
            memory,
            kept,
            views: Mutex::default(),
        }
    }

    /// Where `pages` pages from page `frame` on lie in this process's memory, for as long as the
    /// store lives; None when they are not all kept.
    ///
    /// # Errors
    /// They cannot be mapped.
    pub fn find(&self, frame: u64, pages: u64) -> Result<Option<Source>, PhysMemError> {
        self.view(frame, pages, |view, range| {
            let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            view.source(range.start, len)
        })
    }

    /// CRC-32 of a page; None when it is not kept.
    ///
    /// # Errors
    /// It cannot be mapped or read.
    pub fn page_crc(&self, frame: u64) -> Result<Option<u32>, PhysMemError> {
        let sums = self.view(frame, 1, |view, range| view.page_crcs(range.start, 1))?;
        Ok(sums.and_then(|sums| sums.first().copied()))
    }

    /// Looks at pages through the view they lie in.
    fn view<T>(
        &self,
        frame: u64,
        pages: u64,
        look: impl FnOnce(&PhysView, &Range<u64>) -> Result<T, PhysMemError>,
    ) -> Result<Option<T>, PhysMemError> {
        let Some(range) = bytes(frame, pages).filter(|range| self.kept.covers(range)) else {
            return Ok(None);
        };
        let at = self.spans.partition_point(|span| span.end <= range.start);
        let Some(span) = self.spans.get(at) else {
            return Ok(None);
        };
        // Poison: another thread panicked, the map of views is whole all the same.
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let view = match views.entry(span.start) {
            Entry::Occupied(view) => view.into_mut(),
            Entry::Vacant(slot) => slot.insert(self.memory.map(span.clone())?),
        };
        look(view, &range).map(Some)
    }
}

/// Physical bytes of pages; None for none, and for what no machine has.
fn bytes(frame: u64, pages: u64) -> Option<Range<u64>> {
    let start = frame.checked_mul(PAGE_SIZE_U64)?;
    let end = frame.checked_add(pages)?.checked_mul(PAGE_SIZE_U64)?;
    (start < end).then_some(start..end)
}

impl PageStore for PhysStore {
    fn source(&self, frame: u64, pages: u64) -> Option<Source> {
        self.find(frame, pages)
            .inspect_err(|error| log::error!("{error}"))
            .ok()
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_runs_share_a_mapping_inside_a_block() {
        let kept: RangeSet = [0x1000..0x2000, 0x4000..0x5000, 0x8_0000..0x8_1000]
            .into_iter()
            .collect();
        assert_eq!(
            spans(&kept, 1 << 27),
            [0x1000..0x5000, 0x8_0000..0x8_1000],
            "the last is too far away"
        );
        assert_eq!(spans(&kept, 0x2000).len(), 3, "the first two: other blocks");
        let long = RangeSet::from_range(0x1000..0x9000);
        assert_eq!(
            spans(&long, 0x1000).len(),
            1,
            "what touches is never parted"
        );
    }

    #[test]
    fn only_kept_pages_are_found() {
        let path = std::env::temp_dir().join(format!("phys-store-{}", std::process::id()));
        std::fs::write(&path, vec![7; 64 * 4096]).unwrap();
        let memory = PhysMem::open_path(&path).unwrap();
        let kept: RangeSet = [0x1000..0x3000, 0x5000..0x6000].into_iter().collect();
        let store = PhysStore::new(memory, kept, 1 << 27);
        let found = |frame, pages| store.find(frame, pages).unwrap().map(|s| s.len());
        assert_eq!(found(1, 2), Some(8192));
        assert_eq!(found(5, 1), Some(4096));
        for (frame, pages) in [(0, 1), (2, 2), (3, 1), (5, 2), (u64::MAX, 1), (1, 0)] {
            assert_eq!(found(frame, pages), None, "{frame} {pages}");
        }
        assert_eq!(store.views.lock().unwrap().len(), 1);
        std::fs::remove_file(path).unwrap();
    }
}
