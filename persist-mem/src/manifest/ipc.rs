//! Inter-process communication with ids and names of its own. Shared memory is with the memory.

use super::IpcPerm;
use serde::{Deserialize, Serialize};
use sys::{Pid, Tid};

/// A set of System V semaphores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SemaphoreSet {
    /// Id and owners.
    pub perm: IpcPerm,
    /// Value, and who changed it last, of each semaphore.
    pub members: Vec<(u16, Pid)>,
    /// Somebody has made an operation on it (`sem_otime` is not 0, which programs wait for).
    pub operated: bool,
}

/// What `SEM_UNDO` will do to semaphores of one set when the last thread ends that has the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// A process that has the list.
    pub pid: Pid,
    /// The thread of it: its leader where that has the list.
    pub tid: Tid,
    /// The set's id.
    pub set: i32,
    /// The semaphores that will change.
    pub members: Vec<UndoMember>,
}

/// A semaphore that will change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoMember {
    /// Its number in the set.
    pub number: u16,
    /// What will be added to it (`semadj`), not 0.
    pub adjustment: i16,
    /// Its value when it was saved.
    pub value: u16,
    /// Who had changed it last.
    pub last: Pid,
}

/// Most a semaphore can be (`SEMVMX`).
const MOST: i32 = 32767;

/// The value of a semaphore after several lists were undone, in whatever order: what goes beyond its
/// range is cut off each time (ipc/sem.c, exit_sem). None when it depends on the order.
#[must_use]
pub fn after_undo(value: u16, adjustments: &[i16]) -> Option<u16> {
    let value = i32::from(value);
    let sum = |sign: i32| -> i32 {
        let all = adjustments.iter().map(|by| i32::from(*by));
        all.filter(|by| by.signum() == sign).sum()
    };
    let after = match adjustments {
        [only] => (value + i32::from(*only)).clamp(0, MOST),
        _ if value + sum(1) <= MOST && value + sum(-1) >= 0 => value + sum(1) + sum(-1),
        _ => return None,
    };
    u16::try_from(after).ok()
}

/// A System V message queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageQueue {
    /// Id and owners.
    pub perm: IpcPerm,
    /// Room in bytes (`msg_qbytes`).
    pub room: u64,
    /// Types and texts in order.
    pub messages: Vec<(i64, Vec<u8>)>,
    /// Who sent to it and received from it last; 0 for nobody.
    pub users: (Pid, Pid),
}

/// A POSIX message queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixQueue {
    /// Its number in [`super::DescriptionKind::MessageQueue`].
    pub id: u32,
    /// Its name without the slash.
    pub name: Vec<u8>,
    /// It has been unlinked.
    pub unlinked: bool,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Most messages, and most bytes of one.
    pub sizes: (i64, i64),
    /// Priorities and texts in the order they are received.
    pub messages: Vec<(u32, Vec<u8>)>,
    /// Who is told of a message in the empty queue (mq_notify(3)).
    pub notification: Option<Notification>,
}

/// A registration by mq_notify(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// The process.
    pub owner: Pid,
    /// How it is told.
    pub notify: Notify,
}

/// How a process is told of something (`struct sigevent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notify {
    /// `SIGEV_NONE`: not at all.
    Nothing,
    /// `SIGEV_SIGNAL`.
    Signal {
        /// Which.
        signal: i32,
        /// What comes with it.
        value: u64,
    },
    /// `SIGEV_THREAD`: by a message to a netlink socket that a thread of the C library reads.
    Message {
        /// The socket's number in the process.
        socket: i32,
        /// The message.
        cookie: [u8; 32],
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_undone_is_cut_off_at_the_range() {
        assert_eq!(after_undo(5, &[3, -4]), Some(4));
        assert_eq!(after_undo(2, &[-5]), Some(0));
        assert_eq!(after_undo(32760, &[100]), Some(32767));
        assert_eq!(after_undo(2, &[-5, 1]), None, "0 or 1, as they end");
        assert_eq!(after_undo(7, &[]), Some(7));
    }
}
