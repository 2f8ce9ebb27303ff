//! Files that the kernel makes up: the path is all there is.

use super::Open;
use crate::FreezerError;
use nix::sys::statfs::{
    CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, FsType, PROC_SUPER_MAGIC,
    SECURITYFS_MAGIC, SYSFS_MAGIC, TRACEFS_MAGIC, fstatfs,
};
use persist_mem::manifest::DescriptionKind;

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
    let system = fstatfs(open.copy).map_err(open.call("fstatfs"))?;
    if !MADE_UP.contains(&system.filesystem_type()) {
        return Ok(None);
    }
    if open.link.ends_with(super::path::DELETED) {
        return Err(open.refuse("what it told about is gone"));
    }
    if of_a_thread(open.link) {
        return Err(open.refuse("files about single threads are not carried"));
    }
    let path = open.link.to_vec();
    Ok(Some(DescriptionKind::Pseudo { path }))
}

/// `/proc/PID/task/TID/..` of another thread than the leading one, which is not there yet when files
/// are opened.
fn of_a_thread(path: &[u8]) -> bool {
    let mut parts = path.split(|b| *b == b'/').skip(1);
    let (Some(b"proc"), Some(pid), Some(b"task"), Some(tid)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    pid != tid
}

#[cfg(test)]
mod tests {
    #[test]
    fn threads() {
        assert!(super::of_a_thread(b"/proc/12/task/13/stat"));
        assert!(!super::of_a_thread(b"/proc/12/task/12/stat"));
        assert!(!super::of_a_thread(b"/proc/12/stat"));
    }
}
