//! `struct mqueue_inode_info` (ipc/mqueue.c), copied.

use crate::kernel::{Kernel, Unreadable, half, word};
use std::os::fd::BorrowedFd;
use sys::mqueue::Attributes;

const WRONG: Unreadable = Unreadable::Inconsistent("a message queue");

/// What the kernel keeps of one queue.
pub(super) struct Inode {
    bytes: Vec<u8>,
}

impl Inode {
    /// Of the queue that a descriptor of this process is open on, which has these attributes.
    pub(super) fn read(
        kernel: &mut Kernel,
        queue: BorrowedFd<'_>,
        attributes: &Attributes,
    ) -> Result<Inode, Unreadable> {
        let btf = kernel.btf();
        let within = btf.field("mqueue_inode_info", "vfs_inode")?.offset;
        let len = btf.size_of("mqueue_inode_info")?;
        let [most, longest, now] = ["attr.mq_maxmsg", "attr.mq_msgsize", "attr.mq_curmsgs"]
            .map(|path| btf.field("mqueue_inode_info", path));
        let (most, longest, now) = (most?.offset, longest?.offset, now?.offset);
        let file = kernel.own_file(queue)?;
        let at = kernel.inode(file)?.wrapping_sub(within);
        let read = kernel.read(&[(at, len as usize)])?.pop().flatten();
        let inode = Inode {
            bytes: read.ok_or(WRONG)?,
        };
        let known = [
            attributes.max_messages,
            attributes.message_size,
            attributes.messages,
        ];
        let found = [inode.word(most)?, inode.word(longest)?, inode.word(now)?];
        if found == known.map(i64::cast_unsigned) {
            Ok(inode)
        } else {
            Err(WRONG)
        }
    }

    /// Eight bytes of it.
    pub(super) fn word(&self, at: u64) -> Result<u64, Unreadable> {
        word(&self.bytes, at).ok_or(WRONG)
    }

    /// Four bytes of it.
    pub(super) fn half(&self, at: u64) -> Result<u32, Unreadable> {
        half(&self.bytes, at).ok_or(WRONG)
    }
}
