//! Inter-process communication with ids of its own.
//!
//! On one kernel these objects stay while the processes that use them are gone. With a whole host they are
//! all saved: they belong to the IPC namespace, not to a process.

mod messages;
mod semaphores;
pub(crate) mod undo;

use crate::objects::{ObjectError, Objects};
use crate::{FreezerError, proc};
use persist_mem::manifest::{IpcPerm, Manifest};
use sys::{Errno, Pid, ipc::Owners};

pub(crate) fn perm(id: i32, owners: Owners) -> IpcPerm {
    IpcPerm {
        id,
        key: owners.key,
        uid: owners.uid,
        gid: owners.gid,
        cuid: owners.cuid,
        cgid: owners.cgid,
        mode: owners.mode & 0o777,
    }
}

/// Everything System V that the host has: semaphores, message queues, and segments that no process has
/// attached.
pub(crate) fn capture(manifest: &mut Manifest, objects: &mut Objects) -> Result<(), FreezerError> {
    let me = Pid(nix::unistd::getpid().as_raw());
    for id in ids("sem")? {
        manifest.semaphores.extend(semaphores::capture(id)?);
    }
    for id in ids("msg")? {
        manifest.message_queues.extend(messages::capture(id)?);
    }
    for id in ids("shm")? {
        let stat = match sys::ipc::shm_stat(id) {
            Ok(stat) => stat,
            Err(errno) if gone(errno) => continue,
            Err(errno) => return Err(failed(id, "looking at it")(errno)),
        };
        if stat.attached() == 0 {
            objects.add_segment(id, &stat).map_err(|e: ObjectError| {
                let what = format!("shared memory segment {id}");
                FreezerError::refuse(me, what, e.reason())
            })?;
        }
    }
    Ok(())
}

/// The ids that `/proc/sysvipc/WHAT` lists in its second column.
fn ids(what: &str) -> Result<Vec<i32>, FreezerError> {
    let me = Pid(nix::unistd::getpid().as_raw());
    let path = format!("/proc/sysvipc/{what}");
    let text = match std::fs::read_to_string(&path) {
        // A kernel without System V IPC.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|cause| FreezerError::Proc {
            pid: me,
            what: path,
            cause,
        })?,
    };
    let id = |line: &str| line.split_whitespace().nth(1)?.parse().ok();
    Ok(text.lines().skip(1).filter_map(id).collect())
}

/// It was removed since it was listed.
fn gone(errno: Errno) -> bool {
    matches!(errno, Errno::EINVAL | Errno::EIDRM)
}

fn failed(id: i32, doing: &'static str) -> impl Fn(Errno) -> FreezerError {
    let pid = Pid(nix::unistd::getpid().as_raw());
    move |errno| FreezerError::Call {
        pid,
        doing: format!("IPC object {id}: {doing}"),
        errno,
    }
}

/// Whether there is any set of semaphores.
fn has_semaphores() -> bool {
    ids("sem").is_ok_and(|ids| !ids.is_empty())
}

/// Reports something about a process.
fn refuse(pid: Pid, resource: &str, reason: &str) -> crate::Refusal {
    crate::Refusal {
        pid,
        comm: proc::comm(pid),
        resource: resource.into(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_namespace_is_described_and_stays() {
        // Of this thread alone.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
        let queue = sys::ipc::msg_get(0x11, 0o1620).unwrap();
        for (kind, text) in [(3, b"one".as_slice()), (9, b"")] {
            sys::ipc::msg_send(queue, kind, text).unwrap();
        }
        let set = sys::ipc::sem_get(0x12, 2, 0o1600).unwrap();
        sys::ipc::sem_set_values(set, &[4, 5]).unwrap();
        let segment = sys::ipc::shm_get(0x13, 100, 0o1600).unwrap();
        let mut manifest = Manifest::default();
        let mut objects = Objects::default();
        for _ in 0..2 {
            (manifest, objects) = (Manifest::default(), Objects::default());
            capture(&mut manifest, &mut objects).unwrap();
        }
        let found = &manifest.message_queues[0];
        let owners = (found.perm.id, found.perm.key, found.perm.mode);
        assert_eq!(owners, (queue, 0x11, 0o620));
        assert_eq!(found.messages, [(3, b"one".to_vec()), (9, Vec::new())]);
        let values: Vec<u16> = manifest.semaphores[0].members.iter().map(|m| m.0).collect();
        assert_eq!((manifest.semaphores[0].perm.id, values), (set, vec![4, 5]));
        assert_eq!(sys::ipc::shm_stat(segment).unwrap().attached(), 0);
        assert_eq!(objects.segments(), [segment]);
    }
}
