//! Inter-process communication with ids and names of its own. Shared memory is with the memory.

use super::IpcPerm;
use serde::{Deserialize, Serialize};
use sys::Pid;

/// A set of System V semaphores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SemaphoreSet {
    /// Id and owners.
    pub perm: IpcPerm,
    /// Value, and who changed it last, of each semaphore.
    pub members: Vec<(u16, Pid)>,
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
}
