//! The buffers of pipes (include/linux/pipe_fs_i.h).

use super::{Kernel, Unreadable, half};
use std::os::fd::BorrowedFd;

const WRONG: Unreadable = Unreadable::Inconsistent("a pipe");
/// More buffers than a pipe can have.
const MOST: u32 = 1 << 20;
/// `PIPE_BUF_FLAG_PACKET`: it is read alone.
const PACKET: u32 = 0x8;
/// `PIPE_BUF_FLAG_CAN_MERGE`: what is written next is added to it while its page has room.
const CAN_MERGE: u32 = 0x10;

/// A buffer that waits in a pipe: bytes of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PipeBuffer {
    /// Where in its page it begins.
    pub(crate) offset: u32,
    pub(crate) len: u32,
    flags: u32,
}

impl PipeBuffer {
    /// Whether it is read alone (`O_DIRECT`).
    pub(crate) fn is_packet(self) -> bool {
        self.flags & PACKET != 0
    }

    /// Whether the next write is added to it.
    pub(crate) fn can_merge(self) -> bool {
        self.flags & CAN_MERGE != 0
    }
}

impl Kernel {
    /// The buffers of the pipe that a descriptor of this process is an end of, the oldest first.
    pub(crate) fn own_pipe(&mut self, end: BorrowedFd<'_>) -> Result<Vec<PipeBuffer>, Unreadable> {
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let private = field("file", "private_data")?;
        let of_pipe = |name| field("pipe_inode_info", name);
        let (head, tail) = (of_pipe("head")?, of_pipe("tail")?);
        let (count, buffers) = (of_pipe("ring_size")?, of_pipe("bufs")?);
        let of_buffer = |name| field("pipe_buffer", name);
        let parts = [of_buffer("offset")?, of_buffer("len")?, of_buffer("flags")?];
        let (whole, size) = (
            self.btf.size_of("pipe_inode_info")?,
            self.btf.size_of("pipe_buffer")?,
        );
        let file = self.own_file(end)?;
        let pipe = self.word(file.wrapping_add(private), "an end of a pipe")?;
        let bytes = self.read(&[(pipe, whole as usize)])?.pop().flatten();
        let bytes = bytes.ok_or(WRONG)?;
        let number = |at| half(&bytes, at).ok_or(WRONG);
        let (head, tail, count) = (number(head)?, number(tail)?, number(count)?);
        let first = super::word(&bytes, buffers).ok_or(WRONG)?;
        let used = head.wrapping_sub(tail);
        if !count.is_power_of_two() || count > MOST || used > count {
            return Err(WRONG);
        }
        let places: Vec<_> = (0..used)
            .map(|n| u64::from(tail.wrapping_add(n) & (count - 1)))
            .map(|index| (first.wrapping_add(index * size), size as usize))
            .collect();
        let read: Option<Vec<Vec<u8>>> = self.read(&places)?.into_iter().collect();
        let one = |bytes: &Vec<u8>| {
            let [offset, len, flags] = parts.map(|at| half(bytes, at));
            Some(PipeBuffer {
                offset: offset?,
                len: len?,
                flags: flags?,
            })
        };
        let found: Option<Vec<_>> = read.ok_or(WRONG)?.iter().map(one).collect();
        found.ok_or(WRONG)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::os::fd::AsFd;

    #[test]
    fn buffers_are_as_they_were_written() {
        let (from, to) = nix::unistd::pipe2(OFlag::O_NONBLOCK).unwrap();
        nix::unistd::write(&to, &[1; 3000]).unwrap();
        nix::unistd::write(&to, &[2; 2000]).unwrap();
        nix::unistd::read(&from, &mut [0; 10]).unwrap();
        fcntl(&to, FcntlArg::F_SETFL(OFlag::O_DIRECT)).unwrap();
        nix::unistd::write(&to, &[3; 4000]).unwrap();
        let found = readable(look(|kernel| kernel.own_pipe(from.as_fd())));
        let Some(found) = found else { return };
        let seen: Vec<_> = found
            .iter()
            .map(|one| (one.offset, one.len, one.can_merge(), one.is_packet()))
            .collect();
        let expected = [
            (10, 2990, true, false),
            (0, 2000, true, false),
            (0, 4000, false, true),
        ];
        assert_eq!(seen, expected);
    }
}
