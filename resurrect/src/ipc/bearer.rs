//! Objects note who used them last, so the last use is made by a process with that id: the one that is rebuilt,
//! or, for one that has ended, a child that bears its id for a moment. The kernel keeps the id when it is gone
//! (ipc/util.h, `ipc_update_pid`).

use super::semaphores::neutral;
use crate::ResurrectError;
use crate::calls::{Calls, nr};
use crate::restore::Restore;
use sys::wait::Status;
use sys::{Pid, ipc};

const SETVAL: i32 = 16;
const IPC_NOWAIT: i32 = 0o4000;
const SHM_RDONLY: i32 = 0o10000;

/// What is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use<'a> {
    /// Semaphores of a set get these values.
    Set { set: i32, members: &'a [(i32, u16)] },
    /// A semaphore is changed and changed back: what it is to undo stays, which a set would forget.
    Touch { set: i32, number: u16, value: u16 },
    /// A message is sent.
    Send {
        queue: i32,
        kind: i64,
        text: &'a [u8],
    },
    /// The first message of a queue, of no length, is received.
    Receive { queue: i32 },
    /// A segment is attached and detached.
    Attach { segment: i32 },
}

/// Whether a process with this id did it; nobody did where there can be none.
pub(crate) fn act(
    restore: &mut Restore<'_>,
    pid: Pid,
    what: Use<'_>,
) -> Result<bool, ResurrectError> {
    // Of a process in another namespace the kernel tells no id.
    if pid.0 <= 0 {
        return Ok(false);
    }
    if restore.tasks.contains_key(&pid) {
        return within(restore, pid, what).map(|()| true);
    }
    let body = || here(what).map_or_else(|errno| errno as i32, |()| 0);
    let done = restore
        .spawn_among(Some(pid), body)
        .and_then(|child| sys::wait::wait_for(child.leader()));
    if done != Ok(Status::Exited(0)) {
        log::debug!("{what:?} by process {pid}, which has ended: {done:?}");
    }
    Ok(done == Ok(Status::Exited(0)))
}

/// By this process.
pub(crate) fn here(what: Use<'_>) -> sys::Result<()> {
    match what {
        Use::Set { set, members } => members
            .iter()
            .try_for_each(|(member, value)| ipc::sem_set_value(set, *member, *value)),
        Use::Touch { set, number, value } => ipc::sem_operate(set, &neutral(number, value)),
        Use::Send { queue, kind, text } => ipc::msg_send(queue, kind, text),
        Use::Receive { queue } => ipc::msg_receive(queue),
        Use::Attach { segment } => ipc::Attached::new(segment, true).map(drop),
    }
}

/// By a process that is being rebuilt.
fn within(restore: &mut Restore<'_>, pid: Pid, what: Use<'_>) -> Result<(), ResurrectError> {
    let doing = "using a System V object";
    let first = &mut restore.task(pid)?.first;
    let mut calls = Calls::new(pid, doing, first);
    let batch = calls.batch();
    match what {
        Use::Set { set, members } => {
            for (member, value) in members {
                let value = u32::from(*value);
                let args = [set.into(), (*member).into(), SETVAL.into(), value.into()];
                let batch = calls.batch();
                batch.call("setting a semaphore", nr::SEMCTL, args);
                calls.breathe()?;
            }
        }
        Use::Touch { set, number, value } => {
            let operations = neutral(number, value);
            let bytes: Vec<u8> = operations.iter().flat_map(|one| one.to_bytes()).collect();
            let args = [
                set.into(),
                batch.data(&bytes).into(),
                operations.len().into(),
            ];
            batch.call("changing a semaphore", nr::SEMOP, args);
        }
        Use::Send { queue, kind, text } => {
            let message = batch.data(&[&kind.to_ne_bytes(), text].concat());
            let len = text.len().into();
            let args = [queue.into(), message.into(), len, IPC_NOWAIT.into()];
            batch.call("sending a message", nr::MSGSND, args);
        }
        Use::Receive { queue } => {
            let place = batch.space(8);
            let args = [
                queue.into(),
                place.into(),
                0.into(),
                0.into(),
                IPC_NOWAIT.into(),
            ];
            batch.call("receiving a message", nr::MSGRCV, args);
        }
        Use::Attach { segment } => {
            let args = [segment.into(), 0.into(), SHM_RDONLY.into()];
            let attached = batch.call("attaching a segment", nr::SHMAT, args);
            batch.call("detaching a segment", nr::SHMDT, [attached.into()]);
        }
    }
    calls.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_use_is_noted_with_its_user() {
        // Of this thread, and what it forks, alone.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
        let me = Pid(nix::unistd::getpid().as_raw());
        let queue = ipc::msg_get(0, 0o600).unwrap();
        let set = ipc::sem_get(0, 3, 0o600).unwrap();
        let segment = ipc::shm_get(0, 4096, 0o600).unwrap();
        assert_eq!(ipc::msg_users(queue).unwrap(), (Pid(0), Pid(0)));
        let text = b"x".as_slice();
        here(Use::Send {
            queue,
            kind: 1,
            text: &[],
        })
        .unwrap();
        here(Use::Receive { queue }).unwrap();
        assert_eq!(ipc::msg_users(queue).unwrap(), (me, me));
        let child = sys::process::spawn(0, &[], || {
            let kind = 1;
            let uses = [
                Use::Send { queue, kind, text },
                Use::Set {
                    set,
                    members: &[(1, 7), (2, 9)],
                },
                Use::Attach { segment },
            ];
            i32::from(!uses.into_iter().all(|one| here(one).is_ok()))
        })
        .unwrap();
        let pid = Pid(child.leader().0);
        let status = sys::wait::wait_for(child.leader()).unwrap();
        assert_eq!(status, Status::Exited(0));
        assert_eq!(ipc::msg_users(queue).unwrap(), (pid, me));
        assert_eq!(ipc::sem_pid(set, 1).unwrap(), pid);
        assert_eq!(ipc::sem_pid(set, 0).unwrap(), Pid(0));
        assert_eq!(ipc::sem_values(set, 3).unwrap(), [0, 7, 9]);
        assert_eq!(ipc::shm_stat(segment).unwrap().last(), pid);
    }
}
