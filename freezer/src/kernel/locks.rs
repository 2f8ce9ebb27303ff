//! Locks of ranges of a file, which the kernel has in a list (fs/locks.c): the first that is in the way of another one
//! is the one that `F_GETLK` tells of.

use super::{Kernel, Unreadable, word};

const WRONG: Unreadable = Unreadable::Inconsistent("the locks of a file");
/// More locks than a file has, to end a list that leads nowhere.
const MOST: usize = 1 << 20;

/// What tells a lock from the others of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RangeLock {
    /// A table of descriptors, or an open file.
    pub(crate) owner: u64,
    /// Its first byte.
    pub(crate) start: u64,
}

impl Kernel {
    /// The locks of ranges of the file that a `struct file` is open on, in the kernel's order.
    pub(crate) fn range_locks(&mut self, file: u64) -> Result<Vec<RangeLock>, Unreadable> {
        let of = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let (context, list) = (
            of("inode", "i_flctx")?,
            of("file_lock_context", "flc_posix")?,
        );
        let start = of("file_lock", "fl_start")?;
        // Since Linux 6.9 what leases have as well stands in a structure of its own.
        let either = |new, old| of("file_lock", new).or_else(|_: Unreadable| of("file_lock", old));
        let (link, owner) = (
            either("c.flc_list", "fl_list")?,
            either("c.flc_owner", "fl_owner")?,
        );
        let len = self.btf.size_of("file_lock")? as usize;
        let inode = self.inode(file)?;
        let context = self.word(inode.wrapping_add(context), "the locks of a file")?;
        if context == 0 {
            return Ok(Vec::new());
        }
        let head = context.wrapping_add(list);
        let mut next = self.word(head, "the locks of a file")?;
        let mut found = Vec::new();
        while next != head {
            let read = self.read(&[(next.wrapping_sub(link), len)])?.pop();
            let bytes = read.flatten().filter(|_| found.len() < MOST).ok_or(WRONG)?;
            let at = |offset| word(&bytes, offset).ok_or(WRONG);
            found.push(RangeLock {
                owner: at(owner)?,
                start: at(start)?,
            });
            next = at(link)?;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use std::os::fd::AsFd;
    use sys::files::{Range, lock_range};

    #[test]
    fn locks_are_listed_by_owner_in_order() {
        let path = std::env::temp_dir().join(format!("kupgrade-locks-{}", std::process::id()));
        let open = || {
            let mut options = std::fs::File::options();
            options.read(true).write(true).create(true).open(&path)
        };
        let (one, two): (std::os::fd::OwnedFd, std::os::fd::OwnedFd) =
            (open().unwrap().into(), open().unwrap().into());
        std::fs::remove_file(&path).unwrap();
        for (file, start) in [(&two, 30), (&one, 20), (&two, 10)] {
            let range = Range {
                kind: 0,
                start,
                len: 1,
            };
            lock_range(file, &range).unwrap();
        }
        let found = look(|kernel| {
            let [one, two] = [&one, &two].map(|file| kernel.own_file(file.as_fd()));
            let (one, two) = (one?, two?);
            Ok((one, two, kernel.range_locks(one)?))
        });
        let Some((one, two, locks)) = readable(found) else {
            return;
        };
        let expected = [(two, 10), (two, 30), (one, 20)];
        let found: Vec<_> = locks.iter().map(|lock| (lock.owner, lock.start)).collect();
        assert_eq!(found, expected);
    }
}
