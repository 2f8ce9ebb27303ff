//! The stopped host is described: processes, mounts, network.

use super::check::Host;
use super::other_kernel::{self, OtherKernel};
use anyhow::{Context, Result};
use freezer::{FreezerError, Frozen, Objects};
use persist_mem::manifest::{Carried, Manifest, MemoryPlan, State, Upgrade};
use sys::discipline::Discipline;

/// Most bytes one file system in memory may hold.
const MEMORY_FILES: u64 = 256 << 20;

/// The manifest, its pages and the upgrade's own record to be completed.
pub(super) struct Captured {
    pub(super) manifest: Manifest,
    pub(super) objects: Objects,
    pub(super) upgrade: Upgrade,
}

pub(super) fn capture(frozen: &Frozen, host: &Host) -> Result<Captured> {
    let (manifest, objects) = freezer::capture_host(frozen)?;
    refuse_for(&host.image.release, &manifest)?;
    resurrect::tree::possible(&manifest).map_err(crate::checkpoint::placeless)?;
    let threads = |state: &State| match state {
        State::Live(live) => live.all_threads().count() as u64,
        State::Zombie { .. } | State::Lost { .. } => 0,
    };
    let carried = Carried {
        processes: manifest.processes.len() as u64,
        threads: manifest.processes.iter().map(|p| threads(&p.state)).sum(),
        ..Carried::default()
    };
    let mounts = initramfs::mounts::capture(MEMORY_FILES).context("recording the mounts")?;
    let upgrade = Upgrade {
        target: host.image.release.clone(),
        memory: MemoryPlan {
            firmware: host.firmware.clone(),
            ..MemoryPlan::default()
        },
        carried,
        formats: initramfs::formats::capture(&mounts),
        mounts,
        settings: host.settings.clone(),
        policies: initramfs::policies::capture().context("reading the policies of AppArmor")?,
        discipline: Discipline::read().ok(),
        disks: host.disks.clone(),
        interrupts: host.interrupts.clone(),
        huge_pools: host.huge_pools.clone(),
        swaps: host.swaps.clone(),
        network: initramfs::network::capture().context("recording the network")?,
        mem_total: host.mem_total,
        ..Upgrade::default()
    };
    Ok(Captured {
        manifest,
        objects,
        upgrade,
    })
}

/// Refuses what the other kernel does not know.
fn refuse_for(release: &str, manifest: &Manifest) -> Result<(), FreezerError> {
    let found = OtherKernel::of(release, &manifest.host.release).refusals(manifest);
    if !found.is_empty() {
        return Err(FreezerError::Refused(found));
    }
    let there = other_kernel::version(release);
    freezer::refuse_offsets_in_use(manifest, |since| there >= since)
}
