//! Who watches directories by `F_NOTIFY`, and whose doings wait in a queue of fanotify (fs/notify).

use super::{Kernel, Unreadable, half, word};
use std::os::fd::BorrowedFd;
use sys::Tid;

const WRONG: Unreadable = Unreadable::Inconsistent("watches of a directory");
/// More watches than anybody has.
const MOST: usize = 1 << 16;
/// `PIDTYPE_TGID` (include/linux/pid_types.h).
const TGID: u64 = 1;

/// A directory's watch (`struct dnotify_struct`, include/linux/dnotify.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    /// The number that was given, which the signal tells.
    pub(crate) fd: i32,
    /// `DN_*` bits as the kernel keeps them (`FS_*`).
    pub(crate) mask: u32,
}

/// An inode that is watched; whoever asks has to compare number and device, which others may have by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    /// Where it is.
    pub(crate) inode: u64,
    /// `st_ino`.
    pub(crate) number: u64,
    /// The device as the kernel has it inside: 12 bits of major, 20 of minor.
    pub(crate) device: u32,
}

impl Kernel {
    /// What a thread's process has asked to be told of the directory that a descriptor of this process is open on, by
    /// the same description.
    pub(crate) fn notices(
        &mut self,
        directory: BorrowedFd<'_>,
        holder: Tid,
    ) -> Result<Vec<Notice>, Unreadable> {
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let files = field("task_struct", "files")?;
        let of_notice = |name| field("dnotify_struct", name);
        let next = of_notice("dn_next")?;
        let (mask, fd) = (of_notice("dn_mask")?, of_notice("dn_fd")?);
        let (file_at, owner) = (of_notice("dn_filp")?, of_notice("dn_owner")?);
        let size = self.btf.size_of("dnotify_struct")? as usize;
        let first = field("dnotify_mark", "dn")?;
        let file = self.own_file(directory)?;
        let task = self.tasks(&[holder])?.into_iter().flatten().next();
        let files = self.word(task.ok_or(WRONG)?.wrapping_add(files), "a process")?;
        let marks = self.marks(file)?;
        let firsts: Vec<u64> = marks.iter().map(|at| at.wrapping_add(first)).collect();
        // Marks of others have something else there, which leads to no notice of this file.
        let mut left: Vec<u64> = self.words(&firsts)?.into_iter().flatten().collect();
        let mut found = Vec::new();
        let mut seen = 0;
        while let Some(at) = left.pop() {
            seen += 1;
            if seen > MOST {
                return Err(WRONG);
            }
            let Some(bytes) = self.read(&[(at, size)])?.pop().flatten() else {
                continue;
            };
            let number = |at| half(&bytes, at).ok_or(WRONG);
            // All notices of a mark are of one inode, not of one file.
            left.extend(word(&bytes, next).filter(|next| *next != 0));
            if word(&bytes, file_at) == Some(file) && word(&bytes, owner) == Some(files) {
                found.push(Notice {
                    fd: number(fd)?.cast_signed(),
                    mask: number(mask)?,
                });
            }
        }
        Ok(found)
    }

