//! Open files that are in flight in a message and nobody can make copies of: known by where the kernel has them
//! (`struct file`). Somebody may hold them as well; else they are reached by what they are open on.

use super::{O_PATH, apart, class, place};
use crate::kernel::{self, Kernel, Nature, OpenFile, Unreadable};
use crate::proc;
use nix::fcntl::{OFlag, open};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::Mode;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use sys::{Pid, Tid, process};

/// Where descriptors of an eventfd lead.
pub(super) const EVENTFD: &[u8] = b"anon_inode:[eventfd]";
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFIFO: u32 = 0o010_000;

/// An open file that was reached.
pub(super) struct Reached {
    /// A descriptor of the same file, another open file description.
    pub(super) copy: OwnedFd,
    /// Where `/proc/PID/fd/FD` would lead.
    pub(super) link: Vec<u8>,
    /// What the kernel has.
    pub(super) file: OpenFile,
}

/// The open files that processes hold, asked for when the first one is looked for.
#[derive(Default)]
pub(super) struct Held(Option<HashSet<u64>>);

impl Held {
    /// Those of some open files that none of these processes holds, or of all for None.
    fn missing(&mut self, files: &[u64], inside: Option<&[Pid]>) -> Result<Vec<u64>, String> {
        let missing = |held: &HashSet<u64>| {
            let files = files.iter().copied();
            files.filter(|file| !held.contains(file)).collect()
        };
        match &self.0 {
            _ if files.is_empty() => return Ok(Vec::new()),
            // What is not among them may have come since.
            Some(held) if Vec::is_empty(&missing(held)) => return Ok(Vec::new()),
            _ => {}
        }
        let held = held(&processes(inside)?).map_err(|why| why.to_string())?;
        Ok(missing(self.0.insert(held)))
    }
}

fn processes(inside: Option<&[Pid]>) -> Result<Vec<Pid>, String> {
    match inside {
        Some(inside) => Ok(inside.to_vec()),
        None => proc::everyone().map_err(|why| why.to_string()),
    }
}

/// Refuses those of some open files that no process of the tree holds and that cannot be reached.
///
/// # Errors
/// Why one of them cannot.
pub(super) fn check(files: &[u64], held: &mut Held, inside: Option<&[Pid]>) -> Result<(), String> {
    let missing = held.missing(files, inside)?;
    if missing.is_empty() {
        return Ok(());
    }
    let inside = processes(inside)?;
    missing
        .into_iter()
        .try_for_each(|file| reach(file, &inside).map(drop))
}

/// Refuses those of some open files that no process of the tree holds, and that are not carried whoever has copies.
///
/// # Errors
/// Why one of them is not.
pub(super) fn check_kinds(
    files: &[u64],
    held: &mut Held,
    inside: Option<&[Pid]>,
) -> Result<(), String> {
    for file in held.missing(files, inside)? {
        // It may have been received meanwhile, and closed.
        let nature = kernel::look(|kernel| kernel.nature(file));
        if let Some(why) = nature.ok().as_ref().and_then(class::obstacle) {
            return Err(why);
        }
    }
    Ok(())
}

/// The open files that processes and their threads hold.
fn held(inside: &[Pid]) -> Result<HashSet<u64>, Unreadable> {
    let mut found = HashSet::new();
    let tables = inside.iter().flat_map(|pid| apart::tables_of(*pid));
    for table in tables {
        // It may have ended, or change just now.
        let all = kernel::look(|kernel| {
            let task = task(kernel, table)?;
            task.map_or_else(|| Ok(Vec::new()), |task| kernel.files(task))
        });
        match all {
            Err(Unreadable::Inconsistent(_)) => {}
            all => found.extend(all?.into_iter().map(|(_, file)| file)),
        }
    }
    Ok(found)
}

fn task(kernel: &mut Kernel, pid: Pid) -> Result<Option<u64>, Unreadable> {
    let thread: Vec<Tid> = proc::representative(pid).into_iter().collect();
    Ok(kernel.tasks(&thread)?.into_iter().flatten().next())
}

