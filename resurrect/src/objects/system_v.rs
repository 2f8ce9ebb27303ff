//! System V shared memory (shmget(2)).

use super::{failed, fill_here, pieces};
use crate::ResurrectError;
use crate::calls::nr;
use crate::ipc::bearer::{self, Use};
use crate::restore::Restore;
use nix::unistd::{Gid, Uid};
use persist_mem::manifest::{SharedObject, SystemVShm};
use sys::Errno;
use sys::batch::Batch;
use sys::ipc::{self, Attached};
use sys::tracee::Tracee;
use sys::vm::Source;

const IPC_CREAT: i32 = 0o1000;
const IPC_EXCL: i32 = 0o2000;
const SHM_HUGETLB: i32 = 0o4000;
const SHM_HUGE_SHIFT: u32 = 26;
const IPC_RMID: i32 = 0;
const SHM_LOCK: i32 = 11;

/// The segment with its contents: the one that is still there, or a new one with the same id. One that is made
/// and was removed is so at once, and attached here.
pub(super) fn make(
    restore: &mut Restore<'_>,
    object: &SharedObject,
    shm: &SystemVShm,
) -> Result<(i32, Option<Attached>), ResurrectError> {
    let id = shm.perm.id;
    if let Ok(there) = ipc::shm_stat(id) {
        let same = there.owners().key == shm.perm.key && there.size() == shm.bytes;
        if !same {
            return Err(failed(object, "another segment has its id")(Errno::EEXIST));
        }
        // Whoever has it attached has it as it is now.
        if shm.kept_outside || there.attached() > 0 {
            return Ok((id, None));
        }
    } else if shm.kept_outside {
        return Err(failed(object, "finding the segment of other processes")(
            Errno::EIDRM,
        ));
    } else {
        create(restore, object, shm)?;
    }
    if shm.unused {
        return Ok((id, None));
    }
    // Whole pages: what lies behind the last byte is memory as well.
    let size = object.size.next_multiple_of(sys::PAGE_SIZE_U64);
    fill(object, id, &pieces(object, restore.store, size)?)?;
    let hold = shm.removed.then(|| remove(object, id)).transpose()?;
    Ok((id, hold))
}

/// Lives on only as long as somebody has it attached, and nobody finds it by its key.
fn remove(object: &SharedObject, id: i32) -> Result<Attached, ResurrectError> {
    let hold = Attached::new(id, true).map_err(failed(object, "attaching it"))?;
    ipc::shm_control(id, IPC_RMID).map_err(failed(object, "removing it"))?;
    Ok(hold)
}

fn create(
    restore: &mut Restore<'_>,
    object: &SharedObject,
    shm: &SystemVShm,
) -> Result<(), ResurrectError> {
    const NEXT: &str = "/proc/sys/kernel/shm_next_id";
    let perm = &shm.perm;
    std::fs::write(NEXT, perm.id.to_string())
        .map_err(|e| failed(object, "choosing its id")(super::errno_of(&e)))?;
    let huge = if object.page_size > sys::PAGE_SIZE_U64 {
        SHM_HUGETLB | (object.page_size.trailing_zeros() << SHM_HUGE_SHIFT).cast_signed()
    } else {
        0
    };
    let flags = IPC_CREAT | IPC_EXCL | huge | perm.mode.cast_signed();
    // Its creator is who makes it: the process that did, as long as it is root still; else a child of ours,
    // which may be anybody.
    let (uid, gid) = (Uid::from_raw(perm.cuid), Gid::from_raw(perm.cgid));
    let root = uid.is_root() && gid == Gid::from_raw(0);
    let mut get = |key: i32| {
        let here = || ipc::shm_get(key, shm.bytes, flags);
        match restore.tasks.get_mut(&shm.creator) {
            Some(task) if root => get_in(&mut task.first, key, shm.bytes, flags),
            Some(_) => as_user(uid, gid, here),
            None => match get_as(restore, shm, here) {
                // Nobody can have its id.
                Err(Errno::EEXIST) if ipc::shm_stat(perm.id).is_err() => as_user(uid, gid, here),
                made => made,
            },
        }
    };
    // A removed segment has no key any more, but its name has; another may have taken the key.
    let made = if shm.removed && shm.first_key != 0 {
        get(shm.first_key).or_else(|_| get(0))
    } else {
        get(perm.key)
    };
    made.map_err(failed(object, "making it"))?;
    let found = ipc::shm_stat(perm.id).map_err(failed(object, "finding it under its id"))?;
    let (uid, gid, mode) = (perm.uid, perm.gid, perm.mode);
    let set = ipc::shm_set(perm.id, uid, gid, mode);
    set.map_err(failed(object, "setting its owner"))?;
    if found.size() == shm.bytes {
        Ok(())
    } else {
        Err(failed(object, "finding it under its id")(Errno::EEXIST))
    }
}

