//! Room for copies on the new side: memory blocks that are emptied before the jump, so that no old page lies in
//! them.

use crate::blocks::{Emptied, Full, MemoryBlocks};
use crate::ranges::{RangeSet, grow};
use crate::usage::BlockUsage;

const MIB: u64 = 1 << 20;
/// What the host must have left over meanwhile.
const SPARE: u64 = 192 * MIB;

/// Empties blocks outside of `window` until they have `wanted` bytes, those first that are easiest to empty.
/// `available` tells how much the host can spare at each moment. Returns what could be emptied, which may be less.
pub fn make<'a>(
    blocks: &'a MemoryBlocks,
    window: &RangeSet,
    ram: &RangeSet,
    wanted: u64,
    available: impl Fn() -> u64,
) -> Vec<Emptied<'a>> {
    let block = blocks.size();
    let window: RangeSet = window.iter().map(|run| grow(run, block)).collect();
    let usable = blocks
        .online()
        .intersect(&ram.aligned(block))
        .minus(&window);
    let usage = BlockUsage::read(&usable, block);
    let mut starts: Vec<u64> = usable
        .iter()
        .flat_map(|run| (run.start..run.end).step_by(usize::try_from(block).unwrap_or(usize::MAX)))
        .collect();
    starts.sort_by_key(|start| (usage.of(&(*start..start + block)), *start));
    let mut emptied = Vec::new();
    for start in starts {
        if emptied.len() as u64 * block >= wanted || available() < SPARE + block {
            break;
        }
        match blocks.empty(start..start + block) {
            Ok(found) => emptied.push(found),
            Err(Full { block, errno }) => {
                log::info!("memory block {block} is not emptied to make room: {errno}");
            }
        }
    }
    emptied
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn only_as_much_as_is_wanted_and_to_spare() {
        const BLOCK: u64 = 128 * MIB;
        let root = std::env::temp_dir().join(format!("room-{}", std::process::id()));
        let dir = root.join("devices/system/memory");
        let state = |block: u64| dir.join(format!("memory{block}/state"));
        for block in 0..8 {
            std::fs::create_dir_all(dir.join(format!("memory{block}"))).unwrap();
            std::fs::write(state(block), "online\n").unwrap();
        }
        std::fs::write(dir.join("block_size_bytes"), "8000000\n").unwrap();
        let blocks = MemoryBlocks::open(Path::new(&root)).unwrap();
        let ram = RangeSet::from_range(0..8 * BLOCK);
        let window = RangeSet::from_range(0..2 * BLOCK + MIB);
        let online = || blocks.online().total() / BLOCK;
        let room = make(&blocks, &window, &ram, BLOCK + 1, || u64::MAX);
        assert_eq!(room.len(), 2);
        // The blocks are files here: what was written first stays behind a shorter word.
        assert_eq!(online(), 6);
        assert!(
            std::fs::read_to_string(state(2))
                .unwrap()
                .starts_with("online")
        );
        drop(room);
        assert!(make(&blocks, &window, &ram, BLOCK, || SPARE).is_empty());
        assert!(make(&blocks, &window, &ram, 0, || u64::MAX).is_empty());
        std::fs::remove_dir_all(root).unwrap();
    }
}
