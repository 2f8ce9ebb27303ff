//! What a process knows of where the fields of its rings of io_uring are, changed to where they are now
//! ([`persist_mem::rings`]).

use crate::ResurrectError;
use crate::restore::Restore;
use persist_mem::manifest::{AddressSpace, Backing, SharedObject, Vma};
use persist_mem::rings::{Moves, REACH};
use std::collections::BTreeSet;
use sys::vm::ProcMem;
use sys::{Errno, PAGE_SIZE_U64, Pid};

/// Bytes that are looked through at once.
const AT_ONCE: u64 = 1 << 20;

/// Changes it in all processes that have rings.
pub(crate) fn change(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let moved = core::mem::take(&mut restore.moved_rings);
    let manifest = restore.manifest;
    let mut shared = BTreeSet::new();
    for (pid, live) in restore.lives() {
        let Some(moves) = moved.get(&pid) else {
            continue;
        };
        let mem = restore.task(pid)?.first.mem();
        let own = live.mm.extents.iter().map(|extent| {
            let end = extent.va + extent.pages * PAGE_SIZE_U64;
            (extent.va, end)
        });
        let mut runs: Vec<(u64, u64)> = own.collect();
        for (object, run) in in_objects(&live.mm, &manifest.shared_objects) {
            // Once for all that have it in common.
            if shared.insert((object, run.0, run.1)) {
                runs.push((run.2, run.3));
            }
        }
        let failed = ResurrectError::call(pid, "telling it where its ring of io_uring is");
        change_in(pid, mem, moves, joined(runs)).map_err(failed)?;
    }
    Ok(())
}

/// Pages of objects that are mapped shared: the object, from where to where in it, and where that is mapped.
fn in_objects(mm: &AddressSpace, objects: &[SharedObject]) -> Vec<(u32, (u64, u64, u64, u64))> {
    let mapped = |vma: &Vma| match vma.backing {
        Backing::Object {
            object,
            offset,
            shared: true,
            ..
        } => Some((object, offset, vma.start, vma.end)),
        _ => None,
    };
    let mut found = Vec::new();
    for (id, offset, start, end) in mm.vmas.iter().filter_map(mapped) {
        let object = objects.iter().find(|object| object.id == id);
        for extent in object.into_iter().flat_map(|object| &object.extents) {
            let from = extent.va.max(offset);
            let to = (extent.va + extent.pages * PAGE_SIZE_U64).min(offset + (end - start));
            if from < to {
                let at = start + (from - offset);
                found.push((id, (from, to, at, at + (to - from))));
            }
        }
    }
    found
}

/// Neighbours as one run.
fn joined(mut runs: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    runs.sort_unstable();
    let mut found: Vec<(u64, u64)> = Vec::new();
    for (start, end) in runs {
        match found.last_mut() {
            Some((_, last)) if *last >= start => *last = end.max(*last),
            _ => found.push((start, end)),
        }
    }
    found
}

fn change_in(pid: Pid, mem: &ProcMem, moves: &Moves, runs: Vec<(u64, u64)>) -> Result<(), Errno> {
    let mut count = 0;
    for (start, end) in runs {
        let mut at = start;
        while at < end {
            let len = (end - at).min(AT_ONCE);
            let with_rest = (len + REACH as u64).min(end - at);
            let bytes = mem.read_vec(at, with_rest as usize)?;
            for (place, now) in moves.changes(&bytes, len as usize) {
                mem.write(at + place as u64, &now)?;
                count += 1;
            }
            at += len;
        }
    }
    log::debug!("{pid}: {count} places of rings of io_uring are others");
    Ok(())
}
