//! Open files of a thread, and the inodes behind them.

use super::{Kernel, Unreadable, half, word};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What the table of a thread's descriptors is called in errors.
const TABLE: &str = "a table of descriptors";

/// An open file description, as far as the kernel has it at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenFile {
    /// Address of its `struct file`: those of two descriptions differ as long as both are open.
    pub(crate) address: u64,
    /// Access mode and status flags.
    pub(crate) flags: u32,
    pub(crate) pos: u64,
    /// Addresses of its mount and of its name in the directory: its path.
    pub(crate) path: (u64, u64),
    /// The descriptor is closed by execve(2).
    pub(crate) closes_on_exec: bool,
    /// Nobody gets its signals (`F_SETOWN`, `F_SETSIG`).
    pub(crate) ownerless: bool,
    /// `/proc/PID/fdinfo/FD` tells nothing but position, flags, mount and inode: its file has no locks, and
    /// its kind adds no lines.
    pub(crate) plain: bool,
}

/// Where things are in `struct file`.
struct FileFields {
    size: u64,
    flags: u64,
    pos: u64,
    mount: u64,
    name: u64,
    inode: u64,
    operations: u64,
    /// Somebody gets its signals when this word is not zero, or, before Linux 6.12, this half of one.
    owner: (u64, Option<u64>),
}

impl FileFields {
    fn find(kernel: &Kernel) -> Result<FileFields, Unreadable> {
        let field = |path| Ok(kernel.btf.field("file", path)?.offset);
        let owner = kernel.btf.field("file", "f_owner")?;
        // A pointer since Linux 6.12.
        let owner = if owner.pointer {
            (owner.offset, None)
        } else {
            (field("f_owner.pid")?, Some(field("f_owner.signum")?))
        };
        Ok(FileFields {
            size: kernel.btf.size_of("file")?,
            flags: field("f_flags")?,
            pos: field("f_pos")?,
            mount: field("f_path.mnt")?,
            name: field("f_path.dentry")?,
            inode: field("f_inode")?,
            operations: field("f_op")?,
            owner,
        })
    }

    /// Whether nobody gets the signals of a file.
    fn ownerless(&self, bytes: &[u8]) -> Option<bool> {
        let (owner, signal) = self.owner;
        let signal = signal.map_or(Some(0), |at| half(bytes, at))?;
        Some(word(bytes, owner)? == 0 && signal == 0)
    }
}

/// The table of a thread's descriptors.
struct DescriptorTable {
    /// Number of places.
    count: u64,
    /// Where the first is.
    first: u64,
    /// A bit for each that execve(2) closes.
    close_on_exec: u64,
}

impl Kernel {
    /// `struct file` of every descriptor of a thread, by number.
    pub(crate) fn files(&mut self, task: u64) -> Result<Vec<(i32, u64)>, Unreadable> {
        let table = self.descriptor_table(task)?;
        self.files_of(&table)
    }

    fn files_of(&mut self, table: &DescriptorTable) -> Result<Vec<(i32, u64)>, Unreadable> {
        let files = self.array(table.first, table.count)?;
        let numbered = (0..).zip(files);
        Ok(numbered.filter(|(_, file)| *file != 0).collect())
    }

