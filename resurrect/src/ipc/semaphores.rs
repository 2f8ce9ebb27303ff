//! Sets of System V semaphores.

use super::bearer::{self, Use};
use super::{create, failed};
use crate::ResurrectError;
use crate::restore::Restore;
use persist_mem::manifest::SemaphoreSet;
use std::collections::BTreeMap;
use sys::ipc::{self, SemOperation};
use sys::{Errno, Pid};

pub(super) fn make(restore: &mut Restore<'_>, set: &SemaphoreSet) -> Result<(), ResurrectError> {
    let perm = &set.perm;
    let failed = |doing| failed("semaphore set", perm.id, doing);
    match ipc::sem_stat(perm.id) {
        Ok((there, count)) if there.key == perm.key && count == set.members.len() => return Ok(()),
        Ok(_) => return Err(failed("another set has its id")(Errno::EEXIST)),
        Err(_) => {}
    }
    let count = set.members.len();
    create("sem", perm, |flags| ipc::sem_get(perm.key, count, flags))
        .map_err(failed("making it"))?;
    ipc::sem_set(perm.id, perm.uid, perm.gid, perm.mode).map_err(failed("setting its owner"))?;
    let values: Vec<u16> = set.members.iter().map(|(value, _)| *value).collect();
    ipc::sem_set_values(perm.id, &values).map_err(failed("setting its values"))?;
    if set.operated {
        // The time of the last operation becomes another than none.
        let operations = neutral(0, values.first().copied().unwrap_or(0));
        ipc::sem_operate(perm.id, &operations).map_err(failed("making an operation"))?;
    }
    // Each is set once more by the process that changed it last, so that it is told to have.
    let mut by_last: BTreeMap<Pid, Vec<(i32, u16)>> = BTreeMap::new();
    for ((value, last), member) in set.members.iter().zip(0_i32..) {
        by_last.entry(*last).or_default().push((member, *value));
    }
    for (last, members) in &by_last {
        let set = perm.id;
        bearer::act(restore, *last, Use::Set { set, members })?;
    }
    Ok(())
}

/// Two operations on a semaphore that leave its value as it is.
pub(super) fn neutral(number: u16, value: u16) -> [SemOperation; 2] {
    let first = if value == 0 { 1 } else { -1 };
    [first, -first].map(|by| SemOperation {
        number,
        by,
        undo: false,
    })
}
