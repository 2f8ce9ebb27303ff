//! Directories that processes are told of by signals (fcntl(2), `F_NOTIFY`).

use super::Open;
use crate::{FreezerError, kernel, proc};
use nix::sys::stat::SFlag;
use persist_mem::manifest::Notice;
use std::os::fd::AsFd;

/// What the holder of a descriptor has asked by this number of it. Others have asked by theirs: to close one gives
/// that up.
///
/// # Errors
/// A refusal where the kernel's memory does not tell.
pub(super) fn capture(open: &Open<'_>) -> Result<Option<Notice>, FreezerError> {
    // Only this makes somebody the owner of a directory.
    if open.file_type() != SFlag::S_IFDIR
        || super::owner::capture(open)?.is_none_or(|owner| owner.id == 0)
    {
        return Ok(None);
    }
    let found = kernel::look(|kernel| match proc::representative(open.pid) {
        Some(holder) => kernel.notices(open.copy.as_fd(), holder),
        None => Ok(Vec::new()),
    });
    let found = found.map_err(|why| {
        open.refuse(format!(
            "a directory that is watched by F_NOTIFY is not carried: {why}"
        ))
    })?;
    let Some(notice) = found.into_iter().find(|notice| notice.fd == open.fd) else {
        return Ok(None);
    };
    let events = sys::files::notify_bits(notice.mask).ok_or_else(|| {
        let why = format!("what F_NOTIFY was asked ({:#x}) is not known", notice.mask);
        open.refuse(why)
    })?;
    Ok(Some(Notice {
        pid: open.pid,
        fd: open.fd,
        events,
    }))
}
