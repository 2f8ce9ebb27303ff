//! Where every carried page is: in place, but for those in the boot window, which are copied.

use super::capture::Captured;
use super::course::Course;
use super::fault::{self, Spoil};
use super::other_kernel;
use super::plan::Plan;
use super::room;
use anyhow::{Context, Result};
use freezer::{PageRun, PageSink};
use persist_mem::firmware::kind;
use persist_mem::frames::{Frames, ManifestPlace};
use persist_mem::manifest::{ChecksumRun, Extent, MemoryPlan, Moved, PageChecksums};
use persist_mem::ranges::RangeSet;
use persist_mem::superblock::Superblock;
use persist_mem::window::Window;
use std::collections::BTreeMap;
use sys::{PAGE_SIZE, PAGE_SIZE_U64};

/// Pages that are looked into at once.
const AT_ONCE: usize = 64;

/// A written manifest, not valid yet: its first page is missing.
pub(super) struct Pinned {
    pub(super) block: Superblock,
}

pub(super) fn pin_down(
    captured: Captured,
    plan: &mut Plan<'_>,
    place: &ManifestPlace,
    course: &Course,
    verify: bool,
) -> Result<Pinned> {
    let Captured {
        mut manifest,
        objects,
        mut upgrade,
    } = captured;
    let mut pages = InPlace {
        window: &plan.window.all,
        frames: &mut plan.frames,
        stayed: Vec::new(),
        moved: BTreeMap::new(),
        checksums: verify.then(Vec::new),
        buffer: vec![0; AT_ONCE * PAGE_SIZE],
    };
    freezer::capture_pages(&mut manifest, &objects, &mut pages)?;
    let there = other_kernel::version(&upgrade.target);
    freezer::refuse_lost_rings(&manifest, |since| there >= since)?;
    let kept = pages.kept();
    let ram = upgrade.memory.firmware.of_kind(kind::RAM);
    let promised = initramfs::huge_pages::promised_bytes(&upgrade.huge_pools);
    room::enough(&kept, promised, &plan.window.all, &ram, plan.block_size)
        .map_err(anyhow::Error::msg)?;
    let moved = places(pages.moved.keys(), &plan.window, plan.block_size);
    upgrade.carried.bytes_in_place = kept.total() - moved.bytes();
    upgrade.carried.moved = moved;
    upgrade.checksums = pages.checksums.take().map(checksums);
    log::info!(
        "{} KiB stay in place; copied: {} KiB of the boot window's main part, {} KiB of the first memory \
         block, {} KiB of those at the end of RAM",
        upgrade.carried.bytes_in_place >> 10,
        moved.window >> 10,
        moved.first_block >> 10,
        moved.last_blocks >> 10
    );
    let pairs = |set: &RangeSet| set.iter().map(|run| (run.start, run.end)).collect();
    upgrade.stamps = course.stamps();
    upgrade.tsc_khz = course.tsc_khz();
    upgrade.memory = MemoryPlan {
        firmware: upgrade.memory.firmware.clone(),
        block_size: plan.block_size,
        window: pairs(&plan.window.all),
        kept: pairs(&kept),
    };
    manifest.upgrade = Some(Box::new(upgrade));
    course.check()?;
    freezer::take_backlogs(&mut manifest)?;
    freezer::take_packets(&mut manifest)?;
    freezer::take_device_messages(&mut manifest)?;
    fault::misplace(&mut manifest);
    let mut body = manifest.to_bytes().context("encoding the manifest")?;
    if fault::spoil() == Some(Spoil::BitFlip) {
        let middle = body.len() / 2;
        body[middle] ^= 1;
    }
    log::info!("the manifest has {} KiB", body.len() >> 10);
    let block = place.write_body(&mut plan.frames, &body)?;
    Ok(Pinned { block })
}

/// Sums up where pages that were copied had been: in `frames`.
fn places<'a>(frames: impl Iterator<Item = &'a u64>, window: &Window<'_>, block: u64) -> Moved {
    let mut moved = Moved::default();
    for frame in frames {
        let at = frame * PAGE_SIZE_U64;
        let place = if window.main.contains(&at) {
            &mut moved.window
        } else if at < block {
            &mut moved.first_block
        } else {
            &mut moved.last_blocks
        };
        *place += PAGE_SIZE_U64;
    }
    moved
}

/// Leaves pages where they are.
struct InPlace<'a> {
    window: &'a RangeSet,
    frames: &'a mut Frames,
    /// Frames that stay, with repetitions: processes share pages.
    stayed: Vec<u64>,
    /// Frames in the window and where their contents went.
    moved: BTreeMap<u64, u64>,
    /// Frames and the CRC-32 of what they hold, with repetitions.
    checksums: Option<Vec<(u64, u32)>>,
    /// Room for pages that are looked into.
    buffer: Vec<u8>,
}

