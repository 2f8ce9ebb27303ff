//! What the kernel notes of an inode and nobody shows (include/linux/fs.h).

use super::{Kernel, Unreadable, half};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, BorrowedFd};

const WRONG: Unreadable = Unreadable::Inconsistent("the state of an inode");
/// Other bits of the state change as well, when the kernel writes inodes back.
const TRIES: usize = 10;

impl Kernel {
    /// Whether a file without a name can be given one (linkat(2)): it was opened with `O_TMPFILE` and without
    /// `O_EXCL`, and has had none so far.
    pub(crate) fn can_be_named(&mut self, file: BorrowedFd<'_>) -> Result<bool, Unreadable> {
        let bit = match self.linkable {
            Some(bit) => bit,
            None => self.find_linkable()?,
        };
        self.linkable = Some(bit);
        Ok(self.inode_state(file)? & bit != 0)
    }

    /// `I_LINKABLE`, which is another bit with other kernels: what a file that can be named has and another has not.
    fn find_linkable(&mut self) -> Result<u32, Unreadable> {
        // Where nobody can watch.
        let own = sys::mountapi::detached(c"tmpfs").map_err(Unreadable::NotAllowed)?;
        let make = |more| {
            let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC | more;
            openat(&own, c".", flags, Mode::empty()).map_err(Unreadable::NotAllowed)
        };
        for _ in 0..TRIES {
            let (with, without) = (make(OFlag::empty())?, make(OFlag::O_EXCL)?);
            let (with, without) = (with.as_fd(), without.as_fd());
            let different = self.inode_state(with)? ^ self.inode_state(without)?;
            if different.is_power_of_two() {
                return Ok(different);
            }
        }
        Err(WRONG)
    }

    fn inode_state(&mut self, file: BorrowedFd<'_>) -> Result<u32, Unreadable> {
        let state = self.btf.field("inode", "i_state")?.offset;
        let file = self.own_file(file)?;
        let inode = self.inode(file)?;
        let read = self.read(&[(inode.wrapping_add(state), 4)])?.pop();
        read.flatten()
            .and_then(|bytes| half(&bytes, 0))
            .ok_or(WRONG)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use super::*;
    use nix::fcntl::open;

    #[test]
    fn files_that_can_be_named_are_told_from_others() {
        let dir = std::env::temp_dir();
        let make = |more| {
            let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | more;
            open(&dir, flags, Mode::empty())
        };
        let (Ok(with), Ok(without)) = (make(OFlag::empty()), make(OFlag::O_EXCL)) else {
            return;
        };
        for (file, expected) in [(&with, true), (&without, false)] {
            let found = readable(look(|kernel| kernel.can_be_named(file.as_fd())));
            assert_eq!(found.unwrap_or(expected), expected);
        }
    }
}
