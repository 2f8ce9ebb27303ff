//! Files that the kernel makes up: the path is all there is.

use super::{O_PATH, Open};
use crate::{FreezerError, kernel, proc};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::SFlag;
use nix::sys::statfs::{
    CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, FsType, PROC_SUPER_MAGIC,
    SECURITYFS_MAGIC, SYSFS_MAGIC, TRACEFS_MAGIC, fstatfs, statfs,
};
use persist_mem::manifest::{DescriptionKind, FileRef, PressureTrigger};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use sys::Pid;

const O_ACCMODE: u32 = 3;
const O_RDONLY: u32 = 0;

/// File systems whose inodes are made when they are looked at.
const MADE_UP: [FsType; 7] = [
    PROC_SUPER_MAGIC,
    SYSFS_MAGIC,
    CGROUP2_SUPER_MAGIC,
    CGROUP_SUPER_MAGIC,
    DEBUGFS_MAGIC,
    TRACEFS_MAGIC,
    SECURITYFS_MAGIC,
];

/// None when the file lies on an ordinary file system.
pub(super) fn capture(open: &Open<'_>) -> Result<Option<DescriptionKind>, FreezerError> {
    if !open.may_be_made_up() {
        return Ok(None);
    }
    let system = fstatfs(open.copy).map_err(open.call("fstatfs"))?;
    if !MADE_UP.contains(&system.filesystem_type()) {
        return Ok(None);
    }
    let link = match open.link.strip_suffix(super::path::DELETED) {
        Some(link) if of_a_thread(link) => {
            return Err(open.refuse("files about threads that have ended are not carried"));
        }
        // Of a process that has ended: another one that has ended will do.
        Some(link) if link.starts_with(b"/proc/") => link,
        Some(_) if kept_after_removal(system.filesystem_type()) => open.link,
        Some(_) => return Err(open.refuse("what it told about is gone")),
        None => open.link,
    };
    if of_a_descriptor(open.link) {
        return Err(open.refuse("files about single descriptors are not carried"));
    }
    let mut path = link.to_vec();
    if kept_after_removal(system.filesystem_type()) && is_removed(open, link) {
        path.extend_from_slice(super::path::DELETED);
    }
    let seen = system.filesystem_type() != PROC_SUPER_MAGIC && has_seen(open)?;
    Ok(Some(DescriptionKind::Pseudo {
        path,
        seen,
        trigger: trigger(open, system.filesystem_type())?,
    }))
}

/// What was written to a file of pressure.
fn trigger(open: &Open<'_>, system: FsType) -> Result<Option<PressureTrigger>, FreezerError> {
    const IRQ: [&[u8]; 2] = [b"/irq", b"/irq.pressure"];
    let of_group = system == CGROUP2_SUPER_MAGIC;
    let flags = open.flags()?;
    let of_pressure = match of_group {
        true => open.link.ends_with(b".pressure") && !open.link.ends_with(b"/cgroup.pressure"),
        false => open.link.starts_with(b"/proc/pressure/"),
    };
    if !of_pressure || flags & O_PATH != 0 || flags & O_ACCMODE == O_RDONLY {
        return Ok(None);
    }
    let found = kernel::look(|kernel| kernel.pressure_trigger(open.copy.as_fd(), of_group));
    let mut found = found.map_err(|why| {
        open.refuse(format!(
            "what it is to tell of pressure cannot be read: {why}"
        ))
    })?;
    if let Some(trigger) = &mut found {
        // There is nothing else of interrupts, and its number is another one.
        trigger.full |= IRQ.iter().any(|name| open.link.ends_with(name));
    }
    Ok(found)
}

/// Whether files of it that are gone still can be read, to be told so (`ENODEV`, fs/kernfs/file.c).
fn kept_after_removal(system: FsType) -> bool {
    [SYSFS_MAGIC, CGROUP2_SUPER_MAGIC, CGROUP_SUPER_MAGIC].contains(&system)
}

