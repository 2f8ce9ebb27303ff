//! Memory on its way back: as much as rebuilding needs at once, the rest when the world runs.

use super::saved::Saved;
use crate::huge_pages;
use persist_mem::handback::{HandBack, HandBackError};
use persist_mem::manifest::Manifest;
use persist_mem::meminfo::{mem_available, mem_total};
use persist_mem::physmem::PhysMem;
use std::ops::Range;
use std::path::Path;
use sys::PAGE_SIZE_U64;

/// What the new kernel and the restorer need beside the carried pages: page tables, descriptors,
/// page cache.
const MARGIN: u64 = 96 << 20;

/// Bytes of memory that all carried pages take once they are copied. Pages that processes share
/// since a fork count once for each.
fn carried(manifest: &Manifest) -> u64 {
    let processes = manifest.processes.iter().filter_map(|p| p.live());
    let private = processes.flat_map(|live| &live.mm.extents);
    let shared = manifest.shared_objects.iter().flat_map(|o| &o.extents);
    private.chain(shared).map(|e| e.pages * PAGE_SIZE_U64).sum()
}

/// Hands back blocks without old pages for what is carried. The processes' pages shall come to lie there:
/// what lies in the memory this kernel was started in must be copied at the next upgrade.
///
/// # Errors
/// The kernel lacks memory hotplug and there is not enough room without it.
pub(super) fn make_room(saved: &Saved) -> Result<(), HandBackError> {
    let promised = huge_pages::promised_bytes(&saved.upgrade.huge_pools);
    let want = carried(&saved.manifest) * 17 / 16 + promised + MARGIN;
    let have = mem_available().unwrap_or(0);
    let given = match give_empty_blocks(saved, want) {
        Ok(given) => given,
        Err(error) if have >= want => {
            log::warn!("the processes go where there is room: {error}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if have + given < want {
        log::warn!(
            "{} MiB may be missing while the processes are rebuilt",
            (want - have - given) >> 20
        );
    }
    Ok(())
}

/// Hands back about `want` bytes of blocks without old pages. Returns how many it were.
fn give_empty_blocks(saved: &Saved, want: u64) -> Result<u64, HandBackError> {
    let mut back = HandBack::new(Path::new("/sys"))?;
    let block = back.block_size();
    let needed = saved.needed();
    let mut missing = want;
    let mut chosen: Vec<Range<u64>> = Vec::new();
    for region in back.regions() {
        let mut at = region.range.start.next_multiple_of(block);
        while at + block <= region.range.end && missing > 0 {
            if !needed.touches(&(at..at + block)) {
                chosen.push(at..at + block);
                // 1/64 of it is for the kernel's own records.
                missing = missing.saturating_sub(block - block / 64);
            }
            at += block;
        }
    }
    let report = back.give_movable(&chosen)?;
    for left in &report.left {
        log::warn!("memory not handed back: {left}");
    }
    log::info!(
        "{} MiB handed back in {:?} to make room for {} MiB",
        report.bytes() >> 20,
        report.took,
        want >> 20
    );
    Ok(report.bytes())
}

/// Wipes the manifest and hands everything back. Returns what stays out, in words.
pub(super) fn drain(saved: &Saved) -> Vec<String> {
    let mut notes = Vec::new();
    match PhysMem::open() {
        Ok(memory) => {
            for range in saved.superblock.ranges().iter() {
                if let Err(error) = memory.wipe(range.clone()) {
                    notes.push(format!("the manifest was not wiped: {error}"));
                }
            }
        }
        Err(error) => notes.push(format!("the manifest was not wiped: {error}")),
    }
    let report = HandBack::new(Path::new("/sys")).and_then(|mut back| back.give_all());
    match report {
        Ok(report) => {
            log::info!(
                "{} MiB handed back in {:?}; MemTotal is {} MiB",
                report.bytes() >> 20,
                report.took,
                mem_total().unwrap_or(0) >> 20
            );
            notes.extend(
                report
                    .left
                    .iter()
                    .map(|left| format!("memory not handed back: {left}")),
            );
        }
        Err(error) => notes.push(format!("memory not handed back: {error}")),
    }
    for note in &notes {
        log::warn!("{note}");
    }
    notes
}
