//! Named pipes.

use super::path::{DELETED, file};
use super::pipe::Pipes;
use super::{Open, place};
use crate::FreezerError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use persist_mem::manifest::DescriptionKind;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Whether it can be carried: its node must still be there, or have another name, or none at all.
pub(super) fn check(open: &Open<'_>) -> Result<(), FreezerError> {
    other_name(open).map(drop)
}

/// Another name of a node whose path has been removed; None when it is there, or has no name at all.
fn other_name(open: &Open<'_>) -> Result<Option<Vec<u8>>, FreezerError> {
    let node = place::Identity {
        dev: open.stat.st_dev,
        inode: open.stat.st_ino,
    };
    let there = place::leads_to(Path::new(OsStr::from_bytes(open.link)), node);
    if there || open.stat.st_nlink == 0 {
        return Ok(None);
    }
    let old = open.link.strip_suffix(DELETED).unwrap_or(open.link);
    let found = place::other_name(node, old).ok_or_else(|| {
        open.refuse("the named pipe (FIFO) has another name by now, which is not found")
    })?;
    Ok(Some(found.into_os_string().into_vec()))
}

pub(super) fn capture(open: &Open<'_>, pipes: &mut Pipes) -> Result<DescriptionKind, FreezerError> {
    let mut polled = [PollFd::new(open.copy.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).map_err(open.call("poll"))?;
    let hung_up = polled[0]
        .revents()
        .is_some_and(|found| found.contains(PollFlags::POLLHUP));
    let removed = (open.stat.st_nlink == 0).then_some(open.stat.st_mode & 0o7777);
    let other = other_name(open)?;
    let mut file = file(open);
    if removed.is_some() || other.is_some() {
        let path = file.path.strip_suffix(DELETED).unwrap_or(&file.path);
        file.path = path.to_vec();
    }
    Ok(DescriptionKind::Fifo {
        pipe: pipes.capture(open)?,
        file,
        removed,
        other,
        hung_up,
    })
}