/// Reaches an open file that no process of a tree holds.
///
/// # Errors
/// Why it cannot be reached.
pub(super) fn reach(address: u64, inside: &[Pid]) -> Result<Reached, String> {
    let found = kernel::look(|kernel| {
        let file = kernel.describe(&[address])?.first().copied();
        let file = file.ok_or(Unreadable::Inconsistent("an open file"))?;
        Ok((file, kernel.mode(address)?))
    });
    let (file, mode) = found.map_err(|why| why.to_string())?;
    if !file.ownerless {
        return Err("a file that somebody gets signals about (F_SETOWN)".into());
    }
    if file.flags & O_PATH != 0 {
        return Err("a reference to a file (O_PATH)".into());
    }
    let nature = kernel::look(|kernel| kernel.nature(address));
    if nature == Ok(Nature::Anonymous(b"[eventfd]".to_vec())) {
        return alike(address, file);
    }
    match mode & S_IFMT {
        S_IFREG if !file.plain => Err("a file with locks".into()),
        S_IFREG | S_IFDIR => by_path(file),
        S_IFIFO => by_other_end(file, inside),
        // Sockets, and what has no type.
        _ => Err("it is no file with a path, and no pipe whose other end is held".into()),
    }
}

/// A reference to a regular file or directory: to open it would be seen by those who watch it (inotify(7)).
fn by_path(file: OpenFile) -> Result<Reached, String> {
    let below = kernel::look(|kernel| kernel.below(file.path)).map_err(|why| why.to_string())?;
    let mount = place::of_mount(below.mount).ok_or("a file of a mount that is out of sight")?;
    let top = mount.as_os_str().as_bytes();
    let top = top.strip_suffix(b"/").unwrap_or(top);
    let mut link = [top, &below.path].concat();
    if link.is_empty() {
        link.push(b'/');
    }
    let path = OsStr::from_bytes(&link);
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let copy = open(path, flags, Mode::empty());
    let copy = copy.map_err(|errno| format!("{}: {errno}", path.display()))?;
    let same = kernel::look(|kernel| {
        let own = kernel.own_file(copy.as_fd())?;
        Ok(kernel.describe(&[own])?.first().map(|own| own.path) == Some(file.path))
    });
    match same {
        Ok(true) => Ok(Reached { copy, link, file }),
        Ok(false) => Err(format!("{} leads to another file by now", path.display())),
        Err(why) => Err(why.to_string()),
    }
}

/// An eventfd is nothing but its counter: another one with the same stands for it.
fn alike(address: u64, file: OpenFile) -> Result<Reached, String> {
    let everyone = held(&processes(None)?).map_err(|why| why.to_string())?;
    if everyone.contains(&address) {
        return Err("an eventfd that a process holds which is not saved".into());
    }
    let found = kernel::look(|kernel| {
        let count = kernel.event_count(address)?;
        Ok((count, kernel.is_semaphore(address)?))
    });
    let (count, semaphore) = found.map_err(|why| format!("an eventfd: {why}"))?;
    let mut flags = EfdFlags::EFD_CLOEXEC;
    flags.set(EfdFlags::EFD_SEMAPHORE, semaphore);
    flags.set(
        EfdFlags::EFD_NONBLOCK,
        file.flags & OFlag::O_NONBLOCK.bits().cast_unsigned() != 0,
    );
    let made = || {
        let made = EventFd::from_value_and_flags(0, flags)?;
        // Nothing may be added where there is no room.
        if count > 0 {
            nix::unistd::write(&made, &count.to_ne_bytes())?;
        }
        Ok::<_, sys::Errno>(made)
    };
    let made = made().map_err(|errno| format!("an eventfd: {errno}"))?;
    Ok(Reached {
        copy: made.into(),
        link: EVENTFD.to_vec(),
        file,
    })
}

/// A pipe that is reached through another open file of it that somebody holds.
fn by_other_end(file: OpenFile, inside: &[Pid]) -> Result<Reached, String> {
    for table in inside.iter().flat_map(|pid| apart::tables_of(*pid)) {
        let files = super::known::open_files(table);
        let Some((fd, _)) = files.iter().find(|(_, other)| other.path == file.path) else {
            continue;
        };
        let link = proc::link(table, &format!("fd/{fd}")).unwrap_or_default();
        let copy = proc::pidfd(table).and_then(|pidfd| process::pidfd_getfd(pidfd.as_fd(), *fd));
        if let (true, Ok(copy)) = (link.starts_with(b"pipe:["), copy) {
            return Ok(Reached { copy, link, file });
        }
    }
    Err("a pipe whose other end nobody holds".into())
}
