//! Memory blocks: the unit in which the kernel takes memory out of use and back
//! (Documentation/admin-guide/mm/memory-hotplug.rst).

use crate::ranges::RangeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use sys::Errno;

/// Seconds one block may take to become empty. The kernel tries for ever when there is no room for
/// what lies in it.
const PATIENCE: u32 = 5;

/// Why memory blocks cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// A file of sysfs cannot be read.
    #[error("{}: {cause}; was the kernel built without memory hotplug?", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// A file holds something else than expected.
    #[error("{}: unexpected contents `{text}`", path.display())]
    Contents {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
}

/// The memory blocks of the running kernel.
#[derive(Debug)]
pub struct MemoryBlocks {
    dir: PathBuf,
    size: u64,
}

impl MemoryBlocks {
    /// Looks at `SYS/devices/system/memory`.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn open(sys: &Path) -> Result<MemoryBlocks, BlockError> {
        let dir = sys.join("devices/system/memory");
        let path = dir.join("block_size_bytes");
        let text = std::fs::read_to_string(&path).map_err(|cause| BlockError::File {
            path: path.clone(),
            cause,
        })?;
        match u64::from_str_radix(text.trim(), 16) {
            Ok(size) if size.is_power_of_two() => Ok(MemoryBlocks { dir, size }),
            _ => Err(BlockError::Contents { path, text }),
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Physical bytes of a block.
    #[must_use]
    pub fn range(&self, block: u64) -> Range<u64> {
        block * self.size..(block + 1) * self.size
    }

    /// Physical bytes of all blocks that are in use.
    #[must_use]
    pub fn online(&self) -> RangeSet {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let block = name.strip_prefix("memory")?.parse().ok()?;
                let state = std::fs::read_to_string(entry.path().join("state")).ok()?;
                (state.trim() == "online").then(|| self.range(block))
            })
            .collect()
    }

    /// Takes a block out of use: the kernel moves its contents elsewhere.
    fn offline(&self, block: u64) -> std::io::Result<()> {
        sys::deadline::interrupt_after(PATIENCE, || self.set(block, "offline"))?
    }

    /// One write(2), as sysfs wants it; a signal that interrupts it ends the attempt.
    fn set(&self, block: u64, state: &str) -> std::io::Result<()> {
        use std::io::Write;
        let path = self.dir.join(format!("memory{block}/state"));
        let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
        file.write(state.as_bytes()).map(drop)
    }

    /// Takes blocks into use again that were when `online` was read. Returns the numbers of those that were not any
    /// more.
    ///
    /// # Errors
    /// The first block that stays out of use.
    pub fn restore(&self, online: &RangeSet) -> std::io::Result<Vec<u64>> {
        let missing = online.minus(&self.online());
        let numbers = missing
            .iter()
            .flat_map(|run| run.start / self.size..run.end / self.size);
        let numbers: Vec<u64> = numbers.collect();
        for block in &numbers {
            self.set(*block, "online")?;
        }
        Ok(numbers)
    }

    /// Empties all blocks of a run.
    ///
    /// # Errors
    /// The first block that stays in use, and why. Those before it are in use again then.
    pub fn empty(&self, run: Range<u64>) -> Result<Emptied<'_>, Full> {
        let mut emptied = Emptied {
            owner: self,
            blocks: Vec::new(),
        };
        for block in run.start / self.size..run.end / self.size {
            match self.offline(block) {
                Ok(()) => emptied.blocks.push(block),
                Err(error) => {
                    let errno = error.raw_os_error().map_or(Errno::EINTR, Errno::from_raw);
                    return Err(Full { block, errno });
                }
            }
        }
        Ok(emptied)
    }
}

/// A block that could not be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Its number.
    pub block: u64,
    /// Why: `EBUSY` for memory that cannot be moved, `EINTR` when it took too long.
    pub errno: Errno,
}

/// Blocks out of use. Dropped, they are in use again.
#[derive(Debug)]
pub struct Emptied<'a> {
    owner: &'a MemoryBlocks,
    blocks: Vec<u64>,
}

impl Drop for Emptied<'_> {
    fn drop(&mut self) {
        for block in self.blocks.drain(..).rev() {
            if let Err(error) = self.owner.set(block, "online") {
                log::error!("memory block {block} stays out of use: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sys(PathBuf);

    impl Sys {
        fn new(name: &str, blocks: &[(u64, &str)]) -> Sys {
            let root = std::env::temp_dir().join(format!("blocks-{name}-{}", std::process::id()));
            let dir = root.join("devices/system/memory");
            for (block, state) in blocks {
                std::fs::create_dir_all(dir.join(format!("memory{block}"))).unwrap();
                std::fs::write(dir.join(format!("memory{block}/state")), state).unwrap();
            }
            std::fs::write(dir.join("block_size_bytes"), "8000000\n").unwrap();
            Sys(root)
        }
        fn state(&self, block: u64) -> String {
            let path = format!("devices/system/memory/memory{block}/state");
            std::fs::read_to_string(self.0.join(path)).unwrap()
        }
    }

    impl Drop for Sys {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const SIZE: u64 = 128 << 20;

    #[test]
    fn blocks_come_back_into_use_when_dropped() {
        let sys = Sys::new(
            "drop",
            &[(0, "online\n"), (1, "online\n"), (3, "offline\n")],
        );
        let blocks = MemoryBlocks::open(&sys.0).unwrap();
        assert_eq!(blocks.size(), SIZE);
        assert_eq!(blocks.online(), RangeSet::from_range(0..2 * SIZE));
        let emptied = blocks.empty(0..2 * SIZE).unwrap();
        assert!(sys.state(1).starts_with("offline"));
        drop(emptied);
        assert!(sys.state(0).starts_with("online") && sys.state(1).starts_with("online"));
    }

    #[test]
    fn a_block_that_fails_takes_the_others_with_it() {
        let sys = Sys::new("fail", &[(0, "online\n")]);
        let blocks = MemoryBlocks::open(&sys.0).unwrap();
        let full = blocks.empty(0..2 * SIZE).unwrap_err();
        assert_eq!((full.block, full.errno), (1, Errno::ENOENT));
        assert!(sys.state(0).starts_with("online"));
    }
}
