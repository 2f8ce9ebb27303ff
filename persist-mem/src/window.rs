//! The boot window: the RAM the new kernel is started in.
//!
//! Its main part is a run of memory blocks that were emptied before. Beside it the new kernel gets
//! as RAM what could not be handed to it later: RAM that fills no whole memory block, and the block
//! with the first MiB. Carried pages that lie there must be copied.

use crate::blocks::{Emptied, Full, MemoryBlocks};
use crate::ranges::{RangeSet, grow};
use crate::usage::BlockUsage;
use std::collections::BTreeSet;
use std::ops::Range;

const MIB: u64 = 1 << 20;
/// Least size of the main part that is tried, whatever the kernel needs.
const LEAST: u64 = 256 * MIB;
/// Size that is wanted on a machine that has it to spare.
const ENOUGH: u64 = 512 * MIB;
/// Size beyond which more is of no use.
const MOST: u64 = 1024 * MIB;
/// What must be left over for the host while it prepares: the staged kernel lies in memory twice.
const SPARE: u64 = 192 * MIB;

/// There is no window.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WindowError {
    /// The machine or its free memory is too small.
    #[error(
        "no boot window: {least} MiB in whole memory blocks of {block} MiB are needed, and {spare} \
         MiB beside them; the host has {whole} MiB in such blocks, {available} MiB are available"
    )]
    TooSmall {
        /// Least size, MiB.
        least: u64,
        /// Size of a memory block, MiB.
        block: u64,
        /// Needed beside the window, MiB.
        spare: u64,
        /// RAM in whole blocks, MiB.
        whole: u64,
        /// `MemAvailable`, MiB.
        available: u64,
    },
    /// No run of blocks could be emptied.
    #[error(
        "no boot window: no run of {least} MiB could be emptied; blocks with memory that cannot be \
         moved or did not become empty in time: {full}"
    )]
    Full {
        /// Least size, MiB.
        least: u64,
        /// Numbers of the blocks.
        full: String,
    },
}

/// A chosen window. Dropped, its blocks are in use again.
#[derive(Debug)]
pub struct Window<'a> {
    /// Its main part, which was emptied.
    pub main: Range<u64>,
    /// All RAM the new kernel starts with, above the first MiB.
    pub all: RangeSet,
    _emptied: Emptied<'a>,
}

/// RAM that the new kernel must have from the start, since it cannot be added later: blocks that
/// are not all RAM, and the first one, of which it gets the first MiB anyway. The topmost block is
/// among them when it is above everything else: the kernel knows no NUMA node for memory above what
/// it started with (`phys_to_target_node`), and cannot add that.
#[must_use]
pub fn from_the_start(ram: &RangeSet, block: u64) -> RangeSet {
    let whole = ram.aligned(block);
    let first = RangeSet::from_range(0..block);
    let partial = ram.minus(&whole);
    let top = match whole.end() {
        0 => RangeSet::default(),
        end if partial.end() > end => RangeSet::default(),
        end => RangeSet::from_range(end - block..end),
    };
    partial
        .union(&ram.intersect(&first))
        .union(&top)
        .iter()
        .filter(|run| run.end > MIB)
        .map(|run| run.start.max(MIB)..run.end)
        .collect()
}

/// Sizes to try, the best first.
fn sizes(whole: u64, available: u64, block: u64, least: u64) -> Vec<u64> {
    let spare = available.saturating_sub(SPARE).min(whole);
    let best = (whole / 4).clamp(ENOUGH, MOST).max(least).min(spare);
    let mut size = best - best % block;
    let mut sizes = Vec::new();
    while size >= least {
        sizes.push(size);
        size -= block;
    }
    sizes
}

/// The run of `size` bytes in `blocks`, without the blocks of `full`, that is the easiest to empty.
fn best_run(
    blocks: &RangeSet,
    size: u64,
    block: u64,
    full: &BTreeSet<u64>,
    usage: &BlockUsage,
) -> Option<Range<u64>> {
    let full: RangeSet = full.iter().map(|n| n * block..(n + 1) * block).collect();
    let left = blocks.minus(&full);
    let starts = left.iter().flat_map(|run| {
        (run.start..run.end.saturating_sub(size - 1).max(run.start)).step_by(block as usize)
    });
    starts
        .map(|start| start..start + size)
        .min_by_key(|run| (usage.of(run), run.start))
}

