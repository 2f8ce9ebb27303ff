//! System V message queues.

use super::{create, failed};
use crate::ResurrectError;
use persist_mem::manifest::MessageQueue;
use sys::{Errno, ipc};

pub(super) fn make(queue: &MessageQueue) -> Result<(), ResurrectError> {
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
    set(needed).map_err(failed("setting its owner and room"))?;
    for (kind, text) in &queue.messages {
        ipc::msg_send(perm.id, *kind, text).map_err(failed("sending its messages"))?;
    }
    if needed != queue.room {
        set(queue.room).map_err(failed("setting its room"))?;
    }
    Ok(())
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
        };
        make(&queue).unwrap();
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
        make(&queue).unwrap();
        assert_eq!(ipc::msg_stat(perm.id).unwrap().2, 3, "what is there stays");
        let other = MessageQueue {
            perm: IpcPerm { key: 78, ..perm },
            ..queue
        };
        assert!(make(&other).is_err(), "another one has its id");
    }
}