    /// Words that follow each other.
    fn array(&mut self, first: u64, count: u64) -> Result<Vec<u64>, Unreadable> {
        let len = usize::try_from(count * 8).unwrap_or(0);
        let bytes = self.read(&[(first, len)])?.pop().flatten();
        let bytes = bytes.ok_or(Unreadable::Inconsistent(TABLE))?;
        let words = bytes.as_chunks::<8>().0.iter();
        Ok(words.map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// The open file of every descriptor of a thread, by number; of one that runs they may be closed by now.
    pub(crate) fn open_files(&mut self, task: u64) -> Result<BTreeMap<i32, OpenFile>, Unreadable> {
        let table = self.descriptor_table(task)?;
        let closed = self.array(table.close_on_exec, table.count.div_ceil(64))?;
        let files = self.files_of(&table)?;
        let addresses: Vec<u64> = files.iter().map(|(_, file)| *file).collect();
        let read = self.describe(&addresses)?;
        let one = |fd: i32, file: OpenFile| {
            let number = usize::try_from(fd).ok()?;
            let closes_on_exec = closed.get(number / 64)? >> (number % 64) & 1 == 1;
            Some((
                fd,
                OpenFile {
                    closes_on_exec,
                    ..file
                },
            ))
        };
        let found = files.iter().zip(read).map(|((fd, _), file)| one(*fd, file));
        let found: Option<_> = found.collect();
        found.ok_or(Unreadable::Inconsistent("an open file"))
    }

    /// Open files by their addresses.
    pub(crate) fn describe(&mut self, files: &[u64]) -> Result<Vec<OpenFile>, Unreadable> {
        const WHAT: &str = "an open file";
        let fields = FileFields::find(self)?;
        let locks = self.btf.field("inode", "i_flctx")?.offset;
        let show = self.btf.field("file_operations", "show_fdinfo")?.offset;
        let places: Vec<_> = files
            .iter()
            .map(|file| (*file, fields.size as usize))
            .collect();
        let read: Option<Vec<Vec<u8>>> = self.read(&places)?.into_iter().collect();
        let read = read.ok_or(Unreadable::Inconsistent(WHAT))?;
        // Of the inode and of its kind of file: what adds lines to fdinfo.
        let more = |bytes: &Vec<u8>| {
            let (inode, kind) = (word(bytes, fields.inode)?, word(bytes, fields.operations)?);
            Some([inode.wrapping_add(locks), kind.wrapping_add(show)])
        };
        let more: Option<Vec<[u64; 2]>> = read.iter().map(more).collect();
        let more = more.ok_or(Unreadable::Inconsistent(WHAT))?.concat();
        let more = self.words(&more)?;
        let one = |address: u64, bytes: &Vec<u8>, more: &[Option<u64>]| {
            Some(OpenFile {
                address,
                flags: half(bytes, fields.flags)?,
                pos: word(bytes, fields.pos)?,
                path: (word(bytes, fields.mount)?, word(bytes, fields.name)?),
                closes_on_exec: false,
                ownerless: fields.ownerless(bytes)?,
                plain: more == [Some(0); 2],
            })
        };
        let found = files.iter().zip(&read).zip(more.chunks(2));
        let found = found.map(|((address, bytes), more)| one(*address, bytes, more));
        let found: Option<_> = found.collect();
        found.ok_or(Unreadable::Inconsistent(WHAT))
    }

    /// `struct file` of a descriptor of this process.
    pub(crate) fn own_file(&mut self, fd: BorrowedFd<'_>) -> Result<u64, Unreadable> {
        let task = self.memory.own_task().map_err(Unreadable::NotAllowed)?;
        let table = self.descriptor_table(task)?;
        let number = u64::try_from(fd.as_raw_fd()).unwrap_or(u64::MAX);
        if number >= table.count {
            return Err(Unreadable::Inconsistent(TABLE));
        }
        self.word(table.first.wrapping_add(number * 8), TABLE)
    }

    fn descriptor_table(&mut self, task: u64) -> Result<DescriptorTable, Unreadable> {
        const WRONG: Unreadable = Unreadable::Inconsistent(TABLE);
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let (files, table) = (
            field("task_struct", "files")?,
            field("files_struct", "fdt")?,
        );
        let (count, first) = (field("fdtable", "max_fds")?, field("fdtable", "fd")?);
        let close_on_exec = field("fdtable", "close_on_exec")?;
        let len = self.btf.size_of("fdtable")?;
        let files = self.word(task.wrapping_add(files), TABLE)?;
        let table = self.word(files.wrapping_add(table), TABLE)?;
        let read = self.read(&[(table, len as usize)])?.pop().flatten();
        let bytes = read.ok_or(WRONG)?;
        let count = half(&bytes, count).ok_or(WRONG)?;
        Ok(DescriptorTable {
            count: count.into(),
            first: word(&bytes, first).ok_or(WRONG)?,
            close_on_exec: word(&bytes, close_on_exec).ok_or(WRONG)?,
        })
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
    fn open_files_are_as_other_interfaces_tell() {
        use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
        use std::io::Seek;
        let path = std::env::temp_dir().join(format!("kupgrade-open-{}", std::process::id()));
        let open = || {
            std::fs::File::options()
                .append(true)
                .create(true)
                .open(&path)
                .unwrap()
        };
        // Of a file of its own: who has ever locked one of everybody's leaves a trace in its inode.
        let other = path.with_extension("owned");
        let (mut plain, locked, owned) = (open(), open(), std::fs::File::create(&other).unwrap());
        std::fs::remove_file(&other).unwrap();
        plain.set_len(10).unwrap();
        plain.seek(std::io::SeekFrom::Start(7)).unwrap();
        fcntl(&plain, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        sys::files::set_owner(
            &owned,
            &sys::files::SignalOwner {
                signal: 10,
                ..sys::files::owner(&owned).unwrap()
            },
        )
        .unwrap();
        let event = nix::sys::eventfd::EventFd::new().unwrap();
        let me = Tid(nix::unistd::gettid().as_raw());
        let all = |kernel: &mut Kernel| {
            let task = kernel.tasks(&[me])?[0].unwrap();
            kernel.open_files(task)
        };
        let before = look(all);
        locked.try_lock().unwrap();
        let after = look(all);
        std::fs::remove_file(&path).unwrap();
        let (before, after) = match (before, after) {
            (Err(Unreadable::NotAllowed(_) | Unreadable::NoTypes(_)), _) => return,
            (before, after) => (before.unwrap(), after.unwrap()),
        };
        let of = |fd: i32| before[&fd];
        let (one, two, three) = (plain.as_raw_fd(), locked.as_raw_fd(), owned.as_raw_fd());
        assert_eq!((of(one).pos, of(two).pos), (7, 0));
        assert!(of(one).path == of(two).path && of(one).address != of(two).address);
        assert!(of(one).path != of(three).path);
        let flags = OFlag::from_bits_retain(of(one).flags.cast_signed());
        assert!(
            flags.contains(OFlag::O_WRONLY | OFlag::O_APPEND) && !flags.contains(OFlag::O_RDWR)
        );
        assert!(!of(one).closes_on_exec && of(two).closes_on_exec);
        assert!(of(one).ownerless && !of(three).ownerless);
        assert!(of(one).plain && of(two).plain && of(three).plain);
        assert!(
            !of(event.as_fd().as_raw_fd()).plain,
            "fdinfo tells its count"
        );
        assert!(!after[&one].plain, "its file has a lock now");
    }

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
