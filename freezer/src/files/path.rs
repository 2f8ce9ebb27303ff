//! Regular files and directories that have a path.

use super::Open;
use crate::{FreezerError, proc};
use nix::sys::stat::{SFlag, fstat};
use persist_mem::manifest::{DescriptionKind, FileRef};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use sys::Pid;

const DELETED: &[u8] = b" (deleted)";

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let found = fstat(open.copy).map_err(open.call("fstat"))?;
    let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFIFO {
        return Err(open.refuse("named pipes (FIFOs) are not carried yet"));
    }
    if kind != SFlag::S_IFREG && kind != SFlag::S_IFDIR {
        return Err(open.refuse("this kind of file is not carried"));
    }
    if found.st_nlink == 0 || open.link.ends_with(DELETED) {
        return Err(open.refuse("the file has been removed or replaced on disk"));
    }
    if open.info.value("lock").is_some() {
        return Err(open.refuse("file locks are not carried yet"));
    }
    let now = std::fs::metadata(OsStr::from_bytes(open.link))
        .map_err(|e| open.refuse(format!("the path does not lead to the file any more: {e}")))?;
    if (now.ino(), now.dev()) != (found.st_ino, found.st_dev) {
        return Err(open.refuse("another file has taken its place on disk"));
    }
    let size = found.st_size.cast_unsigned();
    Ok(DescriptionKind::Path(FileRef {
        path: open.link.to_vec(),
        inode: found.st_ino,
        size,
    }))
}

/// The file that a link of `/proc/PID` such as `cwd` or `exe` leads to.
///
/// # Errors
/// A refusal when it has been removed or replaced.
pub fn reference(pid: Pid, link: &str) -> Result<FileRef, FreezerError> {
    let path = proc::link(pid, link)?;
    let cause = |cause| FreezerError::Proc {
        pid,
        what: link.into(),
        cause,
    };
    // Through the link: the file itself, wherever its path leads now.
    let held = std::fs::metadata(format!("/proc/{pid}/{link}")).map_err(cause)?;
    let now = std::fs::metadata(OsStr::from_bytes(&path));
    if !now.is_ok_and(|now| (now.ino(), now.dev()) == (held.ino(), held.dev())) {
        let text = String::from_utf8_lossy(&path).into_owned();
        let why = format!("{text} has been removed or replaced, or lies outside of our root");
        return Err(FreezerError::refuse(pid, link, why));
    }
    Ok(FileRef {
        path,
        inode: held.ino(),
        size: held.size(),
    })
}
