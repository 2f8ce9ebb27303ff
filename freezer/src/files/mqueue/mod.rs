//! POSIX message queues: several descriptions, one queue.
//!
//! What the queue's file shows of it is not all: messages and what a notification tells are read from the
//! kernel's memory, where that can be.

mod inode;
mod messages;
mod notification;
mod unheld;

use super::Open;
use crate::{FreezerError, kernel, proc};
use inode::Inode;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::sys::statfs::fstatfs;
use persist_mem::manifest::{DescriptionKind, Notification, PosixQueue};
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
    open.may_be_made_up()
        && open.file_type() != SFlag::S_IFDIR
        && fstatfs(open.copy).is_ok_and(|fs| fs.filesystem_type().0 == MQUEUE_MAGIC)
}

/// What is known of a queue besides its messages.
pub(super) struct Examined {
    attributes: Attributes,
    notification: Option<Notification>,
}

/// Refuses what cannot be carried, without touching the messages.
pub(super) fn examine(open: &Open<'_>) -> Result<Examined, FreezerError> {
    let attributes = mqueue::attributes(open.copy).map_err(open.call("reading its attributes"))?;
    let own = reopen(open, OFlag::O_RDONLY)?;
    let shown = notification::shown(open, own)?;
    let notification = match shown {
        None => None,
        Some(shown) => Some(notification::read(open, &attributes, shown)?),
    };
    Ok(Examined {
        attributes,
        notification,
    })
}

fn reopen(open: &Open<'_>, flags: OFlag) -> Result<OwnedFd, FreezerError> {
    sys::fds::reopen(open.copy, flags | OFlag::O_NONBLOCK).map_err(open.call("opening it again"))
}

/// `O_CLOEXEC` stays among the status flags of a queue that was opened with it (do_mq_open, ipc/mqueue.c), where
/// fdinfo does not tell it from what a descriptor has.
pub(super) fn kept_flag(open: &Open<'_>) -> u32 {
    let flags = nix::fcntl::fcntl(open.copy, nix::fcntl::FcntlArg::F_GETFL).unwrap_or(0);
    (flags & OFlag::O_CLOEXEC.bits()).cast_unsigned()
}

impl Queues {
    pub(super) fn capture(&mut self, open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
        let examined = examine(open)?;
        let stat = fstat(open.copy).map_err(open.call("fstat"))?;
        if let Some((_, queue)) = self.found.iter().find(|(inode, _)| *inode == stat.st_ino) {
            return Ok(DescriptionKind::MessageQueue { queue: queue.id });
        }
        let id = u32::try_from(self.found.len()).unwrap_or(u32::MAX);
        let queue = describe(open, id, &stat, examined)?;
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
    examined: Examined,
) -> Result<PosixQueue, FreezerError> {
    let unlinked = open.link.ends_with(DELETED);
    let path = open.link.strip_suffix(DELETED).unwrap_or(open.link);
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let Examined {
        attributes,
        notification,
    } = examined;
    let messages = read_messages(open, &attributes, notification.is_some())?;
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
        notification,
    })
}

fn read_messages(
    open: &Open<'_>,
    attributes: &Attributes,
    notified: bool,
) -> Result<Vec<(u32, Vec<u8>)>, FreezerError> {
    if attributes.messages == 0 {
        return Ok(Vec::new());
    }
    let read = kernel::look(|kernel| {
        let inode = Inode::read(kernel, open.copy.as_fd(), attributes)?;
        messages::read(kernel, &inode)
    });
    match read {
        Ok(read) if read.len() as i64 == attributes.messages => Ok(read),
        _ if notified => Err(open.refuse(notification::UNKNOWN)),
        _ => {
            let queue = reopen(open, OFlag::O_RDWR)?;
            let longest = usize::try_from(attributes.message_size).unwrap_or(0);
            let taken = messages::take_and_put_back(queue, longest);
            taken.map_err(open.call("reading its messages"))
        }
    }
}
