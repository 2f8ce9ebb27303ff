//! Handing memory back: soft-reserved blocks become ordinary RAM of the running kernel.
//!
//! `dax_hmem` (loaded with `region_idle=1`) makes one dax region of every soft-reserved range,
//! without a device over all of it. For each run of blocks a device is made in the region, given
//! exactly these bytes, and bound to the `kmem` driver, which adds them as memory
//! (drivers/dax/bus.c, drivers/dax/kmem.c; Documentation/ABI/testing/sysfs-bus-dax). The rest of
//! the region stays untouched and readable.
//!
//! What cannot go back this way: bytes that do not fill a whole memory block, and blocks of
//! which the kernel already had a part as RAM at boot.

mod regions;
mod sysfs;

use crate::meminfo::mem_available;
pub use regions::Region;
use regions::{devices_of, regions};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use sysfs::{read, read_hex, write};

/// Why no memory can be handed back at all.
#[derive(Debug, thiserror::Error)]
pub enum HandBackError {
    /// A file of sysfs or procfs is missing or refuses.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A file holds something else than expected.
    #[error("{path}: unexpected contents `{text}`", path = path.display())]
    Contents {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// The driver that takes the memory is not there.
    #[error("the kmem driver is not loaded ({path} is missing); load the module `kmem`", path = path.display())]
    NoDriver {
        /// Its directory.
        path: PathBuf,
    },
}

type Result<T> = std::result::Result<T, HandBackError>;

/// Something that stays unused, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Physical bytes.
    pub range: Range<u64>,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:#x}-{:#x}: {}",
            self.range.start, self.range.end, self.reason
        )
    }
}

/// What one call of [`HandBack::give`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Now RAM, in ascending order.
    pub given: Vec<Range<u64>>,
    /// Asked for, but still unused.
    pub left: Vec<Left>,
    /// Time taken.
    pub took: Duration,
}

impl Report {
    /// Bytes that became RAM.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.given.iter().map(|r| r.end - r.start).sum()
    }
}

/// Returns memory through `SYSFS/bus/dax`.
#[derive(Debug)]
pub struct HandBack {
    sys: PathBuf,
    block: u64,
    regions: Vec<Region>,
}

impl HandBack {
    /// Looks at the dax bus below `sys` (`/sys`) and tells the kernel to online what is added,
    /// as ordinary (not movable-only) memory.
    ///
    /// # Errors
    /// [`HandBackError::NoDriver`]; memory hotplug is missing from this kernel.
    pub fn new(sys: &Path) -> Result<HandBack> {
        let memory = sys.join("devices/system/memory");
        let block = read_hex(&memory.join("block_size_bytes"))?;
        if block == 0 {
            return Err(HandBackError::Contents {
                path: memory.join("block_size_bytes"),
                text: "0".to_owned(),
            });
        }
        let driver = sys.join("bus/dax/drivers/kmem");
        if !driver.is_dir() {
            return Err(HandBackError::NoDriver { path: driver });
        }
        write(&memory.join("auto_online_blocks"), "online")?;
        let regions = regions(sys)?;
        Ok(HandBack {
            sys: sys.to_owned(),
            block,
            regions,
        })
    }

    /// Bytes of a memory block, the unit in which memory goes back.
    #[must_use]
    pub fn block_size(&self) -> u64 {
        self.block
    }

