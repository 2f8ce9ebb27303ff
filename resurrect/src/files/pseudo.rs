//! Files that the kernel makes up. Those about processes are there, for all processes are.

use super::{Opening, path};
use crate::ResurrectError;
use nix::sys::stat::Mode;
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
    path::seek(opening, &fd)?;
    Ok(fd)
}
