//! Sets of System V semaphores.

use super::{failed, gone, perm};
use crate::FreezerError;
use persist_mem::manifest::SemaphoreSet;
use sys::ipc;

/// None when the set is gone.
pub(super) fn capture(id: i32) -> Result<Option<SemaphoreSet>, FreezerError> {
    let (owners, count) = match ipc::sem_stat(id) {
        Err(errno) if gone(errno) => return Ok(None),
        found => found.map_err(failed(id, "looking at the semaphores"))?,
    };
    let values = ipc::sem_values(id, count).map_err(failed(id, "reading the semaphores"))?;
    let operated = ipc::sem_operated(id).map_err(failed(id, "looking at the semaphores"))?;
    let mut members = Vec::new();
    for (value, member) in values.into_iter().zip(0..) {
        let last = ipc::sem_pid(id, member).map_err(failed(id, "reading the semaphores"))?;
        members.push((value, last));
    }
    Ok(Some(SemaphoreSet {
        perm: perm(id, owners),
        members,
        operated,
    }))
}
