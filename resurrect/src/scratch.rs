//! One address range that is free in every address space of a manifest.

use persist_mem::manifest::Manifest;

/// Room for batches: a page of code, and tables with data.
pub(crate) const BATCH_LEN: u64 = 320 << 10;
/// Room behind it where the kernel's vdso and its data wait.
pub(crate) const PARKING_LEN: u64 = 256 << 10;

/// Below this nothing is put (`vm.mmap_min_addr`, and room for programs at fixed addresses).
const LOWEST: u64 = 0x1_0000_0000;
/// `TASK_SIZE_MAX` on x86_64 with four page table levels, less a guard page.
const HIGHEST: u64 = 0x7fff_ffff_e000;
/// Distance kept to mappings on both sides: stacks grow down.
const APART: u64 = 64 << 20;

/// Finds the range: below the highest free gap's end. `own` are ranges used by this process.
pub(crate) fn find(manifest: &Manifest, own: &[(u64, u64)]) -> Option<u64> {
    let mut used: Vec<(u64, u64)> = own.to_vec();
    for live in manifest.processes.iter().filter_map(|p| p.live()) {
        used.extend(live.mm.vmas.iter().map(|vma| (vma.start, vma.end)));
        used.extend(live.mm.aio.iter().map(|ring| (ring.start, ring.end)));
        let rings = live.mm.rings.iter().chain(&live.mm.packet_rings);
        used.extend(rings.map(|ring| (ring.start, ring.end)));
    }
    gap(used, BATCH_LEN + PARKING_LEN)
}

/// So many bytes that no range uses, some way off all of them.
pub(crate) fn gap(mut used: Vec<(u64, u64)>, len: u64) -> Option<u64> {
    used.sort_unstable();
    let need = len.checked_add(2 * APART)?;
    let mut at = LOWEST;
    for (start, end) in used {
        if start > at && start - at >= need {
            return Some(at + APART);
        }
        at = at.max(end);
    }
    (HIGHEST.saturating_sub(at) >= need).then_some(at + APART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_that_nobody_uses() {
        let manifest = Manifest::default();
        let found = find(&manifest, &[(LOWEST + 0x1000, LOWEST + 0x2000)]).unwrap();
        assert!(found > LOWEST + 0x2000);
        let full = [(0, HIGHEST)];
        assert_eq!(find(&manifest, &full), None);
    }
}
