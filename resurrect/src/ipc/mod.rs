//! System V semaphores and message queues of a host. What is there already, on the same kernel, stays as it
//! is. Shared memory is with the memory objects.

pub(crate) mod bearer;
mod messages;
mod semaphores;
pub(crate) mod undo;

use crate::ResurrectError;
use crate::objects::as_user;
use crate::restore::Restore;
use nix::unistd::{Gid, Uid};
use persist_mem::manifest::{IpcPerm, SharedKind};
use sys::{Errno, ipc};

const IPC_RMID: i32 = 0;
const IPC_CREAT: i32 = 0o1000;
const IPC_EXCL: i32 = 0o2000;

/// Makes everything that is not there.
pub(crate) fn make(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for set in &manifest.semaphores {
        semaphores::make(restore, set)?;
    }
    for queue in &manifest.message_queues {
        messages::make(queue, &mut |pid, what| bearer::act(restore, pid, what))?;
    }
    Ok(())
}

/// Removes what a restore that has failed may have made on a kernel of its own: who comes next would find it used by
/// processes that are gone.
pub(crate) fn remove_all(restore: &Restore<'_>) {
    if !restore.is_upgrade() {
        return;
    }
    let manifest = restore.manifest;
    for set in &manifest.semaphores {
        // What was not made cannot be removed.
        let _ = ipc::sem_remove(set.perm.id);
    }
    for queue in &manifest.message_queues {
        let _ = ipc::msg_remove(queue.perm.id);
    }
    for object in &manifest.shared_objects {
        if let SharedKind::SystemV(shm) = &object.kind {
            let _ = ipc::shm_control(shm.perm.id, IPC_RMID);
        }
    }
    crate::files::mqueue::remove_all(manifest);
}

fn failed(what: &str, id: i32, doing: &'static str) -> impl Fn(Errno) -> ResurrectError {
    let what = format!("{what} {id}");
    move |errno| ResurrectError::Description {
        subject: None,
        what: what.clone(),
        doing,
        errno,
    }
}

/// Makes an object with a chosen id (`/proc/sys/kernel/WHAT_next_id`) by a process with its creator's ids.
fn create(
    what: &str,
    perm: &IpcPerm,
    get: impl FnOnce(i32) -> sys::Result<i32>,
) -> sys::Result<()> {
    let next = format!("/proc/sys/kernel/{what}_next_id");
    std::fs::write(next, perm.id.to_string())
        .map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    let flags = IPC_CREAT | IPC_EXCL | perm.mode.cast_signed();
    let (uid, gid) = (Uid::from_raw(perm.cuid), Gid::from_raw(perm.cgid));
    as_user(uid, gid, || get(flags)).map(drop)
}