    /// The soft-reserved ranges.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Makes whole blocks inside `ranges` RAM. Nothing old may be needed in them any more.
    ///
    /// A block that fails is reported in [`Report::left`] and the others go on.
    ///
    /// # Errors
    /// Only what stops everything; see [`HandBackError`].
    pub fn give(&mut self, ranges: &[Range<u64>]) -> Result<Report> {
        let start = Instant::now();
        let mut report = Report::default();
        let mut rest: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            let covered = self.pieces(range, &mut report.left);
            rest.extend(covered);
        }
        rest.sort_by_key(|r| r.start);
        for run in rest {
            let region = self
                .regions
                .iter()
                .find(|r| contains(&r.range, &run))
                .cloned();
            let Some(region) = region else { continue };
            let mut at = run.start;
            while at < run.end {
                let end = (at + self.step()).min(run.end);
                match self.give_run(&region, at..end) {
                    Ok(()) => push(&mut report.given, at..end),
                    Err(error) => {
                        report.left.push(Left {
                            range: at..end,
                            reason: error.to_string(),
                        });
                    }
                }
                at = end;
            }
        }
        report.took = start.elapsed();
        Ok(report)
    }

    /// As [`HandBack::give`], for pages that can be moved only: those of processes go there first, so
    /// the memory the kernel was started in stays free of them.
    ///
    /// # Errors
    /// As [`HandBack::give`].
    pub fn give_movable(&mut self, ranges: &[Range<u64>]) -> Result<Report> {
        let policy = self.sys.join("devices/system/memory/auto_online_blocks");
        write(&policy, "online_movable")?;
        let report = self.give(ranges);
        write(&policy, "online")?;
        report
    }

    /// Everything soft-reserved that is not RAM yet: for a host that carries nothing.
    ///
    /// # Errors
    /// As [`HandBack::give`].
    pub fn give_all(&mut self) -> Result<Report> {
        let all: Vec<Range<u64>> = self.regions.iter().map(|r| r.range.clone()).collect();
        let mut free = Vec::new();
        for range in all {
            free.extend(self.unused(&range));
        }
        self.give(&free)
    }

    /// Whole blocks of `range`, region by region; the remainders go to `left`.
    fn pieces(&self, range: &Range<u64>, left: &mut Vec<Left>) -> Vec<Range<u64>> {
        let mut out = Vec::new();
        let mut skip = |range: Range<u64>, reason: &str| {
            if !range.is_empty() {
                left.push(Left {
                    range,
                    reason: reason.to_owned(),
                });
            }
        };
        let mut at = range.start;
        for region in &self.regions {
            let piece = region.range.start.max(at)..region.range.end.min(range.end);
            if piece.is_empty() {
                continue;
            }
            skip(at..piece.start, "not soft-reserved");
            at = piece.end;
            let whole = whole_blocks(&piece, self.block);
            if whole.is_empty() {
                skip(piece, "less than a memory block");
                continue;
            }
            skip(piece.start..whole.start, "less than a memory block");
            skip(whole.end..piece.end, "less than a memory block");
            if region.node < 0 {
                skip(
                    whole,
                    "the kernel knows no NUMA node for it (it lies above all of its RAM)",
                );
            } else {
                out.push(whole);
            }
        }
        skip(at..range.end, "not soft-reserved");
        out
    }

    /// Blocks of `range` that are not memory blocks of the kernel yet.
    fn unused(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let memory = self.sys.join("devices/system/memory");
        let mut out = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = ((at / self.block + 1) * self.block).min(range.end);
            if !memory.join(format!("memory{}", at / self.block)).exists() {
                push(&mut out, at..end);
            }
            at = end;
        }
        out
    }

    /// Bytes to add in one step. The kernel takes 1/64 of them for its own records from the RAM
    /// it has, so the first steps on a large host are small.
    fn step(&self) -> u64 {
        let free = mem_available().unwrap_or(0);
        let blocks = (free / 4).saturating_mul(64) / self.block;
        blocks.clamp(1, 256) * self.block
    }

    fn give_run(&self, region: &Region, run: Range<u64>) -> Result<()> {
        let group = region.dir.join("dax_region");
        let before = devices_of(region)?;
        write(&group.join("create"), "1")?;
        let name = devices_of(region)?
            .difference(&before)
            .next()
            .cloned()
            .ok_or_else(|| HandBackError::Contents {
                path: group.join("create"),
                text: "no device".to_owned(),
            })?;
        let device = region.dir.join(&name);
        let bound = self.bind(&device, &name, &run);
        if bound.is_err() {
            // A device without memory may go; best effort, it costs nothing if it stays.
            let _ = write(&device.join("size"), "0");
            let _ = write(&group.join("delete"), &name);
        }
        bound
    }

    fn bind(&self, device: &Path, name: &str, run: &Range<u64>) -> Result<()> {
        let mapping = format!("{:#x}-{:#x}", run.start, run.end - 1);
        write(&device.join("mapping"), &mapping)?;
        // From 6.8, and with `memory_hotplug.memmap_on_memory=1` on the command line, the struct
        // pages of a block can lie in the block: no RAM is needed to add RAM.
        let own_records = device.join("memmap_on_memory");
        if own_records.exists()
            && let Err(error) = write(&own_records, "1")
        {
            log::debug!("struct pages of {name} come from other memory: {error}");
        }
        let driver = self.sys.join("bus/dax/drivers/kmem");
        // Attaches at once what matches, and matches this name from now on.
        write(&driver.join("new_id"), name)?;
        if device.join("driver").symlink_metadata().is_err() {
            write(&driver.join("bind"), name)?;
        }
        self.online(run)
    }

    /// Blocks come online by themselves (`auto_online_blocks`); this makes sure.
    fn online(&self, run: &Range<u64>) -> Result<()> {
        for block in run.start / self.block..run.end / self.block {
            let state = self
                .sys
                .join(format!("devices/system/memory/memory{block}/state"));
            if read(&state)? == "offline" {
                write(&state, "online")?;
            }
        }
        Ok(())
    }
}

