//! Which mounts can be made again.

use persist_mem::mounts::{Mount, MountTable};
use std::fmt;

/// A mount that cannot be made again, or not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is mounted.
    pub point: String,
    /// File system type.
    pub kind: String,
    /// Why, and what to do.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the {} mount on {} cannot be carried: {}",
            self.kind, self.point, self.reason
        )
    }
}

impl std::error::Error for Problem {}

/// How a file system is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// By its type alone: the kernel's own views of itself.
    Kernel,
    /// As an empty one with its contents put back.
    Memory,
    /// From the disk with the same UUID.
    Disk,
}

/// File systems that show something of the kernel and hold nothing of their own that a
/// processes' resources do not carry.
const KERNEL: [&str; 19] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "cgroup2",
    "securityfs",
    "debugfs",
    "tracefs",
    "configfs",
    "bpf",
    "pstore",
    "mqueue",
    "hugetlbfs",
    "fusectl",
    "efivarfs",
    "binfmt_misc",
    "selinuxfs",
    "rpc_pipefs",
    "nfsd",
];
const MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
const DISK: [&str; 6] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "vfat"];

/// How `mount` is made again.
///
/// # Errors
/// Why it cannot be.
pub fn means(table: &MountTable, mount: &Mount) -> Result<Means, Problem> {
    let kind = mount.kind.as_str();
    if KERNEL.contains(&kind) {
        return Ok(Means::Kernel);
    }
    if MEMORY.contains(&kind) {
        return Ok(Means::Memory);
    }
    let problem = |reason: String| Problem {
        point: show(&mount.point),
        kind: mount.kind.clone(),
        reason,
    };
    if DISK.contains(&kind) {
        let Some(disk) = table.disks.iter().find(|d| d.device == mount.device) else {
            let source = show(&mount.source);
            return Err(problem(format!("no UUID is found on its device {source}")));
        };
        return match stacked(&disk.name) {
            None => Ok(Means::Disk),
            Some(what) => Err(problem(format!(
                "it lies on {what} ({}), which is not set up again yet; unmount it first",
                disk.name
            ))),
        };
    }
    let reason = match kind.split('.').next().unwrap_or(kind) {
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "ceph" | "virtiofs" => {
            "network and host file systems are not mounted again yet; unmount it first"
        }
        "fuse" | "fuseblk" => "its server's connection to the kernel cannot be carried; unmount it",
        "autofs" => "its automounter's pipe is not carried yet; stop the automounter",
        "overlay" => "overlays are not mounted again yet; stop what uses it (a container?)",
        "nsfs" => "it keeps a namespace, which is not carried yet",
        "cgroup" => "cgroup v1 hierarchies are not carried",
        _ => "this type of file system is not known to kupgrade",
    };
    Err(problem(reason.to_owned()))
}

/// What a block device is made of, when it is not a plain disk.
pub(crate) fn stacked(name: &str) -> Option<&'static str> {
    [
        ("dm-", "a device-mapper device"),
        ("md", "a RAID"),
        ("loop", "a loop device"),
        ("zram", "compressed RAM"),
        ("nbd", "a network disk"),
        ("drbd", "a replicated disk"),
    ]
    .into_iter()
    .find_map(|(prefix, what)| name.starts_with(prefix).then_some(what))
}

/// Everything in the table that stands in the way.
#[must_use]
pub fn check(table: &MountTable) -> Vec<Problem> {
    let problem = |mount: &Mount| match means(table, mount) {
        Err(problem) => Some(problem),
        Ok(Means::Memory) if hidden(table, mount) => Some(Problem {
            point: show(&mount.point),
            kind: mount.kind.clone(),
            reason: "its contents are hidden by what is mounted over it; unmount one of them"
                .to_owned(),
        }),
        Ok(_) => None,
    };
    table.mounts.iter().filter_map(problem).collect()
}

/// Whether another mount lies on top of this one, so that its path leads elsewhere.
#[must_use]
pub fn hidden(table: &MountTable, mount: &Mount) -> bool {
    table
        .mounts
        .iter()
        .any(|other| other.parent == mount.id && other.point == mount.point)
}

/// A path for messages.
#[must_use]
pub fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::info::parse;
    use persist_mem::mounts::{DeviceNumber, Disk};

    #[test]
    fn each_refusal_has_its_reason() {
        let mounts = parse(
            b"1 0 254:1 / / rw - ext4 /dev/vda1 rw\n2 1 0:5 / /proc rw - proc proc rw\n\
              3 1 0:6 / /run rw - tmpfs tmpfs rw\n4 1 0:7 / /n rw - nfs4 h:/x rw\n\
              5 1 253:0 / /l rw - xfs /dev/mapper/a rw\n6 1 254:9 / /u rw - ext4 /dev/vdb rw\n\
              7 1 0:8 / /o rw - overlay overlay rw\n8 1 0:9 / /s rw - fuse.sshfs x rw\n\
              9 1 0:10 / /w rw - weirdfs x rw\n",
        )
        .unwrap();
        let disk = |major, minor, name: &str| Disk {
            device: DeviceNumber { major, minor },
            name: name.into(),
            kind: "ext4".into(),
            uuid: "1".into(),
        };
        let table = MountTable {
            mounts,
            disks: vec![disk(254, 1, "vda1"), disk(253, 0, "dm-0")],
            trees: Vec::new(),
        };
        let problems: Vec<String> = check(&table).iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 6, "{problems:#?}");
        for (problem, word) in problems.iter().zip([
            "network",
            "device-mapper",
            "no UUID",
            "overlays",
            "server",
            "not known",
        ]) {
            assert!(problem.contains(word), "{problem}: {word}");
        }
    }
}
