//! The restorer: a child of the supervisor that rebuilds the processes, checks them, lets them go
//! and ends.

use super::saved::Saved;
use crate::mounts::{self, Phase};
use crate::settings;
use nix::fcntl::OFlag;
use persist_mem::manifest::{Extent, PageChecksums};
use persist_mem::phys_store::PhysStore;
use persist_mem::physmem::PhysMem;
use resurrect::supervisor::namespaces::Home;
use resurrect::supervisor::report::{Span, TimeLine};
use resurrect::{Options, World};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use sys::{PAGE_SIZE, PAGE_SIZE_U64, Pid};

/// What the restorer tells the supervisor.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// The world's first process, by its id outside.
    pub(super) init: Option<i32>,
    /// Its part of the time line.
    pub(super) spans: Vec<Span>,
    /// Pages whose checksum was compared.
    pub(super) pages_verified: u64,
    /// What went not quite as it should.
    pub(super) warnings: Vec<String>,
    /// Why nothing was carried.
    pub(super) error: Option<String>,
}

/// Rebuilds the processes. On an error none of them is left when this process ends.
pub(super) fn run(saved: &Saved, home: &Home) -> Outcome {
    let mut outcome = Outcome::default();
    let mut time = TimeLine::begin(sys::clock::tsc());
    if let Err(error) = rebuild(saved, home, &mut time, &mut outcome) {
        outcome.error = Some(error);
    }
    outcome.spans = time.spans().to_vec();
    outcome
}

fn rebuild(
    saved: &Saved,
    home: &Home,
    time: &mut TimeLine,
    outcome: &mut Outcome,
) -> Result<(), String> {
    let memory = PhysMem::open().map_err(|e| e.to_string())?;
    let plan = &saved.upgrade.memory;
    let store = PhysStore::new(memory, plan.kept(), plan.block_size);
    let born = |init: Pid| {
        home.run_inside(init, || mount_inside(saved))
            .map_err(|e| format!("mounting /proc of the world: {e}"))
    };
    let options = Options {
        elapsed: elapsed(saved),
        root_flags: u64::from(nix::libc::CLONE_NEWPID.cast_unsigned()),
        born: Some(&born),
    };
    let world = resurrect::restore(&saved.manifest, &store, options).map_err(|e| e.to_string())?;
    time.done("resurrect");
    if let Some(sums) = &saved.upgrade.checksums {
        outcome.pages_verified = verify(saved, &world, sums)?;
        time.done("verify");
    }
    let first = saved.manifest.processes.first().map(|p| p.pid);
    outcome.init = first.and_then(|pid| world.host_pid(pid)).map(|pid| pid.0);
    world.thaw().map_err(|e| e.to_string())?;
    time.done("thaw");
    Ok(())
}

/// Time since the old kernel's clocks were read.
fn elapsed(saved: &Saved) -> Duration {
    let gone = resurrect::supervisor::clock::between(
        saved.manifest.host.clocks.tsc,
        sys::clock::tsc(),
        saved.tsc_hz(),
    );
    Duration::from_nanos(gone.unsigned_abs())
}

/// In a helper inside the world: the mounts that show its PID namespace, and the settings that
/// belong to it.
fn mount_inside(saved: &Saved) -> i32 {
    let failed = match mounts::restore(&saved.upgrade.mounts, Path::new("/"), Phase::Inside) {
        Ok(failed) => failed,
        Err(error) => vec![error],
    };
    for error in &failed {
        log::error!("{error}");
    }
    let _ = settings::restore(Path::new("/proc/sys"), &saved.upgrade.settings);
    i32::from(!Path::new("/proc/self").exists())
}

/// Compares every page of every process with the checksum the old kernel's kupgrade made.
fn verify(saved: &Saved, world: &World, sums: &PageChecksums) -> Result<u64, String> {
    let mut pages = 0;
    for process in &saved.manifest.processes {
        let (Some(live), Some(host)) = (process.live(), world.host_pid(process.pid)) else {
            continue;
        };
        let mem = sys::procdir::open(host, "mem", OFlag::O_RDONLY)
            .map_err(|e| format!("process {}: opening its memory: {e}", process.pid))?;
        for extent in &live.mm.extents {
            verify_extent(&mem, extent, sums)
                .map_err(|what| format!("process {}: {what}", process.pid))?;
            pages += extent.pages;
        }
    }
    Ok(pages)
}

fn verify_extent(mem: &std::fs::File, extent: &Extent, sums: &PageChecksums) -> Result<(), String> {
    const BATCH: u64 = 64;
    let mut buffer = vec![0; BATCH as usize * PAGE_SIZE];
    let mut done = 0;
    while done < extent.pages {
        let pages = BATCH.min(extent.pages - done);
        let bytes = &mut buffer[..pages as usize * PAGE_SIZE];
        let va = extent.va + done * PAGE_SIZE_U64;
        mem.read_exact_at(bytes, va)
            .map_err(|e| format!("reading {pages} pages at {va:#x}: {e}"))?;
        for (frame, page) in (extent.frame + done..).zip(bytes.chunks(PAGE_SIZE)) {
            let at = va + (frame - extent.frame - done) * PAGE_SIZE_U64;
            match sums.of(frame) {
                Some(sum) if sum == crc32fast::hash(page) => {}
                Some(_) => {
                    return Err(format!(
                        "the page at {at:#x} (frame {frame:#x}) is not as it was: its CRC differs"
                    ));
                }
                None => return Err(format!("the page at {at:#x} has no checksum")),
            }
        }
        done += pages;
    }
    Ok(())
}
