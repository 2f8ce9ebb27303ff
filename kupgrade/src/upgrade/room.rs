//! Is there room for the carried pages on the new side? They are copied out of the old ones, which stay until the
//! last is: into the boot window, and into memory blocks without any old page.

use persist_mem::blocks::{Emptied, MemoryBlocks};
use persist_mem::meminfo::mem_available;
use persist_mem::ranges::RangeSet;
use persist_mem::room;

const MIB: u64 = 1 << 20;
/// What the new kernel and those who rebuild take beside the pages: the image, the archive, page tables.
const BESIDE: u64 = 176 * MIB;

/// Memory of the host, in bytes (`/proc/meminfo`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    total: u64,
    /// Pages without a file, and those of files in memory; what lies in swap is read back for the capture.
    carried: u64,
}

impl Held {
    /// Reads it. None when the kernel does not tell.
    pub(super) fn read() -> Option<Held> {
        Held::parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
    }

    fn parse(text: &str) -> Option<Held> {
        let value = |name: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = rest
                .trim_start_matches(':')
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()?;
            Some(kib << 10)
        };
        let swapped = value("SwapTotal")
            .zip(value("SwapFree"))
            .map(|(total, free)| total.saturating_sub(free));
        Some(Held {
            total: value("MemTotal")?,
            carried: value("AnonPages")? + value("Shmem")? + swapped.unwrap_or(0),
        })
    }

    /// What stands in the way whatever the pages' places are, in words: an old page and its copy are there at the
    /// same time.
    pub(super) fn too_much(self) -> Option<String> {
        let copies = self.carried + self.carried / 16;
        let missing = copies.saturating_sub(self.total.saturating_sub(self.carried));
        (missing > 0).then(|| {
            format!(
                "memory: processes and files in memory hold {} MiB of {} MiB; about half can be carried, {} MiB \
                 less are needed",
                self.carried / MIB,
                self.total / MIB,
                missing.div_ceil(2 * MIB)
            )
        })
    }
}

/// Empties memory blocks beside the window, if what the host holds now needs them. They are in use again when
/// dropped.
pub(super) fn make<'a>(
    blocks: &'a MemoryBlocks,
    window: &RangeSet,
    ram: &RangeSet,
) -> Vec<Emptied<'a>> {
    let carried = Held::read().map_or(0, |held| held.carried);
    let wanted = needed(carried).saturating_sub(window.total());
    let room = room::make(blocks, window, ram, wanted, || mem_available().unwrap_or(0));
    if wanted > 0 {
        log::info!(
            "{} MiB of room wanted beside the window, {} memory blocks emptied for it",
            wanted / MIB,
            room.len()
        );
    }
    room
}

/// Bytes that carried pages take on the new side.
fn needed(carried: u64) -> u64 {
    carried + carried / 16 + BESIDE
}

/// Is there room for the pages where they are now?
///
/// `kept` are the bytes that hold carried pages, `promised` is how many more processes were promised, `window` is the new kernel's first RAM, `ram` all there is.
///
/// # Errors
/// What is missing, in words.
pub(super) fn enough(
    kept: &RangeSet,
    promised: u64,
    window: &RangeSet,
    ram: &RangeSet,
    block: u64,
) -> Result<(), String> {
    let blocks = ram.aligned(block);
    let (mut empty, mut holding) = (0, 0);
    for run in blocks.iter() {
        for start in (run.start..run.end).step_by(usize::try_from(block).unwrap_or(usize::MAX)) {
            let range = start..start + block;
            if window.touches(&range) {
                continue;
            }
            if kept.touches(&range) {
                holding += 1;
            } else {
                // The kernel's own records of it lie in it.
                empty += block - block / 64;
            }
        }
    }
    let (room, needed) = (window.total() + empty, needed(kept.total() + promised));
    if room >= needed {
        return Ok(());
    }
    Err(format!(
        "there is no room to rebuild the processes: {} MiB of memory will be free at first, {} MiB are needed; the \
         {} MiB that are carried lie in {holding} memory blocks of {} MiB, which are not free before all are copied. \
         With less memory in use, or after `echo 1 >/proc/sys/vm/compact_memory`, it may be enough",
        room / MIB,
        needed / MIB,
        kept.total() / MIB,
        block / MIB,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_memory_can_be_carried() {
        let held = |anonymous: u64, shared: u64| {
            let text = format!(
                "MemTotal:        4194304 kB\nAnonPages:       {anonymous} kB\nShmem:    {shared} kB\nShmemHugePages: 9 kB\n"
            );
            Held::parse(&text).unwrap().too_much()
        };
        assert_eq!(held(1 << 20, 512 << 10), None);
        let words = held(1 << 20, 1 << 20).unwrap();
        assert!(words.contains("2048 MiB of 4096 MiB"), "{words}");
        assert!(words.contains("64 MiB less"), "{words}");
        assert!(Held::parse("MemTotal: 1 kB\n").is_none());
    }

    #[test]
    fn only_blocks_without_old_pages_are_room() {
        const BLOCK: u64 = 128 * MIB;
        let ram = RangeSet::from_range(0..16 * BLOCK);
        let window = RangeSet::from_range(0..4 * BLOCK);
        let page = |block: u64| block * BLOCK..block * BLOCK + 4096;
        // One page each in some blocks.
        let scattered = |blocks: core::ops::Range<u64>| blocks.map(page).collect::<RangeSet>();
        assert!(enough(&scattered(4..16), 0, &window, &ram, BLOCK).is_ok());
        let full = RangeSet::from_range(4 * BLOCK..9 * BLOCK);
        assert!(enough(&full, 0, &window, &ram, BLOCK).is_ok());
        assert!(enough(&full, 11 * BLOCK, &window, &ram, BLOCK).is_err());
        let spread: RangeSet = full
            .iter()
            .map(|run| run.start..run.end)
            .chain((9..16).map(page))
            .collect();
        let words = enough(&spread, 0, &window, &ram, BLOCK).unwrap_err();
        assert!(words.contains("in 12 memory blocks"), "{words}");
    }
}
