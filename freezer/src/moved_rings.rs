//! Rings of io_uring that another kernel lays out otherwise ([`persist_mem::rings`]): the program must be seen to know
//! where their fields are in a way that can be changed.

use crate::{FreezerError, Refusal, proc};
use persist_mem::manifest::{AddressSpace, Description, DescriptionKind, Manifest, Ring};
use persist_mem::rings::{Moves, Offsets};
use std::collections::BTreeMap;
use sys::uring::flags::NO_SQARRAY;
use sys::{PAGE_SIZE_U64, Pid};

/// Bytes that are looked through at once.
const AT_ONCE: u64 = 1 << 20;

/// Refuses what a kernel of Linux 6.6 or later, or an earlier one, cannot have, now that it is known where pages are.
///
/// # Errors
/// [`FreezerError::Refused`]
pub fn refuse_lost_rings(manifest: &Manifest, since_6_6: bool) -> Result<(), FreezerError> {
    let rings = || {
        manifest
            .descriptions
            .iter()
            .filter_map(|it| match &it.kind {
                DescriptionKind::Ring(ring) => Some((it, &**ring)),
                _ => None,
            })
    };
    let to: BTreeMap<u64, Offsets> = rings()
        .map(|(_, ring)| (ring.inode, ring.offsets_on(since_6_6)))
        .collect();
    let unknown = |(_, ring): &(&Description, &Ring)| !since_6_6 && ring.flags & NO_SQARRAY != 0;
    let mut found = Vec::new();
    if let Some((description, _)) = rings().find(unknown) {
        let mut processes = manifest.processes.iter();
        let holder = processes.find(|process| {
            let live = process.live();
            live.is_some_and(|live| {
                live.files
                    .iter()
                    .any(|file| file.description == description.id)
            })
        });
        let pid = holder.map_or(Pid(0), |holder| holder.pid);
        found.push(refusal(
            pid,
            "before Linux 6.6 there is no ring with IORING_SETUP_NO_SQARRAY",
        ));
    }
    for process in &manifest.processes {
        let Some(live) = process.live().filter(|live| live.mm_of.is_none()) else {
            continue;
        };
        let Some(moves) = Moves::of(&live.mm, &manifest.descriptions, &to) else {
            continue;
        };
        if !is_traced(process.pid, &live.mm, &moves)? {
            let why = "the other kernel lays its ring out otherwise, and how it finds its way there is not seen";
            found.push(refusal(process.pid, why));
        }
    }
    match found.is_empty() {
        true => Ok(()),
        false => Err(FreezerError::Refused(found)),
    }
}

fn refusal(pid: Pid, why: &str) -> Refusal {
    Refusal {
        pid,
        comm: proc::comm(pid),
        resource: "io_uring".into(),
        reason: why.into(),
    }
}

fn is_traced(pid: Pid, mm: &AddressSpace, moves: &Moves) -> Result<bool, FreezerError> {
    let mem = proc::memory(pid).map_err(FreezerError::call(pid, "opening its memory"))?;
    let parts = mm.extents.iter().flat_map(|extent| {
        let end = extent.va + extent.pages * PAGE_SIZE_U64;
        let starts = (extent.va..end).step_by(AT_ONCE as usize);
        starts.map(move |at| (at, (end - at).min(AT_ONCE)))
    });
    let runs = parts.filter_map(|(at, len)| mem.read_vec(at, len as usize).ok());
    Ok(moves.are_traced(runs))
}
