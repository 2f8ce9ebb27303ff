//! What stands in for a file that this kernel has not: one of a control group that has been removed. Who reads or
//! writes it is told `ENODEV`, as of a device that was unplugged, poll(2) tells of an error, and it can be registered,
//! locked and owned like any other (fs/kernfs/file.c).

use super::Opening;
use crate::ResurrectError;
use crate::restore::Restore;
use nix::dir::Dir;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use persist_mem::manifest::DescriptionKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use sys::Errno;

/// What a file of a control group can be opened with.
const TAKEN: OFlag = OFlag::O_ACCMODE
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_APPEND)
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_PATH)
    .union(OFlag::O_CLOEXEC);

/// A file or, with `O_DIRECTORY`, a directory.
pub(super) fn open(restore: &Restore<'_>, flags: OFlag) -> sys::Result<OwnedFd> {
    removed_group(flags & TAKEN).or_else(|errno| {
        log::debug!("no control group for what is gone: {errno}");
        of_an_ended_process(restore, flags & TAKEN)
    })
}

/// Names of groups that are made only to be removed, with a PID behind.
const GONE: &str = ".kupgrade-gone-";

fn removed_group(flags: OFlag) -> sys::Result<OwnedFd> {
    let root = sys::mountapi::detached(c"cgroup2")?;
    if let Err(errno) = remove_left(&root) {
        log::debug!("removing control groups that were left: {errno}");
    }
    let name = format!("{GONE}{}", std::process::id());
    mkdirat(&root, name.as_str(), Mode::S_IRWXU)?;
    let opened = if flags.contains(OFlag::O_DIRECTORY) {
        openat(&root, name.as_str(), flags, Mode::empty())
    } else {
        let file = format!("{name}/cgroup.procs");
        openat(&root, file.as_str(), flags, Mode::empty())
    };
    unlinkat(&root, name.as_str(), UnlinkatFlags::RemoveDir)?;
    opened
}

/// Removes groups that one who was killed while it made such a stand-in has left behind. Not every restore looks: where
/// the hierarchy is mounted nowhere, to mount it takes longer than most restores.
fn remove_left(root: &OwnedFd) -> sys::Result<()> {
    let mut dir = Dir::openat(root, ".", OFlag::O_DIRECTORY, Mode::empty())?;
    for entry in dir.iter().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().ok().and_then(|name| name.strip_prefix(GONE));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            unlinkat(root, name, UnlinkatFlags::RemoveDir)?;
        }
    }
    Ok(())
}

/// Where there are no control groups: who reads it is told `ESRCH`.
fn of_an_ended_process(restore: &Restore<'_>, flags: OFlag) -> sys::Result<OwnedFd> {
    let child = restore.spawn_among(None, || 0)?;
    let what = match flags.contains(OFlag::O_DIRECTORY) {
        true => "task",
        false => "cmdline",
    };
    let opened = sys::procdir::open(child, what, flags);
    sys::wait::wait_for(child.leader())?;
    opened.map(OwnedFd::from)
}

/// After the jump: for what kernels and their drivers make. Who has a file on a disk that cannot be opened is lost
/// ([`crate::lost`]), which is worse for it and never wrong.
pub(super) fn instead(
    opening: &Opening<'_, '_>,
    why: ResurrectError,
) -> Result<OwnedFd, ResurrectError> {
    let by_kernel = matches!(
        opening.description.kind,
        DescriptionKind::Device { .. }
            | DescriptionKind::Pseudo { .. }
            | DescriptionKind::Kmsg { .. }
    );
    if !by_kernel || !opening.restore.is_upgrade() {
        return Err(why);
    }
    log::error!("{why}: who has it open is told that there is no such device");
    open(opening.restore, opening.flags()).map_err(opening.failed("standing in for it"))
}

/// This process's descriptor of a directory for those whose own this kernel has not.
pub(crate) fn directory(restore: &mut Restore<'_>) -> Result<i32, ResurrectError> {
    if restore.files.vanished.is_none() {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let made = open(restore, flags);
        let failed = ResurrectError::own("standing in for a directory");
        restore.files.vanished = Some(made.map_err(failed)?);
    }
    let made = restore.files.vanished.as_ref().map(AsRawFd::as_raw_fd);
    made.ok_or_else(|| ResurrectError::own("standing in for a directory")(Errno::EBADF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_killed_have_left_is_removed() {
        let Ok(root) = sys::mountapi::detached(c"cgroup2") else {
            return;
        };
        let there = |name: &str| openat(&root, name, OFlag::O_PATH, Mode::empty()).is_ok();
        // No process has this number (PID_MAX_LIMIT, include/linux/threads.h).
        let left = format!("{GONE}{}", (1 << 22) + 1);
        let in_use = format!("{GONE}{}", std::process::id());
        for name in [&left, &in_use] {
            mkdirat(&root, name.as_str(), Mode::S_IRWXU).unwrap();
        }
        remove_left(&root).unwrap();
        let found = (there(&left), there(&in_use));
        unlinkat(&root, in_use.as_str(), UnlinkatFlags::RemoveDir).unwrap();
        assert_eq!(found, (false, true));
    }
}