/// A directory of such a file system that is gone, by the path that the kernel shows.
pub(crate) fn removed_directory(pid: Pid, what: &str) -> Option<FileRef> {
    let path = proc::link(pid, what).ok()?;
    let system = statfs(proc::path(pid, what).as_str()).ok()?;
    let gone = path.ends_with(super::path::DELETED);
    (gone && kept_after_removal(system.filesystem_type())).then(|| FileRef {
        path,
        ..FileRef::default()
    })
}

/// Whether its path does not lead to it any more. The link does not tell of a file whose directory was removed.
fn is_removed(open: &Open<'_>, link: &[u8]) -> bool {
    let found = std::fs::symlink_metadata(OsStr::from_bytes(link));
    !link.ends_with(super::path::DELETED)
        && !found.is_ok_and(|found| found.ino() == open.stat.st_ino)
}

/// Files of sysfs and of control groups tell of a change until they are read again, and before they are read at
/// all (`kernfs_generic_poll`, fs/kernfs/file.c). Those of pressure have triggers in place of that.
fn has_seen(open: &Open<'_>) -> Result<bool, FreezerError> {
    let regular = open.file_type() == SFlag::S_IFREG && open.flags()? & O_PATH == 0;
    if !regular || open.link.ends_with(b"pressure") {
        return Ok(false);
    }
    let mut polled = [PollFd::new(open.copy.as_fd(), PollFlags::POLLPRI)];
    poll(&mut polled, PollTimeout::ZERO).map_err(open.call("poll"))?;
    Ok(polled[0].revents() == Some(PollFlags::empty()))
}

/// A namespace (`net:[4026531840]`): the path by which its holder is in it, None when the holder is in
/// another one.
pub(super) fn namespace(open: &Open<'_>) -> Option<DescriptionKind> {
    let kind = open.link.split(|b| *b == b':').next()?;
    let kind = std::str::from_utf8(kind).ok()?;
    let path = format!("/proc/{}/ns/{kind}", open.pid);
    let own = std::fs::read_link(&path).ok()?;
    let me = Pid(nix::unistd::getpid().as_raw());
    (own.as_os_str().as_encoded_bytes() == open.link && open.pid != me).then(|| {
        DescriptionKind::Pseudo {
            path: path.into_bytes(),
            seen: false,
            trigger: None,
        }
    })
}

/// `/proc/PID/task/TID/..` of another thread than the leading one, which no process can stand for.
fn of_a_thread(path: &[u8]) -> bool {
    let mut parts = path.split(|b| *b == b'/').skip(1);
    let (Some(b"proc"), Some(pid), Some(b"task"), Some(tid)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    pid != tid
}

/// `/proc/PID/fdinfo/N`, `/proc/PID/fd/N`, `/proc/PID/map_files/A-B`: what it is about is not there yet
/// when files are opened.
fn of_a_descriptor(path: &[u8]) -> bool {
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').skip(1).collect();
    let kinds: [&[u8]; 3] = [b"fdinfo", b"fd", b"map_files"];
    parts.first() == Some(&b"proc".as_slice())
        && parts.len() > 3
        && parts[parts.len() - 2..][..1]
            .iter()
            .any(|part| kinds.contains(part))
}

#[cfg(test)]
mod tests {
    #[test]
    fn threads() {
        assert!(super::of_a_thread(b"/proc/12/task/13/stat"));
        assert!(!super::of_a_thread(b"/proc/12/task/12/stat"));
        assert!(!super::of_a_thread(b"/proc/12/stat"));
    }

    #[test]
    fn descriptors() {
        assert!(super::of_a_descriptor(b"/proc/12/fdinfo/3"));
        assert!(super::of_a_descriptor(b"/proc/12/task/12/fd/3"));
        assert!(!super::of_a_descriptor(b"/proc/12/fdinfo"));
        assert!(!super::of_a_descriptor(b"/proc/12/stat"));
    }
}