/// Chooses a window in RAM (the firmware's map) and empties it. Its main part has at least `least`
/// bytes; `available` bytes are what the host can spare now.
///
/// # Errors
/// [`WindowError`]; all blocks are in use then as before.
pub fn take<'a>(
    blocks: &'a MemoryBlocks,
    ram: &RangeSet,
    available: u64,
    least: u64,
) -> Result<Window<'a>, WindowError> {
    let block = blocks.size();
    let least = least.max(LEAST).next_multiple_of(block);
    let fixed = from_the_start(ram, block);
    let usable = blocks
        .online()
        .intersect(&ram.aligned(block))
        .minus(&fixed.iter().map(|run| grow(run, block)).collect());
    let sizes = sizes(usable.total(), available, block, least);
    let usage = BlockUsage::read(&usable, block);
    let mut full = BTreeSet::new();
    for size in &sizes {
        while let Some(run) = best_run(&usable, *size, block, &full, &usage) {
            match blocks.empty(run.clone()) {
                Ok(emptied) => {
                    return Ok(Window {
                        all: fixed.union(&RangeSet::from_range(run.clone())),
                        main: run,
                        _emptied: emptied,
                    });
                }
                Err(Full { block, errno }) => {
                    let found = usage.of(&blocks.range(block));
                    log::info!("memory block {block} is not emptied: {errno} ({found:?})");
                    full.insert(block);
                }
            }
        }
    }
    let least = least / MIB;
    if sizes.is_empty() {
        return Err(WindowError::TooSmall {
            least,
            block: block / MIB,
            spare: SPARE / MIB,
            whole: usable.total() / MIB,
            available: available / MIB,
        });
    }
    let full: Vec<String> = full.iter().map(u64::to_string).collect();
    Err(WindowError::Full {
        least,
        full: full.join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: u64 = 128 * MIB;

    fn set(ranges: &[Range<u64>]) -> RangeSet {
        ranges.iter().cloned().collect()
    }

    #[test]
    fn what_cannot_be_added_later_is_there_from_the_start() {
        let low = 0..0x9_fc00;
        type Ranges<'a> = &'a [Range<u64>];
        let block = MIB..B + MIB;
        let table: &[(Ranges<'_>, Ranges<'_>)] = &[
            // A partial block at the top.
            (
                &[low.clone(), MIB..5 * B - 4096],
                &[MIB..B, 4 * B..5 * B - 4096],
            ),
            // A whole block at the top, a partial one below a hole.
            (
                &[low.clone(), MIB..3 * B + MIB, 32 * B..40 * B],
                &[MIB..B, 3 * B..3 * B + MIB, 39 * B..40 * B],
            ),
            (&[low, block.clone()], std::slice::from_ref(&block)),
            (&[], &[]),
        ];
        for (ram, want) in table {
            assert_eq!(from_the_start(&set(ram), B), set(want), "{ram:?}");
        }
    }

    #[test]
    fn sizes_fit_the_machine() {
        let gib = 1024 * MIB;
        let sizes = |whole, available| sizes(whole, available, B, 2 * B);
        assert_eq!(sizes(2 * gib, 2 * gib), [4 * B, 3 * B, 2 * B]);
        assert_eq!(sizes(3 * gib, 3 * gib).first(), Some(&(6 * B)));
        assert_eq!(sizes(64 * gib, 60 * gib).first(), Some(&(8 * B)));
        assert_eq!(sizes(2 * gib, 500 * MIB), [2 * B], "little is available");
        assert!(sizes(2 * gib, 300 * MIB).is_empty());
        assert!(sizes(B, gib).is_empty());
    }

    #[test]
    fn full_blocks_are_passed_over() {
        let usable = set(&[2 * B..6 * B, 8 * B..12 * B]);
        let usage = BlockUsage::read(&RangeSet::default(), B);
        let run =
            |full: &[u64]| best_run(&usable, 3 * B, B, &full.iter().copied().collect(), &usage);
        assert_eq!(run(&[]), Some(2 * B..5 * B));
        assert_eq!(run(&[2]), Some(3 * B..6 * B));
        assert_eq!(run(&[4]), Some(8 * B..11 * B));
        assert_eq!(run(&[4, 9]), None);
    }
}
