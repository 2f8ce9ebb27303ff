//! Open files of a thread, and the inodes behind them.

use super::{Kernel, Unreadable, half, word};
use std::os::fd::{AsRawFd, BorrowedFd};

/// What the table of a thread's descriptors is called in errors.
const TABLE: &str = "a table of descriptors";

impl Kernel {
    /// `struct file` of every descriptor of a thread, by number.
    pub(crate) fn files(&mut self, task: u64) -> Result<Vec<(i32, u64)>, Unreadable> {
        let (count, first) = self.descriptor_table(task)?;
        let places: Vec<u64> = (0..count).map(|n| first.wrapping_add(n * 8)).collect();
        let files = self.words(&places)?;
        let numbered = (0..).zip(files.into_iter().flatten());
        Ok(numbered.filter(|(_, file)| *file != 0).collect())
    }

    /// `struct file` of a descriptor of this process.
    pub(crate) fn own_file(&mut self, fd: BorrowedFd<'_>) -> Result<u64, Unreadable> {
        let task = self.memory.own_task().map_err(Unreadable::NotAllowed)?;
        let (count, first) = self.descriptor_table(task)?;
        let number = u64::try_from(fd.as_raw_fd()).unwrap_or(u64::MAX);
        if number >= count {
            return Err(Unreadable::Inconsistent(TABLE));
        }
        self.word(first.wrapping_add(number * 8), TABLE)
    }

    /// Number of places in a thread's table, and where the first is.
    fn descriptor_table(&mut self, task: u64) -> Result<(u64, u64), Unreadable> {
        const WRONG: Unreadable = Unreadable::Inconsistent(TABLE);
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let (files, table) = (
            field("task_struct", "files")?,
            field("files_struct", "fdt")?,
        );
        let (count, first) = (field("fdtable", "max_fds")?, field("fdtable", "fd")?);
        let len = self.btf.size_of("fdtable")?;
        let files = self.word(task.wrapping_add(files), TABLE)?;
        let table = self.word(files.wrapping_add(table), TABLE)?;
        let read = self.read(&[(table, len as usize)])?.pop().flatten();
        let bytes = read.ok_or(WRONG)?;
        let count = half(&bytes, count).ok_or(WRONG)?;
        Ok((count.into(), word(&bytes, first).ok_or(WRONG)?))
    }

    /// `struct inode` of an open file.
    pub(crate) fn inode(&mut self, file: u64) -> Result<u64, Unreadable> {
        let inode = self.btf.field("file", "f_inode")?.offset;
        self.word(file.wrapping_add(inode), "an open file")
    }
}

#[cfg(test)]
mod tests {
    use super::super::look;
    use super::*;
    use std::os::fd::AsFd;
    use sys::Tid;

    #[test]
    fn descriptors_lead_to_files() {
        let (one, two) = nix::unistd::pipe().unwrap();
        let again = one.try_clone().unwrap();
        let me = Tid(nix::unistd::gettid().as_raw());
        let found = look(|kernel| {
            let [a, b, c] = [&one, &two, &again].map(|fd| kernel.own_file(fd.as_fd()));
            let (a, b, c) = (a?, b?, c?);
            let task = kernel.tasks(&[me])?[0].unwrap();
            let inodes = [kernel.inode(a)?, kernel.inode(b)?];
            Ok(([a, b, c], inodes, kernel.files(task)?))
        });
        match found {
            Err(Unreadable::NotAllowed(_) | Unreadable::NoTypes(_)) => {}
            found => {
                let ([a, b, c], inodes, files) = found.unwrap();
                assert!(a != b && a == c);
                assert_eq!(inodes[0], inodes[1]);
                assert!(files.contains(&(one.as_raw_fd(), a)));
                assert!(files.contains(&(two.as_raw_fd(), b)));
            }
        }
    }
}
