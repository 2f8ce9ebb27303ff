//! The messages of a POSIX message queue.
//!
//! They are read from the kernel's memory (`struct mqueue_inode_info`, ipc/mqueue.c). Where that cannot be
//! read, nothing shows them but taking them out. So a child of this process takes them all out and puts them
//! back in the same order, at once and on its own: the end of this process in between does no harm. Putting
//! the first one back would be a message in an empty queue for who wants to be notified, so that must be
//! nobody.

use super::inode::Inode;
use crate::kernel::{Kernel, Unreadable, half, word};
use nix::fcntl::OFlag;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use sys::PAGE_SIZE;
use sys::mqueue;

/// More nodes than a queue can have messages (`HARD_MSGMAX`).
const MOST: usize = 65536;
const WRONG: Unreadable = Unreadable::Inconsistent("a message queue");

/// Priorities and texts in the order they are received.
pub(super) fn read(kernel: &mut Kernel, inode: &Inode) -> Result<Vec<(u32, Vec<u8>)>, Unreadable> {
    let btf = kernel.btf();
    let field = |structure, path| Ok(btf.field(structure, path)?.offset);
    let (list, next) = (
        field("posix_msg_tree_node", "msg_list")?,
        field("list_head", "next")?,
    );
    let mut found = Vec::new();
    for node in nodes(kernel, inode)? {
        let head = node.wrapping_add(list);
        let mut at = kernel.word(head.wrapping_add(next), "a message queue")?;
        while at != head {
            found.push(message(kernel, at)?);
            if found.len() > MOST {
                return Err(WRONG);
            }
            at = kernel.word(at.wrapping_add(next), "a message queue")?;
        }
    }
    // The first of the highest priority comes first; within one they are in order.
    found.sort_by_key(|(priority, _)| core::cmp::Reverse(*priority));
    Ok(found)
}

/// The nodes of the tree, one for each priority.
fn nodes(kernel: &mut Kernel, inode: &Inode) -> Result<Vec<u64>, Unreadable> {
    let btf = kernel.btf();
    let field = |structure, path| Ok(btf.field(structure, path)?.offset);
    let root = field("mqueue_inode_info", "msg_tree.rb_node")?;
    let links = [field("rb_node", "rb_left")?, field("rb_node", "rb_right")?];
    let within = field("posix_msg_tree_node", "rb_node")?;
    let mut found = Vec::new();
    let mut open = vec![inode.word(root)?];
    while let Some(at) = open.pop() {
        if at == 0 {
            continue;
        }
        if found.len() > MOST {
            return Err(WRONG);
        }
        found.push(at.wrapping_sub(within));
        let below = kernel.words(&links.map(|link| at.wrapping_add(link)))?;
        for link in below {
            open.push(link.ok_or(WRONG)?);
        }
    }
    Ok(found)
}

/// One message: `struct msg_msg` with what fits into its page, then pieces (ipc/msgutil.c).
fn message(kernel: &mut Kernel, link: u64) -> Result<(u32, Vec<u8>), Unreadable> {
    let btf = kernel.btf();
    let field = |path| Ok(btf.field("msg_msg", path)?.offset);
    let (list, kind, size, next) = (
        field("m_list")?,
        field("m_type")?,
        field("m_ts")?,
        field("next")?,
    );
    let head = btf.size_of("msg_msg")?;
    let piece_next = btf.field("msg_msgseg", "next")?.offset;
    let piece_head = btf.size_of("msg_msgseg")?;
    let at = link.wrapping_sub(list);
    let bytes = kernel
        .read(&[(at, head as usize)])?
        .pop()
        .flatten()
        .ok_or(WRONG)?;
    let priority = half(&bytes, kind).ok_or(WRONG)?;
    let mut left = usize::try_from(word(&bytes, size).ok_or(WRONG)?).map_err(|_| WRONG)?;
    // `HARD_MSGSIZEMAX`
    if left > 16 << 20 {
        return Err(WRONG);
    }
    let mut next = word(&bytes, next).ok_or(WRONG)?;
    let mut requests = Vec::new();
    let mut take = |from: u64, head: u64, left: &mut usize| {
        let here = (*left).min(PAGE_SIZE - head as usize);
        requests.push((from.wrapping_add(head), here));
        *left -= here;
    };
    take(at, head, &mut left);
    while left > 0 {
        if next == 0 {
            return Err(WRONG);
        }
        take(next, piece_head, &mut left);
        next = kernel.word(next.wrapping_add(piece_next), "a message")?;
    }
    let pieces: Option<Vec<Vec<u8>>> = kernel.read(&requests)?.into_iter().collect();
    Ok((priority, pieces.ok_or(WRONG)?.concat()))
}

/// In a child, which tells them through a pipe: priority and length, four bytes each, then the text.
pub(super) fn take_and_put_back(
    queue: OwnedFd,
    longest: usize,
) -> sys::Result<Vec<(u32, Vec<u8>)>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel;

    #[test]
    fn both_ways_find_the_same_messages() {
        const O_RDWR: i32 = 2;
        const O_NONBLOCK: i32 = 0o4000;
        // Of this thread alone.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
        let queue = mqueue::open(c"both-ways", O_RDWR | O_NONBLOCK, Some((8, 8192))).unwrap();
        let sizes = [(3, 10), (7, 8192), (3, 0), (0, 4047), (7, 4049), (9, 4048)];
        for (index, (priority, len)) in sizes.into_iter().enumerate() {
            let text: Vec<u8> = (0..len).map(|at| (at * 7 + index) as u8).collect();
            mqueue::send(&queue, priority, &text).unwrap();
        }
        let attributes = mqueue::attributes(&queue).unwrap();
        let found = kernel::look(|kernel| {
            let inode = Inode::read(kernel, queue.as_fd(), &attributes)?;
            read(kernel, &inode)
        });
        let taken = take_and_put_back(queue, 8192).unwrap();
        let order: Vec<(u32, usize)> = taken.iter().map(|(p, text)| (*p, text.len())).collect();
        assert_eq!(
            order,
            [(9, 4048), (7, 8192), (7, 4049), (3, 10), (3, 0), (0, 4047)]
        );
        match found {
            Err(Unreadable::NotAllowed(_) | Unreadable::NoTypes(_)) => {}
            found => assert!(found.unwrap() == taken),
        }
    }
}