fn contains(outer: &Range<u64>, inner: &Range<u64>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// The part of `range` made of whole blocks; empty when there is none.
#[must_use]
pub fn whole_blocks(range: &Range<u64>, block: u64) -> Range<u64> {
    let start = range.start.div_ceil(block).saturating_mul(block);
    let end = range.end / block * block;
    start..end.max(start)
}

/// Appends a range, joining it to the last where they touch.
fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 128 << 20;

    fn with(regions: &[(Range<u64>, i32)]) -> HandBack {
        let regions = regions
            .iter()
            .enumerate()
            .map(|(id, (range, node))| Region {
                id: u32::try_from(id).unwrap(),
                range: range.clone(),
                node: *node,
                dir: PathBuf::new(),
            });
        HandBack {
            sys: "/nonexistent".into(),
            block: BLOCK,
            regions: regions.collect(),
        }
    }

    #[test]
    fn only_whole_blocks_inside_one_region_go() {
        let back = with(&[
            (2 * BLOCK..4 * BLOCK, 0),
            (4 * BLOCK..6 * BLOCK + 4096, 0),
            (8 * BLOCK..9 * BLOCK, -1),
        ]);
        let mut left = Vec::new();
        let pieces = back.pieces(&(BLOCK + 4096..10 * BLOCK), &mut left);
        assert_eq!(pieces, [2 * BLOCK..4 * BLOCK, 4 * BLOCK..6 * BLOCK]);
        let reasons: Vec<(u64, u64, &str)> = left
            .iter()
            .map(|l| (l.range.start, l.range.end, l.reason.as_str()))
            .collect();
        assert_eq!(reasons[0], (BLOCK + 4096, 2 * BLOCK, "not soft-reserved"));
        assert_eq!(
            reasons[1],
            (6 * BLOCK, 6 * BLOCK + 4096, "less than a memory block")
        );
        assert_eq!(
            reasons[2],
            (6 * BLOCK + 4096, 8 * BLOCK, "not soft-reserved")
        );
        assert!(reasons[3].2.contains("NUMA node"));
        assert_eq!(reasons[4], (9 * BLOCK, 10 * BLOCK, "not soft-reserved"));
        assert_eq!(reasons.len(), 5);
    }

    #[test]
    fn blocks_are_cut_inward() {
        assert_eq!(whole_blocks(&(1..3 * BLOCK - 1), BLOCK), BLOCK..2 * BLOCK);
        assert!(whole_blocks(&(1..BLOCK), BLOCK).is_empty());
        assert!(whole_blocks(&(u64::MAX - 5..u64::MAX), BLOCK).is_empty());
    }

    #[test]
    fn regions_come_from_the_bus() {
        let root = std::env::temp_dir().join(format!("handback-{}", std::process::id()));
        let dir = root.join("devices/platform/hmem.0");
        let put = |path: PathBuf, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put(dir.join("dax0.0/resource"), "0x20000000\n");
        put(dir.join("dax0.0/target_node"), "0\n");
        put(dir.join("dax0.1/resource"), "0x20000000\n");
        put(dir.join("dax_region/size"), "268435456\n");
        put(
            root.join("devices/system/memory/block_size_bytes"),
            "8000000\n",
        );
        put(
            root.join("devices/system/memory/auto_online_blocks"),
            "offline\n",
        );
        std::fs::create_dir_all(root.join("bus/dax/devices")).unwrap();
        for name in ["dax0.0", "dax0.1"] {
            let link = root.join("bus/dax/devices").join(name);
            std::os::unix::fs::symlink(dir.join(name), link).unwrap();
        }
        assert!(matches!(
            HandBack::new(&root),
            Err(HandBackError::NoDriver { .. })
        ));
        std::fs::create_dir_all(root.join("bus/dax/drivers/kmem")).unwrap();
        let back = HandBack::new(&root).unwrap();
        assert_eq!(back.block_size(), BLOCK);
        assert_eq!(back.regions().len(), 1);
        assert_eq!(back.regions()[0].range, 0x2000_0000..0x3000_0000);
        let names: Vec<String> = devices_of(&back.regions()[0])
            .unwrap()
            .into_iter()
            .collect();
        assert_eq!(names, ["dax0.0", "dax0.1"]);
        let online = root.join("devices/system/memory/auto_online_blocks");
        assert!(
            std::fs::read_to_string(online)
                .unwrap()
                .starts_with("online")
        );
        std::fs::remove_dir_all(root).unwrap();
    }
}
