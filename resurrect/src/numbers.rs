//! A number for a descriptor that no process of a manifest uses.

use crate::ResurrectError;
use crate::files::epoll;
use nix::sys::resource::{Resource, getrlimit};
use persist_mem::manifest::Manifest;
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use sys::Errno;

/// Most numbers behind all others that something takes for a while.
const BESIDE: i32 = 4;
/// Numbers below it are those of this process itself.
const LEAST: i32 = 64;

/// Whether this process's limit of open files leaves a number for [`crate::restore`] where processes use these: a tree
/// that uses all of them cannot be rebuilt by who may not raise it.
#[must_use]
pub fn is_one_left(used: &BTreeSet<i32>) -> bool {
    spare(used, limit()).is_some()
}

/// As [`is_one_left`], for all that a manifest takes.
#[must_use]
pub fn suffice(manifest: &Manifest) -> bool {
    let (used, limit) = (used(manifest), limit());
    let some_behind = behind(&used) + BESIDE < limit;
    is_one_left(&used) && (some_behind || !epoll::needs_numbers(manifest))
}

/// Whether this process's limit of open files is high enough to rebuild all of a manifest and so many memory objects at
/// once: who may not raise it (`CAP_SYS_RESOURCE`) would fail in the middle.
#[must_use]
pub fn are_enough(manifest: &Manifest, objects: usize) -> bool {
    let others = manifest.descriptions.len() + manifest.processes.len();
    // Objects are open for writing as well while they are filled, which is before everything else.
    let most = (2 * objects).max(objects + others);
    i32::try_from(most).is_ok_and(|most| most.saturating_add(LEAST) < limit())
}

fn used(manifest: &Manifest) -> BTreeSet<i32> {
    let files = manifest.tables().flat_map(|table| table.files);
    files.map(|file| file.fd).collect()
}

/// A copy of a descriptor under a number that no process of the manifest uses.
pub(crate) fn copy(manifest: &Manifest, fd: &OwnedFd) -> Result<OwnedFd, ResurrectError> {
    let limit = limit();
    let failed = || {
        ResurrectError::own(format!(
            "duplicating a descriptor to a number below {limit}, the limit of open files, that no process uses"
        ))
    };
    let used = used(manifest);
    let number = spare(&used, limit).ok_or_else(|| failed()(Errno::EMFILE))?;
    let copy = sys::fds::duplicate(fd, number).map_err(failed())?;
    // Where this process has that number itself it is the next one.
    if copy.as_raw_fd() != number && used.contains(&copy.as_raw_fd()) {
        return Err(failed()(Errno::EMFILE));
    }
    Ok(copy)
}

/// Descriptors have numbers below it.
fn limit() -> i32 {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    i32::try_from(soft).unwrap_or(i32::MAX)
}

/// The number behind all of them.
fn behind(used: &BTreeSet<i32>) -> i32 {
    used.last().map_or(0, |highest| highest + 1).max(LEAST)
}

/// The number behind all of them, or else the last one that nobody uses.
fn spare(used: &BTreeSet<i32>, limit: i32) -> Option<i32> {
    let behind = behind(used);
    if behind < limit {
        return Some(behind);
    }
    (LEAST..limit).rev().find(|number| !used.contains(number))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_number_that_nobody_uses() {
        let spare = |used: &[i32], limit| super::spare(&used.iter().copied().collect(), limit);
        assert_eq!(spare(&[], 1024), Some(64));
        assert_eq!(spare(&[0, 1, 500], 1024), Some(501));
        assert_eq!(spare(&[0, 1, 99], 100), Some(98));
        let all: Vec<i32> = (0..100).filter(|number| *number != 70).collect();
        assert_eq!(spare(&all, 100), Some(70));
        let all: Vec<i32> = (0..100).filter(|number| *number != 7).collect();
        assert_eq!(spare(&all, 100), None);
    }

    #[test]
    fn objects_behind_the_limit_are_too_many() {
        let most = usize::try_from(super::limit()).unwrap();
        let manifest = persist_mem::manifest::Manifest::default();
        assert!(super::are_enough(&manifest, 0));
        assert!(!super::are_enough(&manifest, most / 2));
    }
}