impl InPlace<'_> {
    /// Physical bytes that hold carried pages now.
    fn kept(&mut self) -> RangeSet {
        self.stayed.sort_unstable();
        self.stayed.dedup();
        let page = |frame: &u64| frame * PAGE_SIZE_U64..(frame + 1) * PAGE_SIZE_U64;
        self.stayed
            .iter()
            .chain(self.moved.values())
            .map(page)
            .collect()
    }

    /// The frame that keeps the contents of `pfn`.
    fn keep(&mut self, pfn: u64, contents: Option<&[u8]>) -> std::io::Result<u64> {
        let frame = match (self.moved.get(&pfn), contents) {
            (Some(frame), _) => *frame,
            (None, _) if !self.window.contains(pfn * PAGE_SIZE_U64) => {
                self.stayed.push(pfn);
                pfn
            }
            (None, None) => return Err(std::io::ErrorKind::InvalidInput.into()),
            (None, Some(bytes)) => {
                self.frames.reserve(1).map_err(std::io::Error::other)?;
                let frame = self.frames.take().map_err(std::io::Error::other)?;
                self.frames
                    .write(frame, bytes)
                    .map_err(std::io::Error::other)?;
                self.moved.insert(pfn, frame);
                frame
            }
        };
        if let (Some(sums), Some(bytes)) = (&mut self.checksums, contents) {
            sums.push((frame, crc32fast::hash(bytes)));
        }
        Ok(frame)
    }
}

impl PageSink for InPlace<'_> {
    fn wants_frames(&self) -> bool {
        true
    }

    fn save(&mut self, run: &PageRun<'_>) -> std::io::Result<Vec<Extent>> {
        if run.pfns.contains(&0) {
            let text = "the kernel does not tell where it is (CAP_SYS_ADMIN is missing)";
            return Err(std::io::Error::other(text));
        }
        let mut extents: Vec<Extent> = Vec::new();
        // One buffer for all: memory that is fresh from the kernel costs more than the copy.
        let mut buffer = std::mem::take(&mut self.buffer);
        for (first, pfns) in (0..).step_by(AT_ONCE).zip(run.pfns.chunks(AT_ONCE)) {
            let bytes = &mut buffer[..pfns.len() * PAGE_SIZE];
            let inside = |pfn: &u64| self.window.contains(pfn * PAGE_SIZE_U64);
            let needed = self.checksums.is_some() || pfns.iter().any(inside);
            if needed {
                run.read_at(first, bytes)?;
            }
            for (index, (pfn, page)) in (first..).zip(pfns.iter().zip(bytes.chunks(PAGE_SIZE))) {
                let frame = self.keep(*pfn, needed.then_some(page))?;
                match extents.last_mut() {
                    Some(last) if last.frame + last.pages == frame => last.pages += 1,
                    _ => extents.push(Extent {
                        va: run.va + index * PAGE_SIZE_U64,
                        pages: 1,
                        frame,
                    }),
                }
            }
        }
        self.buffer = buffer;
        Ok(extents)
    }
}

/// Sums by frame as runs.
fn checksums(mut sums: Vec<(u64, u32)>) -> PageChecksums {
    sums.sort_unstable();
    sums.dedup_by_key(|(frame, _)| *frame);
    let mut runs: Vec<ChecksumRun> = Vec::new();
    for (frame, sum) in sums {
        match runs.last_mut() {
            Some(run) if run.frame + run.sums.len() as u64 / 4 == frame => {
                run.sums.extend_from_slice(&sum.to_le_bytes());
            }
            _ => runs.push(ChecksumRun {
                frame,
                sums: sum.to_le_bytes().to_vec(),
            }),
        }
    }
    PageChecksums { runs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_joined_by_frame() {
        let sums = vec![(7, 1), (5, 2), (6, 3), (9, 4), (6, 3)];
        let found = checksums(sums);
        assert_eq!(found.runs.len(), 2);
        assert_eq!(found.of(6), Some(3));
        assert_eq!(found.of(8), None);
    }

    #[test]
    fn a_page_in_the_window_needs_its_contents() {
        let window = RangeSet::from_range(0..10 * PAGE_SIZE_U64);
        let mut frames = Frames::new(window.clone());
        let mut pages = InPlace {
            window: &window,
            frames: &mut frames,
            stayed: Vec::new(),
            moved: BTreeMap::from([(3, 77)]),
            checksums: None,
            buffer: Vec::new(),
        };
        assert!(pages.keep(4, None).is_err());
        assert_eq!(pages.keep(3, None).unwrap(), 77, "copied before");
        assert_eq!(pages.keep(10, None).unwrap(), 10);
        assert_eq!(pages.keep(10, None).unwrap(), 10, "shared");
        assert_eq!(pages.kept().total(), 2 * PAGE_SIZE_U64);
    }
}
