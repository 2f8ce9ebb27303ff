//! System V message queues. Their messages are copied, and stay.

use super::{failed, gone, perm};
use crate::FreezerError;
use persist_mem::manifest::MessageQueue;
use sys::ipc;

/// None when the queue is gone.
pub(super) fn capture(id: i32) -> Result<Option<MessageQueue>, FreezerError> {
    let (owners, room, count) = match ipc::msg_stat(id) {
        Err(errno) if gone(errno) => return Ok(None),
        found => found.map_err(failed(id, "looking at the queue"))?,
    };
    // No message is longer than the queue's room, but the room may have been made smaller since.
    let longest = usize::try_from(room).unwrap_or(0).max(longest_ever());
    let mut messages = Vec::new();
    for index in 0..count {
        let copied = ipc::msg_copy(id, index, longest);
        let Some(message) = copied.map_err(failed(id, "copying a message"))? else {
            break;
        };
        messages.push(message);
    }
    Ok(Some(MessageQueue {
        perm: perm(id, owners),
        room,
        messages,
        users: ipc::msg_users(id).map_err(failed(id, "looking at the queue"))?,
    }))
}

/// `kernel.msgmax`.
fn longest_ever() -> usize {
    let text = std::fs::read_to_string("/proc/sys/kernel/msgmax").unwrap_or_default();
    text.trim().parse().unwrap_or(8192)
}
