//! Recording mounts.

use super::support::{Means, hidden, means};
use super::{MountError, Result, info, nodes};
use crate::superblock::identify;
use crate::tree::archive;
use persist_mem::mounts::{Disk, MemoryTree, MountTable};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Records the mounts of this process's namespace, without contents: for checks.
///
/// # Errors
/// mountinfo cannot be read or understood.
pub fn survey() -> Result<MountTable> {
    survey_at(
        Path::new("/proc/self/mountinfo"),
        Path::new("/sys"),
        Path::new("/dev"),
    )
}

/// Records the mounts with the contents of file systems in memory, each at most `limit` bytes.
/// To be called while all processes are stopped.
///
/// # Errors
/// As [`survey`]; a memory file system is too large or cannot be read.
pub fn capture(limit: u64) -> Result<MountTable> {
    let mut table = survey()?;
    table.trees = trees(&table, limit)?;
    Ok(table)
}

fn survey_at(mountinfo: &Path, sys: &Path, dev: &Path) -> Result<MountTable> {
    let bytes = std::fs::read(mountinfo).map_err(|source| MountError::Unreadable {
        path: mountinfo.to_owned(),
        source,
    })?;
    let mounts = info::parse(&bytes)?;
    let mut disks = Vec::new();
    let mut seen = BTreeSet::new();
    for mount in &mounts {
        if !seen.insert(mount.device) {
            continue;
        }
        let name = if mount.device.major != 0 {
            nodes::names(sys, "block", mount.device).map(|name| name.to_string_lossy().into_owned())
        } else if mount.kind == "btrfs" {
            // btrfs shows a device number of its own; its source names one of its disks.
            name_of_node(&mount.source)
        } else {
            None
        };
        let Some(name) = name else { continue };
        if let Ok(Some(identity)) = identify(&dev.join(&name)) {
            disks.push(Disk {
                device: mount.device,
                name,
                kind: identity.kind.to_owned(),
                uuid: identity.uuid,
            });
        }
    }
    Ok(MountTable {
        mounts,
        disks,
        trees: Vec::new(),
    })
}

fn name_of_node(source: &[u8]) -> Option<String> {
    let path = std::fs::canonicalize(OsStr::from_bytes(source)).ok()?;
    Some(
        path.strip_prefix("/dev")
            .ok()?
            .to_string_lossy()
            .into_owned(),
    )
}

/// Contents of memory file systems, and what user space added to `/dev`. Each is read through a
/// mount that shows all of it.
fn trees(table: &MountTable, limit: u64) -> Result<Vec<MemoryTree>> {
    let mut trees: Vec<MemoryTree> = Vec::new();
    for mount in &table.mounts {
        let wanted = mount.kind == "devtmpfs" || means(table, mount) == Ok(Means::Memory);
        let whole = mount.root == b"/" && !hidden(table, mount);
        if !wanted || !whole || trees.iter().any(|t| t.device == mount.device) {
            continue;
        }
        let path = PathBuf::from(OsStr::from_bytes(&mount.point));
        let mut tree = archive(&path, limit)?;
        if mount.kind == "devtmpfs" {
            nodes::forget_kernels(&mut tree, Path::new("/sys"));
        }
        trees.push(MemoryTree {
            device: mount.device,
            tree,
        });
    }
    Ok(trees)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    #[test]
    fn disks_are_known_by_their_superblock() {
        let tmp = TestDir::new("capture");
        let mut disk = vec![0; 8192];
        disk[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        disk[1024 + 0x68] = 0xaa;
        tmp.write("dev/vda1", &disk);
        tmp.write("sys/dev/block/254:1/uevent", "MAJOR=254\nDEVNAME=vda1\n");
        tmp.write(
            "mountinfo",
            "1 0 254:1 / / rw - ext4 /dev/root rw\n2 1 254:1 /x /y rw - ext4 /dev/root rw\n3 1 254:2 / /z rw - ext4 /dev/vda2 rw\n",
        );
        let at = |p: &str| tmp.path().join(p);
        let table = survey_at(&at("mountinfo"), &at("sys"), &at("dev")).unwrap();
        assert_eq!(table.mounts.len(), 3);
        assert_eq!(table.disks.len(), 1);
        assert_eq!(table.disks[0].name, "vda1");
        assert!(table.disks[0].uuid.starts_with("aa000000-"));
    }

    #[test]
    fn this_hosts_mounts_are_understood() {
        let table = survey().unwrap();
        assert!(table.mounts.iter().any(|m| m.point == b"/"));
    }
}
