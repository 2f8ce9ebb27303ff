//! The stopped host is described: processes, mounts, network.

use super::check::Host;
use super::rights::{self, Kernels};
use super::secret_memory;
use anyhow::{Context, Result};
use freezer::{FreezerError, Frozen, Objects, Refusal};
use persist_mem::manifest::{Carried, Manifest, MemoryPlan, Process, State, Upgrade};

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
    let kernels = Kernels {
        here: &manifest.host.release,
        there: release,
    };
    let mut found = rights::refusals(&kernels, manifest);
    found.extend(by_timers(release, manifest));
    found.extend(secret_memory::refusals(release, manifest));
    match found.is_empty() {
        true => Ok(()),
        false => Err(FreezerError::Refused(found)),
    }
}

/// Those who choose the ids of their timers, where they could not.
fn by_timers(release: &str, manifest: &Manifest) -> Vec<Refusal> {
    if has_chosen_timer_ids(release) {
        return Vec::new();
    }
    let chooses = |process: &&Process| process.live().is_some_and(|live| live.chooses_timer_ids);
    let refusal = |process: &Process| Refusal {
        pid: process.pid,
        comm: freezer::proc::comm(process.pid),
        resource: "timers".into(),
        reason: format!(
            "it chooses the ids of its timers (PR_TIMER_CREATE_RESTORE_IDS), which Linux {release} does not let it"
        ),
    };
    let found = manifest.processes.iter().filter(chooses);
    found.map(refusal).collect()
}

/// Whether a kernel has `PR_TIMER_CREATE_RESTORE_IDS`: since Linux 6.16.
fn has_chosen_timer_ids(release: &str) -> bool {
    is_since(release, (6, 16))
}

/// Whether a kernel is of this version or a later one.
pub(super) fn is_since(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse::<u32>().ok();
    let version = next().zip(next());
    version >= Some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_kernels_let_timers_be_numbered() {
        for older in [
            "6.12.118+deb13-cloud-amd64",
            "6.1.0-44-amd64",
            "5.16.0",
            "strange",
        ] {
            assert!(!has_chosen_timer_ids(older), "{older}");
        }
        for newer in ["7.3.4+deb13-cloud-amd64", "6.16", "6.18.0"] {
            assert!(has_chosen_timer_ids(newer), "{newer}");
        }
    }
}
