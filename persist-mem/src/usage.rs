//! What lies in memory blocks: how hard they are to empty (`/proc/kpageflags`,
//! Documentation/admin-guide/mm/pagemap.rst).

use crate::ranges::RangeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use sys::PAGE_SIZE_U64;

// include/uapi/linux/kernel-page-flags.h, include/linux/kernel-page-flags.h
const SLAB: u64 = 1 << 7;
const BUDDY: u64 = 1 << 10;
const NOPAGE: u64 = 1 << 20;
const OFFLINE: u64 = 1 << 23;
const PGTABLE: u64 = 1 << 26;
const RESERVED: u64 = 1 << 32;

/// Pages of a range of memory. Ordered by how hard it is to empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usage {
    /// Pages that the kernel cannot move, as far as their flags tell.
    pub fixed: u64,
    /// Pages that would have to be moved.
    pub movable: u64,
    /// Pages that are free.
    pub free: u64,
}

impl Usage {
    fn add(&mut self, flags: u64) {
        if flags & BUDDY != 0 {
            self.free += 1;
            return;
        }
        // The kernel's own pages of no special kind have no flag at all; so have pages that are
        // just being freed, which do no harm here: this is a hint.
        if flags == 0 || flags & (SLAB | NOPAGE | OFFLINE | PGTABLE | RESERVED) != 0 {
            self.fixed += 1;
        } else {
            self.movable += 1;
        }
    }
}

/// Usage of blocks.
#[derive(Debug)]
pub struct BlockUsage {
    block: u64,
    /// By number of the block.
    blocks: Vec<Usage>,
}

impl BlockUsage {
    /// Looks at the blocks of `ranges`. What cannot be read counts as free.
    #[must_use]
    pub fn read(ranges: &RangeSet, block: u64) -> BlockUsage {
        let flags = File::open("/proc/kpageflags").ok();
        let count = usize::try_from(ranges.end().div_ceil(block)).unwrap_or(0);
        let mut blocks = vec![Usage::default(); count];
        for (number, usage) in (0_u64..).zip(&mut blocks) {
            let range = number * block..(number + 1) * block;
            if let Some(flags) = flags.as_ref().filter(|_| ranges.covers(&range)) {
                *usage = scan(flags, &range).unwrap_or_default();
            }
        }
        BlockUsage { block, blocks }
    }

    /// Usage of a run of blocks.
    #[must_use]
    pub fn of(&self, run: &Range<u64>) -> Usage {
        let numbers = (run.start / self.block) as usize..(run.end / self.block) as usize;
        let mut sum = Usage::default();
        for usage in self.blocks.get(numbers).unwrap_or_default() {
            sum.fixed += usage.fixed;
            sum.movable += usage.movable;
            sum.free += usage.free;
        }
        sum
    }
}

fn scan(flags: &File, range: &Range<u64>) -> Option<Usage> {
    const AT_ONCE: u64 = 8192;
    let mut usage = Usage::default();
    let mut buffer = vec![0; AT_ONCE as usize * 8];
    let (mut frame, end) = (range.start / PAGE_SIZE_U64, range.end / PAGE_SIZE_U64);
    while frame < end {
        let pages = AT_ONCE.min(end - frame);
        let words = &mut buffer[..pages as usize * 8];
        flags.read_exact_at(words, frame * 8).ok()?;
        for word in words.as_chunks::<8>().0 {
            usage.add(u64::from_le_bytes(*word));
        }
        frame += pages;
    }
    Some(usage)
}

/// Usage of physical bytes, whole blocks or not. What cannot be read counts as nothing.
#[must_use]
pub fn of_ranges(ranges: &RangeSet) -> Usage {
    let mut sum = Usage::default();
    if let Ok(flags) = File::open("/proc/kpageflags") {
        for usage in ranges.iter().filter_map(|range| scan(&flags, range)) {
            sum.fixed += usage.fixed;
            sum.movable += usage.movable;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(fixed: u64, movable: u64, free: u64) -> Usage {
        Usage {
            fixed,
            movable,
            free,
        }
    }

    #[test]
    fn pages_are_told_apart() {
        let table = [
            (BUDDY, usage(0, 0, 1)),
            (0, usage(1, 0, 0)),
            (SLAB, usage(1, 0, 0)),
            (RESERVED | 1 << 4, usage(1, 0, 0)),
            // Anonymous, on a list of the reclaim, mapped.
            (1 << 12 | 1 << 5 | 1 << 11, usage(0, 1, 0)),
        ];
        for (flags, want) in table {
            let mut found = Usage::default();
            found.add(flags);
            assert_eq!(found, want, "{flags:#x}");
        }
    }

    #[test]
    fn runs_are_sums_of_blocks() {
        let blocks = BlockUsage {
            block: 100,
            blocks: vec![usage(9, 9, 9), usage(1, 2, 4), usage(0, 5, 5)],
        };
        assert_eq!(blocks.of(&(100..300)), usage(1, 7, 9));
        assert_eq!(blocks.of(&(200..900)), Usage::default(), "not known");
    }
}
