//! Limits that would hold while all is built by one process, and were kept by many before.

use nix::sys::resource::{RLIM_INFINITY, Resource};
use persist_mem::manifest::Manifest;
use sys::limits::{MAX_MAP_COUNT, MoreMappings, raise};

/// What is mapped beside: pages in which calls are prepared, the new kernel's vdso on its way to the old place, and
/// a mapping that is changed in parts.
const BESIDE: u64 = 256;

/// Some of the kernel's limits are higher until this is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    _mappings: Option<MoreMappings>,
}

impl Room {
    /// Raises what is needed. Whoever gets less notices at the first thing too many.
    pub(crate) fn make(manifest: &Manifest) -> Room {
        allow_descriptors();
        // Timers and signals of everybody are made by this process's user, until credentials are set.
        for which in [Resource::RLIMIT_SIGPENDING, Resource::RLIMIT_MSGQUEUE] {
            if let Err(errno) = raise(which, RLIM_INFINITY) {
                log::warn!("raising {which:?}: {errno}");
            }
        }
        Room {
            _mappings: allow_mappings(manifest),
        }
    }
}

/// Every description, every memory object and every process is open in this process for a while, and processes are made
/// with our limit.
fn allow_descriptors() {
    if let Err(errno) = sys::limits::allow_descriptors() {
        log::warn!("raising the limit of open files: {errno}");
    }
}

/// Where a process is close to its limit of mappings.
fn allow_mappings(manifest: &Manifest) -> Option<MoreMappings> {
    let lives = manifest.processes.iter().filter_map(|one| one.live());
    let most = lives.map(|live| live.mm.vmas.len()).max().unwrap_or(0) as u64;
    MoreMappings::allow(most + BESIDE).unwrap_or_else(|why| {
        log::warn!("raising {MAX_MAP_COUNT}: {why}");
        None
    })
}
