//! POSIX message queues: several descriptions, one queue.
//!
//! Nothing shows a queue's messages but taking them out. So a child of this process takes them all out and
//! puts them back in the same order, at once and on its own: the end of this process in between does no
//! harm.

use super::Open;
use crate::{FreezerError, proc};
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, fstat};
use nix::sys::statfs::fstatfs;
use persist_mem::manifest::{DescriptionKind, PosixQueue};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use sys::mqueue::{self, Attributes};

const MQUEUE_MAGIC: i64 = 0x1980_0202;
const DELETED: &[u8] = b" (deleted)";

/// The queues found so far, with their inode numbers.
#[derive(Default)]
pub(super) struct Queues {
    found: Vec<(u64, PosixQueue)>,
}

pub(super) fn is_one(open: &Open<'_>) -> bool {
    let directory = fstat(open.copy).is_ok_and(|stat| stat.st_mode & 0o170_000 == 0o040_000);
    !directory && fstatfs(open.copy).is_ok_and(|fs| fs.filesystem_type().0 == MQUEUE_MAGIC)
}

/// Refuses what cannot be carried, without touching the messages.
pub(super) fn examine(open: &Open<'_>) -> Result<Attributes, FreezerError> {
    let what = format!("fd/{}", open.fd);
    let failed = |cause| FreezerError::Proc {
        pid: open.pid,
        what: what.clone(),
        cause,
    };
    // "QSIZE:.. NOTIFY:.. SIGNO:.. NOTIFY_PID:..": read through a description of our own.
    let own = reopen(open, OFlag::O_RDONLY)?;
    let mut text = String::new();
    std::fs::File::from(own)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let notified = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("NOTIFY_PID:"));
    if notified.is_some_and(|pid| pid != "0") {
        return Err(open.refuse("its notification (mq_notify) cannot be read and is not carried"));
    }
    mqueue::attributes(open.copy).map_err(open.call("reading its attributes"))
}

fn reopen(open: &Open<'_>, flags: OFlag) -> Result<OwnedFd, FreezerError> {
    sys::fds::reopen(open.copy, flags | OFlag::O_NONBLOCK).map_err(open.call("opening it again"))
}

impl Queues {
    pub(super) fn capture(&mut self, open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
        let attributes = examine(open)?;
        let stat = fstat(open.copy).map_err(open.call("fstat"))?;
        if let Some((_, queue)) = self.found.iter().find(|(inode, _)| *inode == stat.st_ino) {
            return Ok(DescriptionKind::MessageQueue { queue: queue.id });
        }
        let id = u32::try_from(self.found.len()).unwrap_or(u32::MAX);
        let queue = describe(open, id, &stat, attributes)?;
        self.found.push((stat.st_ino, queue));
        Ok(DescriptionKind::MessageQueue { queue: id })
    }

    pub(super) fn finish(self) -> Vec<PosixQueue> {
        self.found.into_iter().map(|(_, queue)| queue).collect()
    }
}

fn describe(
    open: &Open<'_>,
    id: u32,
    stat: &FileStat,
    attributes: Attributes,
) -> Result<PosixQueue, FreezerError> {
    let unlinked = open.link.ends_with(DELETED);
    let path = open.link.strip_suffix(DELETED).unwrap_or(open.link);
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let messages = if attributes.messages == 0 {
        Vec::new()
    } else {
        let queue = reopen(open, OFlag::O_RDWR)?;
        let longest = usize::try_from(attributes.message_size).unwrap_or(0);
        take_and_put_back(queue, longest).map_err(open.call("reading its messages"))?
    };
    if messages.len() as i64 != attributes.messages {
        let text = proc::comm(open.pid);
        return Err(open.refuse(format!("its messages changed while {text} was stopped")));
    }
    Ok(PosixQueue {
        id,
        name: name.to_vec(),
        unlinked,
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid, stat.st_gid),
        sizes: (attributes.max_messages, attributes.message_size),
        messages,
    })
}

/// In a child, which tells them through a pipe: priority and length, four bytes each, then the text.
fn take_and_put_back(queue: OwnedFd, longest: usize) -> sys::Result<Vec<(u32, Vec<u8>)>> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let child = sys::process::spawn(0, &[], || {
        let mut found = Vec::new();
        while let Ok(Some(message)) = mqueue::receive(&queue, longest) {
            found.push(message);
        }
        let put = |(priority, text): &(u32, Vec<u8>)| mqueue::send(&queue, *priority, text);
        if found.iter().try_for_each(put).is_err() {
            return 1;
        }
        let mut bytes = Vec::new();
        for (priority, text) in &found {
            bytes.extend_from_slice(&priority.to_le_bytes());
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(text);
        }
        let told = std::fs::File::from(write.as_fd().try_clone_to_owned().unwrap_or(queue));
        i32::from((&told).write_all(&bytes).is_err())
    })?;
    drop(write);
    let mut bytes = Vec::new();
    let told = std::fs::File::from(read).read_to_end(&mut bytes);
    let status = sys::wait::wait_for(child.leader())?;
    if told.is_err() || status != sys::wait::Status::Exited(0) {
        return Err(sys::Errno::EIO);
    }
    Ok(decode(&bytes))
}

fn decode(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<8>() {
        let [a, b, c, d, e, f, g, h] = *head;
        let len = u32::from_le_bytes([e, f, g, h]) as usize;
        let Some((text, rest)) = rest.split_at_checked(len) else {
            break;
        };
        found.push((u32::from_le_bytes([a, b, c, d]), text.to_vec()));
        bytes = rest;
    }
    found
}
