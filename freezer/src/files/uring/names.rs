//! Rings among the own numbers of threads (`IORING_REGISTER_RING_FDS`), which only the kernel knows.

use super::Table;
use super::resources::Known;
use crate::kernel::{self, Unreadable};
use crate::{FreezerError, proc};
use persist_mem::manifest::{DescriptionId, DescriptionKind};
use std::collections::BTreeMap;
use sys::{Pid, Tid};

const UNHELD: &str =
    "a registered ring (IORING_REGISTER_RING_FDS) that no descriptor is open on is not carried";

/// The rings that threads have so: the number, and where the kernel has it.
fn of(tids: &[Tid]) -> Result<Vec<(Tid, u32, u64)>, Unreadable> {
    kernel::look(|kernel| {
        let mut found = Vec::new();
        for (task, tid) in kernel.tasks(tids)?.into_iter().zip(tids) {
            let Some(task) = task else { continue };
            for user in kernel.ring_users(&[task])? {
                let names = user.names.into_iter();
                found.extend(names.map(|(number, file)| (*tid, number, file)));
            }
        }
        Ok(found)
    })
}

/// Adds them to the rings.
///
/// # Errors
/// [`FreezerError::Refused`] for a ring without a descriptor.
pub(super) fn add(table: &mut Table, known: &Known, inside: &[Pid]) -> Result<(), FreezerError> {
    let mut names: BTreeMap<DescriptionId, Vec<(Tid, u32)>> = BTreeMap::new();
    for pid in inside {
        let refuse = |why: String| FreezerError::refuse(*pid, "io_uring", why);
        let tids = proc::threads(*pid)?;
        let found = of(&tids).map_err(|why| refuse(why.to_string()))?;
        for (tid, number, file) in found {
            let id = known.id(file).ok_or_else(|| refuse(UNHELD.into()))?;
            names.entry(id).or_default().push((tid, number));
        }
    }
    for description in &mut table.descriptions {
        if let DescriptionKind::Ring(ring) = &mut description.kind {
            ring.names = names.remove(&description.id).unwrap_or_default();
        }
    }
    match names.is_empty() {
        true => Ok(()),
        false => Err(FreezerError::refuse(Pid(0), "io_uring", UNHELD)),
    }
}

/// Why those of a process that may run are not carried: no descriptor is open on one.
pub(crate) fn obstacle(pid: Pid, names: &[u64]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let tids = proc::threads(pid).ok()?;
    let held = kernel::look(|kernel| {
        let mut held = Vec::new();
        for task in kernel.tasks(&tids)?.into_iter().flatten() {
            held.extend(kernel.files(task)?.into_iter().map(|(_, file)| file));
        }
        Ok(held)
    });
    let held = held.ok()?;
    let all = names.iter().all(|file| held.contains(file));
    (!all).then(|| UNHELD.to_owned())
}

/// The descriptor of the ring that a thread has under this number.
pub(crate) fn descriptor(tid: Tid, number: u32) -> Option<i32> {
    let names = of(&[tid]).ok()?;
    let (.., file) = names.into_iter().find(|(_, its, _)| *its == number)?;
    let files = kernel::look(|kernel| {
        let task = kernel.tasks(&[tid])?.into_iter().flatten().next();
        task.map_or(Ok(Vec::new()), |task| kernel.files(task))
    });
    let mut files = files.ok()?.into_iter();
    files.find_map(|(fd, its)| (its == file).then_some(fd))
}
