//! A number for a descriptor that no process of a manifest uses.

use crate::ResurrectError;
use nix::sys::resource::{Resource, getrlimit};
use persist_mem::manifest::Manifest;
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use sys::Errno;

/// Numbers below it are those of this process itself.
const LEAST: i32 = 64;

/// Highest descriptor of any process; 0 without one.
pub(crate) fn highest(manifest: &Manifest) -> i32 {
    let files = manifest.tables().flat_map(|table| table.files);
    files.map(|file| file.fd).max().unwrap_or(0)
}

/// Whether this process's limit of open files leaves a number for [`crate::restore`]: a tree that uses all of them
/// cannot be rebuilt by who may not raise it.
pub fn is_one_left(manifest: &Manifest) -> bool {
    spare(manifest, limit()).is_some()
}

/// A copy of a descriptor under a number that no process of the manifest uses.
pub(crate) fn copy(manifest: &Manifest, fd: &OwnedFd) -> Result<OwnedFd, ResurrectError> {
    let limit = limit();
    let failed = || {
        ResurrectError::own(format!(
            "duplicating a descriptor to a number below {limit}, the limit of open files, that no process uses"
        ))
    };
    let number = spare(manifest, limit).ok_or_else(|| failed()(Errno::EMFILE))?;
    let copy = sys::fds::duplicate(fd, number).map_err(failed())?;
    // Where this process has that number itself it is the next one.
    let used = manifest.tables().flat_map(|table| table.files);
    if copy.as_raw_fd() != number && used.into_iter().any(|file| file.fd == copy.as_raw_fd()) {
        return Err(failed()(Errno::EMFILE));
    }
    Ok(copy)
}

/// Descriptors have numbers below it.
fn limit() -> i32 {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    i32::try_from(soft).unwrap_or(i32::MAX)
}

/// The number behind all of them, or else the last one that nobody uses.
fn spare(manifest: &Manifest, limit: i32) -> Option<i32> {
    let behind = (highest(manifest) + 1).max(LEAST);
    if behind < limit {
        return Some(behind);
    }
    let files = manifest.tables().flat_map(|table| table.files);
    let used: BTreeSet<i32> = files.map(|file| file.fd).collect();
    (LEAST..limit).rev().find(|number| !used.contains(number))
}
