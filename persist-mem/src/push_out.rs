//! Moving carried pages out of memory that the new kernel has from the start.
//!
//! Memory blocks that are not all RAM, and the first one, cannot be taken out of use. But compaction
//! moves pages from the start of a zone into free pages near its end, if there are any that are no
//! whole free page block (mm/compaction.c, `suitable_migration_target`). So such places are made
//! first: page blocks of which all is free but one page, which we hold.

use crate::meminfo::mem_available;
use crate::ranges::RangeSet;
use crate::usage;
use std::collections::BTreeMap;
use std::path::Path;
use sys::held::HeldPages;
use sys::{Errno, PAGE_SIZE_U64};

/// Pages of a page block (`pageblock_nr_pages` on x86_64).
const PAGE_BLOCK: u64 = 512;
/// Pages taken at once.
const CHUNK: usize = 4096;
/// Fewer pages than this are copied as quickly as they are moved.
const WORTHWHILE: u64 = 256;
/// Bytes that are left to the host.
const SPARE: u64 = 128 << 20;

/// Moves what can be moved out of `ranges`. Best effort: what stays is copied later. Our own locked
/// pages must be safe from compaction (`vm.compact_unevictable_allowed`).
pub fn push_out(ranges: &RangeSet) {
    let before = usage::of_ranges(ranges).movable;
    if before < WORTHWHILE {
        return;
    }
    match make_places(ranges, before + before / 4 + PAGE_BLOCK) {
        Ok(_places) => {
            let path = Path::new("/proc/sys/vm/compact_memory");
            if let Err(error) = std::fs::write(path, "1") {
                log::info!("{}: {error}", path.display());
            }
        }
        Err(errno) => log::info!("no places to move pages to: {errno}"),
    }
    log::info!(
        "{before} pages were in the way, {} are",
        usage::of_ranges(ranges).movable
    );
}

/// Makes places for `wanted` pages outside of `ranges`; they are ours, but for what is free in them.
fn make_places(ranges: &RangeSet, wanted: u64) -> Result<Vec<HeldPages>, Errno> {
    let mut chunks: Vec<HeldPages> = Vec::new();
    let mut blocks = PageBlocks::default();
    while blocks.places() < wanted {
        if mem_available().is_none_or(|left| left < SPARE) {
            return Err(Errno::ENOMEM);
        }
        let chunk = HeldPages::new_single(CHUNK)?;
        for (page, frame) in chunk.frames()?.into_iter().enumerate() {
            if !ranges.contains(frame * PAGE_SIZE_U64) {
                blocks.add(frame, (chunks.len(), page));
            }
        }
        chunks.push(chunk);
    }
    for (chunk, page) in blocks.to_be_free() {
        chunks[chunk].give_back(page..page + 1)?;
    }
    Ok(chunks)
}

/// Pages of ours, by the page block their frames are in.
#[derive(Debug, Default)]
struct PageBlocks {
    blocks: BTreeMap<u64, Vec<(usize, usize)>>,
    whole: u64,
}

impl PageBlocks {
    fn add(&mut self, frame: u64, place: (usize, usize)) {
        let pages = self.blocks.entry(frame / PAGE_BLOCK).or_default();
        pages.push(place);
        self.whole += u64::from(pages.len() as u64 == PAGE_BLOCK);
    }

    /// Pages that will be free: all but one of each page block that is all ours.
    fn places(&self) -> u64 {
        self.whole * (PAGE_BLOCK - 1)
    }

    fn to_be_free(&self) -> impl Iterator<Item = (usize, usize)> {
        self.blocks
            .values()
            .filter(|pages| pages.len() as u64 == PAGE_BLOCK)
            .flat_map(|pages| pages[1..].iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_page_of_each_whole_block_stays() {
        let mut blocks = PageBlocks::default();
        for frame in 0..2 * PAGE_BLOCK - 1 {
            blocks.add(frame, (0, frame as usize));
        }
        assert_eq!(
            blocks.places(),
            PAGE_BLOCK - 1,
            "the second is not all ours"
        );
        let free: Vec<_> = blocks.to_be_free().collect();
        assert_eq!(free.len() as u64, PAGE_BLOCK - 1);
        assert!(!free.contains(&(0, 0)) && free.contains(&(0, 511)));
    }

    #[test]
    fn places_are_free_but_for_one_page() {
        if HeldPages::new(1).is_ok_and(|page| page.frames().is_err()) {
            // Frame numbers are only told to the privileged.
            return;
        }
        let Ok(mut places) = make_places(&RangeSet::default(), 100) else {
            return;
        };
        assert!(places.pop().unwrap().frames().is_err());
    }
}
