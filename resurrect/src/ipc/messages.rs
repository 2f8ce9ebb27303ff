//! System V message queues.

use super::bearer::{self, Use};
use super::{create, failed};
use crate::ResurrectError;
use persist_mem::manifest::MessageQueue;
use sys::{Errno, Pid, ipc};

/// Has a process do something, and tells whether one could be had ([`bearer::act`]).
pub(super) type Act<'a> = &'a mut dyn FnMut(Pid, Use<'_>) -> Result<bool, ResurrectError>;

pub(super) fn make(queue: &MessageQueue, act: Act<'_>) -> Result<(), ResurrectError> {
    let perm = &queue.perm;
    let failed = |doing| failed("message queue", perm.id, doing);
    match ipc::msg_stat(perm.id) {
        Ok((there, _, _)) if there.key == perm.key => return Ok(()),
        Ok(_) => return Err(failed("another queue has its id")(Errno::EEXIST)),
        Err(_) => {}
    }
    create("msg", perm, |flags| ipc::msg_get(perm.key, flags)).map_err(failed("making it"))?;
    let set = |room| ipc::msg_set(perm.id, perm.uid, perm.gid, perm.mode, room);
    // The room may have been made smaller than what was in it.
    let bytes: u64 = queue
        .messages
        .iter()
        .map(|(_, text)| text.len() as u64)
        .sum();
    let needed = queue.room.max(bytes).max(queue.messages.len() as u64);
    // One goes through it for whoever received the last.
    let needed = needed.max(1);
    set(needed).map_err(failed("setting its owner and room"))?;
    pass(queue, act)?;
    for (index, (kind, text)) in queue.messages.iter().enumerate() {
        let sender = if index + 1 == queue.messages.len() {
            queue.users.0
        } else {
            Pid(0)
        };
        send(queue, sender, *kind, text, act)?;
    }
    if needed != queue.room {
        set(queue.room).map_err(failed("setting its room"))?;
    }
    Ok(())
}

/// A message is sent and received, as the queue is empty still: by those who did it last.
fn pass(queue: &MessageQueue, act: Act<'_>) -> Result<(), ResurrectError> {
    let (sender, receiver) = queue.users;
    if receiver == Pid(0) {
        return Ok(());
    }
    send(queue, sender, 1, &[], act)?;
    let what = Use::Receive {
        queue: queue.perm.id,
    };
    if act(receiver, what)? {
        return Ok(());
    }
    let failed = failed(
        "message queue",
        queue.perm.id,
        "passing a message through it",
    );
    bearer::here(what).map_err(failed)
}

fn send(
    queue: &MessageQueue,
    sender: Pid,
    kind: i64,
    text: &[u8],
    act: Act<'_>,
) -> Result<(), ResurrectError> {
    let queue = queue.perm.id;
    let what = Use::Send { queue, kind, text };
    if sender != Pid(0) && act(sender, what)? {
        return Ok(());
    }
    bearer::here(what).map_err(failed("message queue", queue, "sending its messages"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use persist_mem::manifest::IpcPerm;

    #[test]
    fn a_queue_comes_back_under_its_id_with_more_than_its_room() {
        // Of this thread alone.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
        let perm = IpcPerm {
            id: 0x8003,
            key: 77,
            uid: 5,
            cuid: 1234,
            cgid: 4321,
            mode: 0o640,
            ..IpcPerm::default()
        };
        let queue = MessageQueue {
            perm,
            room: 10,
            messages: vec![(4, vec![1; 9]), (1 << 40, Vec::new()), (4, vec![2; 9])],
            users: (Pid(8), Pid(9)),
        };
        let mut acted = Vec::new();
        let mut act = |pid, what: Use<'_>| {
            acted.push((pid, matches!(what, Use::Receive { .. })));
            // As for the last message, for which nobody can be had.
            let done = acted.len() < 3;
            Ok(done && bearer::here(what).map(|()| true).unwrap())
        };
        make(&queue, &mut act).unwrap();
        let expected = [(Pid(8), false), (Pid(9), true), (Pid(8), false)];
        assert_eq!(acted, expected);
        let (owners, room, count) = ipc::msg_stat(perm.id).unwrap();
        assert_eq!((owners.key, owners.uid, owners.cuid), (77, 5, 1234));
        assert_eq!(
            (owners.cgid, owners.mode, room, count),
            (4321, 0o640, 10, 3)
        );
        let copied: Vec<_> = (0..3)
            .map(|n| ipc::msg_copy(perm.id, n, 100).unwrap().unwrap())
            .collect();
        assert_eq!(copied, queue.messages);
        make(&queue, &mut |_, _| Ok(false)).unwrap();
        assert_eq!(ipc::msg_stat(perm.id).unwrap().2, 3, "what is there stays");
        let other = MessageQueue {
            perm: IpcPerm { key: 78, ..perm },
            ..queue
        };
        assert!(
            make(&other, &mut |_, _| Ok(false)).is_err(),
            "another one has its id"
        );
    }
}