    /// Marks of the inode of an open file (include/linux/fsnotify_backend.h).
    fn marks(&mut self, file: u64) -> Result<Vec<u64>, Unreadable> {
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let connector = field("inode", "i_fsnotify_marks")?;
        let list = field("fsnotify_mark_connector", "list")?;
        let node = field("fsnotify_mark", "obj_list")?;
        let inode = self.inode(file)?;
        let connector = self.word(inode.wrapping_add(connector), "an inode")?;
        if connector == 0 {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let mut at = self.word(connector.wrapping_add(list), "watches of a directory")?;
        while at != 0 {
            found.push(at.wrapping_sub(node));
            if found.len() > MOST {
                return Err(WRONG);
            }
            at = self.word(at, "watches of a directory")?;
        }
        Ok(found)
    }

    /// The inodes that a group of inotify or fanotify watches, which a descriptor of this process is open on.
    pub(crate) fn watched(&mut self, group: BorrowedFd<'_>) -> Result<Vec<Watched>, Unreadable> {
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let private = field("file", "private_data")?;
        let list = field("fsnotify_group", "marks_list")?;
        let (link, connector) = (
            field("fsnotify_mark", "g_list")?,
            field("fsnotify_mark", "connector")?,
        );
        let object = field("fsnotify_mark_connector", "obj")?;
        let of_inode = field("inode", "i_fsnotify_marks")?;
        let file = self.own_file(group)?;
        let group = self.word(file.wrapping_add(private), "a group of watches")?;
        let head = group.wrapping_add(list);
        let mut at = self.word(head, "a group of watches")?;
        let mut connectors = Vec::new();
        while at != head {
            if connectors.len() == MOST {
                return Err(WRONG);
            }
            connectors.push(at.wrapping_sub(link).wrapping_add(connector));
            at = self.word(at, "a group of watches")?;
        }
        let connectors = self.words(&connectors)?.into_iter().flatten();
        let objects: Vec<u64> = connectors.map(|at| at.wrapping_add(object)).collect();
        let objects = self.words(&objects)?;
        let mut found = Vec::new();
        for object in objects.into_iter().flatten() {
            // Before Linux 6.10 it is where the inode has the connector.
            for inode in [object, object.wrapping_sub(of_inode)] {
                found.extend(self.watched_inode(inode));
            }
        }
        Ok(found)
    }

    /// What an inode is, if there is one: marks of mounts and file systems have others.
    fn watched_inode(&mut self, inode: u64) -> Option<Watched> {
        let found = self.fields(inode, "inode", &["i_ino", "i_sb"]).ok()?;
        let (number, system) = (*found.first()?, *found.get(1)?);
        let device = self.fields(system, "super_block", &["s_dev"]).ok()?;
        Some(Watched {
            inode,
            number,
            device: *device.first()? as u32,
        })
    }

    /// How many events wait in a queue of fanotify that a descriptor of this process is open on, without those that
    /// this process has caused.
    pub(crate) fn events_of_others(&mut self, group: BorrowedFd<'_>) -> Result<usize, Unreadable> {
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let private = field("file", "private_data")?;
        let list = field("fsnotify_group", "notification_list")?;
        let link = field("fanotify_event", "fse.list")?;
        let pid = field("fanotify_event", "pid")?;
        let (signal, pids) = (
            field("task_struct", "signal")?,
            field("signal_struct", "pids")?,
        );
        let task = self.own_task()?;
        let signal = self.word(task.wrapping_add(signal), "this process")?;
        let own = self.word(signal.wrapping_add(pids + TGID * 8), "this process")?;
        let file = self.own_file(group)?;
        let group = self.word(file.wrapping_add(private), "a group of fanotify")?;
        let head = group.wrapping_add(list);
        let mut at = self.word(head, "events of fanotify")?;
        let mut others = 0;
        for _ in 0..MOST {
            if at == head {
                return Ok(others);
            }
            let event = at.wrapping_sub(link);
            let who = self.word(event.wrapping_add(pid), "events of fanotify")?;
            others += usize::from(who != own);
            at = self.word(at, "events of fanotify")?;
        }
        Err(WRONG)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use std::fs::{self, File};
    use std::os::fd::{AsFd, AsRawFd};
    use sys::Tid;

    #[test]
    fn what_is_watched() {
        use std::os::unix::fs::MetadataExt;
        const IN_MODIFY: u32 = 2;
        let group = sys::files::inotify(0).unwrap();
        let paths = [c"/proc/version", c"/tmp"];
        for path in paths {
            sys::files::add_watch(&group, path, IN_MODIFY).unwrap();
        }
        let Some(found) = readable(look(|kernel| kernel.watched(group.as_fd()))) else {
            return;
        };
        for path in paths.map(|path| path.to_str().unwrap()) {
            let inode = fs::metadata(path).unwrap().ino();
            let number = |one: &super::Watched| one.number == inode;
            let one = found.iter().find(|one| number(one)).unwrap();
            let names = readable(look(|kernel| kernel.known_names(one.inode))).unwrap();
            assert_eq!(names.device, one.device);
            let last = &path.as_bytes()[path.rfind('/').unwrap()..];
            let is = |name: &Vec<u8>| name.ends_with(last) || name.is_empty();
            assert!(names.paths.iter().any(is), "{names:?}");
        }
    }

    #[test]
    fn who_is_told_of_a_directory() {
        const MULTISHOT_CREATE: i32 = 0x4 | i32::MIN;
        let dir = std::env::temp_dir().join(format!("notices-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let (watched, other) = (File::open(&dir).unwrap(), File::open(&dir).unwrap());
        sys::files::notify(&watched, MULTISHOT_CREATE.cast_unsigned()).unwrap();
        let me = Tid(nix::unistd::gettid().as_raw());
        let found = |file: &File| readable(look(|kernel| kernel.notices(file.as_fd(), me)));
        let (watched, fd) = (found(&watched), watched.as_raw_fd());
        let other = found(&other);
        fs::remove_dir(&dir).unwrap();
        let (Some(watched), Some(other)) = (watched, other) else {
            return;
        };
        assert!(other.is_empty());
        let [notice] = watched[..] else {
            panic!("{watched:?}");
        };
        assert_eq!(notice.fd, fd);
        let events = sys::files::notify_bits(notice.mask);
        assert_eq!(events, Some(MULTISHOT_CREATE.cast_unsigned()));
    }
}
