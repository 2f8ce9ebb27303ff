//! What `SEM_UNDO` will do at the ends of processes.
//!
//! A thread that adds to a semaphore with `SEM_UNDO` and takes the same away without, in one semop(2), has the
//! reverse remembered and leaves the value as it is. On the kernel where the tree was saved its end has
//! undone everything, so there the value is put back first.

use super::bearer::{self, Use};
use super::failed;
use crate::ResurrectError;
use crate::calls::nr;
use crate::restore::Restore;
use persist_mem::manifest::{Undo, UndoMember, after_undo};
use std::collections::BTreeMap;
use sys::batch::Batch;
use sys::ipc::{self, SemOperation};
use sys::{Errno, Pid, Tid};

/// Most a semaphore can be (`SEMVMX`).
const MOST: i32 = 32767;
/// Most that is remembered in one step: with this much either order of adding and taking stays in range.
const STEP: i32 = 16383;

/// A semaphore: set and number.
type Semaphore = (i32, u16);

/// Has every thread remember what it undoes at its end.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    let mut semaphores: BTreeMap<Semaphore, Vec<(&Undo, UndoMember)>> = BTreeMap::new();
    for undo in &manifest.undo {
        for member in &undo.members {
            let users = semaphores.entry((undo.set, member.number)).or_default();
            users.push((undo, *member));
        }
    }
    for (semaphore, users) in &semaphores {
        one(restore, *semaphore, users)?;
    }
    Ok(())
}

fn one(
    restore: &mut Restore<'_>,
    (set, number): Semaphore,
    users: &[(&Undo, UndoMember)],
) -> Result<(), ResurrectError> {
    let made = restore
        .manifest
        .semaphores
        .iter()
        .any(|made| made.perm.id == set);
    let Some((first, member)) = users.first().copied() else {
        return Ok(());
    };
    let mut value = member.value;
    if !made {
        let adjustments: Vec<i16> = users.iter().map(|(_, user)| user.adjustment).collect();
        let steps = put_back((set, number), member.value, &adjustments)?;
        for by in &steps {
            let operation = SemOperation {
                number,
                by: *by,
                undo: false,
            };
            operate(restore, first.pid, first.tid, set, &[operation])?;
        }
        value = now((set, number))?;
    }
    for (undo, user) in users {
        for operations in remembered(number, value, user.adjustment) {
            operate(restore, undo.pid, undo.tid, set, &operations)?;
        }
    }
    // Each of them has become the last to change it.
    let last = Use::Touch { set, number, value };
    bearer::act(restore, member.last, last).map(drop)
}

fn now((set, number): Semaphore) -> Result<u16, ResurrectError> {
    let failed = |doing| failed("semaphore set", set, doing);
    let (_, count) = ipc::sem_stat(set).map_err(failed("finding it"))?;
    let values = ipc::sem_values(set, count).map_err(failed("reading its values"))?;
    let value = values.get(usize::from(number)).copied();
    value.ok_or_else(|| failed("finding one of its semaphores")(Errno::EINVAL))
}

/// What is added, in steps, to a semaphore that had `value` before the tree ended here.
fn put_back(
    (set, number): Semaphore,
    value: u16,
    adjustments: &[i16],
) -> Result<Vec<i16>, ResurrectError> {
    let there = i32::from(now((set, number))?);
    let failed = |doing| failed("semaphore set", set, doing);
    let Some(undone) = after_undo(value, adjustments) else {
        return Err(failed("knowing what was undone")(Errno::ERANGE));
    };
    let by = i32::from(value) - i32::from(undone);
    if !(0..=MOST).contains(&(there + by)) {
        // Somebody else has taken what was given back.
        let doing = "taking from a semaphore again what the end of the tree gave back";
        return Err(failed(doing)(Errno::EAGAIN));
    }
    Ok(steps(by))
}

/// A number in pieces no larger than [`STEP`].
fn steps(by: i32) -> Vec<i16> {
    let (sign, mut left) = (by.signum(), by.abs());
    let mut found = Vec::new();
    while left > 0 {
        let step = left.min(STEP);
        found.extend(i16::try_from(sign * step));
        left -= step;
    }
    found
}

/// The operations, two for each semop(2), after which `adjustment` more is undone and the value is the same.
fn remembered(number: u16, value: u16, adjustment: i16) -> Vec<[SemOperation; 2]> {
    let pair = |by: i16| {
        let undo = |by, undo| SemOperation { number, by, undo };
        let (with, without) = (undo(by, true), undo(-by, false));
        let between = i32::from(value) + i32::from(by);
        if (0..=MOST).contains(&between) {
            [with, without]
        } else {
            [without, with]
        }
    };
    steps(-i32::from(adjustment))
        .into_iter()
        .map(pair)
        .collect()
}

/// One semop(2) in a thread.
fn operate(
    restore: &mut Restore<'_>,
    pid: Pid,
    tid: Tid,
    set: i32,
    operations: &[SemOperation],
) -> Result<(), ResurrectError> {
    let doing = "having it change a semaphore";
    let live = restore.lives().find(|(found, _)| *found == pid);
    let first = live.and_then(|(_, live)| Some(live.threads.first()?.tid));
    let task = restore.task(pid)?;
    // Who waits in vfork(2) shares its list with the others.
    let waits = live.is_some_and(|(_, live)| live.waits_in_vfork(tid));
    let tracee = if Some(tid) == first || waits {
        &mut task.first
    } else {
        let thread = task.threads.get_mut(&tid);
        thread.ok_or_else(|| ResurrectError::call(pid, doing)(Errno::ESRCH))?
    };
    let mut batch = Batch::new();
    let bytes: Vec<u8> = operations.iter().flat_map(|one| one.to_bytes()).collect();
    let buffer = batch.data(&bytes);
    let args = [set.into(), buffer.into(), operations.len().into()];
    batch.call(doing, nr::SEMOP, args);
    crate::calls::run(pid, doing, tracee, &batch).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_and_adjustment_has_a_way() {
        let all = [0, 1, 100, 16383, 16384, 20000, 32766, 32767];
        for value in all {
            for adjustment in all.iter().flat_map(|by| [*by as i16, -(*by as i16)]) {
                let mut undone = 0;
                for pair in remembered(0, value, adjustment) {
                    let mut now = i32::from(value);
                    for step in pair {
                        now += i32::from(step.by);
                        assert!((0..=MOST).contains(&now), "{value} {adjustment}: {now}");
                        undone -= if step.undo { i32::from(step.by) } else { 0 };
                    }
                    assert_eq!(now, i32::from(value));
                }
                assert_eq!(undone, i32::from(adjustment), "of {value}");
            }
        }
    }

    #[test]
    fn the_kernel_remembers_what_was_meant() {
        // Of this thread, and what it forks, alone.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
        let set = ipc::sem_get(0, 3, 0o1600).unwrap();
        let values = [20000, 2, 32767];
        ipc::sem_set_values(set, &values).unwrap();
        let adjustments = [-20000, 32765, -30000];
        let child = sys::process::spawn(0, &[], || {
            for ((value, adjustment), number) in values.into_iter().zip(adjustments).zip(0..) {
                for pair in remembered(number, value, adjustment) {
                    ipc::sem_operate(set, &pair).unwrap();
                }
            }
            i32::from(ipc::sem_values(set, 3).unwrap() != values)
        });
        let status = sys::wait::wait_for(child.unwrap().leader()).unwrap();
        assert_eq!(status, sys::wait::Status::Exited(0), "the values stay");
        assert_eq!(ipc::sem_values(set, 3).unwrap(), [0, 32767, 2767]);
    }
}