/// shmget(2) inside a process.
fn get_in(leader: &mut Tracee, key: i32, bytes: u64, flags: i32) -> sys::Result<i32> {
    let mut batch = Batch::new();
    let args = [key.into(), bytes.into(), flags.into()];
    let call = batch.try_call("making a segment", nr::SHMGET, args);
    let output = leader.run_raw(&batch).map_err(|_| Errno::ECHILD)?;
    output.result(call).map(|id| id as i32)
}

/// In a child that bears the id of the creator, who has ended.
fn get_as(
    restore: &Restore<'_>,
    shm: &SystemVShm,
    get: impl FnOnce() -> sys::Result<i32>,
) -> sys::Result<i32> {
    if shm.creator.0 <= 0 {
        return Err(Errno::EEXIST);
    }
    let child = restore.spawn_among(Some(shm.creator), || {
        let became = sys::process::become_user(shm.perm.cuid, shm.perm.cgid);
        let made = became.and_then(|()| get());
        made.map_or_else(|errno| errno as i32, |_| 0)
    })?;
    status(child.leader())
}

fn status(child: sys::Tid) -> sys::Result<i32> {
    match sys::wait::wait_for(child)? {
        sys::wait::Status::Exited(0) => Ok(0),
        sys::wait::Status::Exited(errno) => Err(Errno::from_raw(errno)),
        _ => Err(Errno::ECHILD),
    }
}

/// Runs `body` in a child with these ids.
pub(crate) fn as_user(
    uid: Uid,
    gid: Gid,
    body: impl FnOnce() -> sys::Result<i32>,
) -> sys::Result<i32> {
    if uid.is_root() && gid == Gid::from_raw(0) {
        return body();
    }
    let child = sys::process::spawn(0, &[], || {
        let became = sys::process::become_user(uid.as_raw(), gid.as_raw());
        let made = became.and_then(|()| body());
        made.map_or_else(|errno| errno as i32, |_| 0)
    })?;
    status(child.leader())
}

fn fill(object: &SharedObject, id: i32, pieces: &[(Source, u64)]) -> Result<(), ResurrectError> {
    if pieces.is_empty() {
        return Ok(());
    }
    let attached = Attached::new(id, false).map_err(failed(object, "attaching it"))?;
    fill_here(object, attached.address(), pieces)
}

/// Removed segments go with their last process again.
pub(super) fn finish(
    restore: &mut Restore<'_>,
    object: &SharedObject,
    shm: &SystemVShm,
    id: i32,
    hold: Option<Attached>,
) -> Result<(), ResurrectError> {
    if hold.is_some() && ipc::shm_stat(id).is_ok_and(|found| found.attached() < 2) {
        // None of the processes that had it are there, and it goes with our attachment.
        return Ok(());
    }
    drop(hold);
    let last = ipc::shm_stat(id).map(|found| found.last());
    if !shm.kept_outside && last != Ok(shm.last) {
        bearer::act(restore, shm.last, Use::Attach { segment: id })?;
    }
    if shm.locked {
        ipc::shm_control(id, SHM_LOCK).map_err(failed(object, "locking it"))?;
    }
    if shm.removed {
        ipc::shm_control(id, IPC_RMID).map_err(failed(object, "removing it"))?;
    }
    Ok(())
}
