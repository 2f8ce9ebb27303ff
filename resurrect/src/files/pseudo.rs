//! Files that the kernel makes up. Those about processes are there, for all processes are.

use super::{Opening, path};
use crate::ResurrectError;
use crate::restore::Restore;
use nix::sys::stat::Mode;
use persist_mem::manifest::DescriptionKind;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(super) fn open(opening: &Opening<'_, '_>, at: &[u8]) -> Result<OwnedFd, ResurrectError> {
    let at = Path::new(OsStr::from_bytes(at));
    let fd = nix::fcntl::open(at, opening.flags(), Mode::empty()).map_err(|errno| {
        ResurrectError::Changed {
            path: at.display().to_string(),
            why: format!("opening it: {errno}"),
        }
    })?;
    Ok(fd)
}

/// Sets the offsets. The kernel writes the text up to there when it is asked to, so everything that it
/// tells of must be as it was.
pub(crate) fn seek(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for description in &restore.manifest.descriptions {
        let made_up = matches!(description.kind, DescriptionKind::Pseudo { .. });
        let fd = restore.files.opened.get(&description.id);
        if let Some(fd) = fd.filter(|_| made_up) {
            let opening = Opening {
                restore,
                description,
            };
            path::seek(&opening, fd)?;
        }
    }
    Ok(())
}
