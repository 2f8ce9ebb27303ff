//! What the running host uses: loaded modules, devices with a driver, mounted file systems.

use super::tree::canonical;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A device some driver is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceUse {
    /// Its directory below `/sys/devices`.
    pub path: PathBuf,
    /// What the bus calls it (`pci:v00001AF4d...`).
    pub modalias: String,
    /// Name of its driver.
    pub driver: String,
    /// Module of the driver, as far as the running kernel tells it; newer ones name one for what
    /// is built in, too.
    pub module: Option<String>,
    /// Whether the root file system's disk hangs below it.
    pub carries_root: bool,
}

/// The running host as far as modules go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostUse {
    /// Loaded modules, first loaded first.
    pub loaded: Vec<String>,
    /// Devices in use.
    pub devices: Vec<DeviceUse>,
    /// Types of mounted file systems that need a block device.
    pub filesystems: BTreeSet<String>,
    /// Type of the root file system.
    pub root_type: Option<String>,
}

impl HostUse {
    /// Reads `proc` (`/proc`) and `sys` (`/sys`). What cannot be read counts as not there: the
    /// essential part is checked when the plan is made.
    #[must_use]
    pub fn scan(proc: &Path, sys: &Path) -> HostUse {
        let mut host = HostUse {
            loaded: loaded(proc),
            ..HostUse::default()
        };
        let mut root_device = None;
        let mounts = std::fs::read(proc.join("self/mountinfo")).unwrap_or_default();
        for line in String::from_utf8_lossy(&mounts).lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let Some(dash) = words.iter().position(|w| *w == "-") else {
                continue;
            };
            let (Some(device), Some(point), Some(fs)) =
                (words.get(2), words.get(4), words.get(dash + 1))
            else {
                continue;
            };
            if *point == "/" {
                host.root_type = Some((*fs).to_owned());
                root_device = Some((*device).to_owned());
            }
            if !device.starts_with("0:") || *fs == "btrfs" {
                host.filesystems.insert((*fs).to_owned());
            }
        }
        let mut below = Vec::new();
        if let Some(device) = root_device {
            holders(&sys.join("dev/block").join(device), &mut below, 0);
        }
        let devices =
            std::fs::canonicalize(sys.join("devices")).unwrap_or_else(|_| sys.join("devices"));
        walk(&devices, &below, &mut host.devices, 0);
        host.devices.sort_by(|a, b| a.path.cmp(&b.path));
        host
    }
}

/// /proc/modules lists the newest first.
fn loaded(proc: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(proc.join("modules")).unwrap_or_default();
    let mut names: Vec<String> = text
        .lines()
        .filter_map(|l| l.split(' ').next())
        .map(canonical)
        .collect();
    names.reverse();
    names
}

/// Directories of a block device and of those it is made of (device mapper, md).
fn holders(link: &Path, out: &mut Vec<PathBuf>, depth: u32) {
    let Ok(dir) = std::fs::canonicalize(link) else {
        return;
    };
    if depth > 8 || out.contains(&dir) {
        return;
    }
    if let Ok(slaves) = std::fs::read_dir(dir.join("slaves")) {
        for slave in slaves.flatten() {
            holders(&slave.path(), out, depth + 1);
        }
    }
    out.push(dir);
}

/// Last part of what a symbolic link names.
fn link_name(link: &Path) -> Option<String> {
    let target = std::fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// Finds bound devices with a modalias. sysfs nests a few dozen levels at most.
fn walk(dir: &Path, root: &[PathBuf], out: &mut Vec<DeviceUse>, depth: u32) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    if dir.join("driver").symlink_metadata().is_ok()
        && let Ok(text) = std::fs::read_to_string(dir.join("modalias"))
        && !text.trim().is_empty()
    {
        out.push(DeviceUse {
            path: dir.to_owned(),
            modalias: text.trim().to_owned(),
            driver: link_name(&dir.join("driver")).unwrap_or_default(),
            module: link_name(&dir.join("driver/module")),
            carries_root: root.iter().any(|r| r.starts_with(dir)),
        });
    }
    for entry in entries.flatten() {
        if depth < 40 && entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), root, out, depth + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn finds_loaded_modules_devices_and_the_root_chain() {
        let tmp = crate::testdir::TestDir::new("hostuse");
        let (proc, sys) = (tmp.path().join("proc"), tmp.path().join("sys"));
        tmp.write(
            "proc/modules",
            "ext4 1 1 - Live 0x0\nmbcache 1 1 ext4, Live 0x0\nvirtio-blk 1 1 - Live 0x0\n",
        );
        tmp.write(
            "proc/self/mountinfo",
            "1 0 254:1 / / rw - ext4 /dev/vda1 rw\n2 1 0:5 / /proc rw - proc proc rw\n3 1 254:9 / /data rw shared:1 - xfs /dev/b rw\n",
        );
        tmp.write("sys/devices/pci0/0000:04/modalias", "pci:v1\n");
        tmp.write("sys/devices/pci0/0000:04/virtio1/modalias", "virtio:d2\n");
        tmp.write(
            "sys/devices/pci0/0000:04/virtio1/block/vda/vda1/dev",
            "254:1\n",
        );
        tmp.write("sys/devices/pci0/0000:05/modalias", "pci:v2\n");
        tmp.write("sys/devices/pci0/0000:06/modalias", "pci:unbound\n");
        for device in ["0000:04", "0000:04/virtio1", "0000:05"] {
            symlink(
                "../drivers/x-y",
                sys.join("devices/pci0").join(device).join("driver"),
            )
            .unwrap();
        }
        std::fs::create_dir_all(sys.join("dev/block")).unwrap();
        symlink(
            "../../devices/pci0/0000:04/virtio1/block/vda/vda1",
            sys.join("dev/block/254:1"),
        )
        .unwrap();
        let host = HostUse::scan(&proc, &sys);
        assert_eq!(host.loaded, ["virtio_blk", "mbcache", "ext4"]);
        assert_eq!(host.root_type.as_deref(), Some("ext4"));
        let fs: Vec<&str> = host.filesystems.iter().map(String::as_str).collect();
        assert_eq!(fs, ["ext4", "xfs"]);
        assert_eq!(
            (host.devices[0].driver.as_str(), &host.devices[0].module),
            ("x-y", &None)
        );
        let found: Vec<(&str, bool)> = host
            .devices
            .iter()
            .map(|d| (d.modalias.as_str(), d.carries_root))
            .collect();
        assert_eq!(
            found,
            [("pci:v1", true), ("virtio:d2", true), ("pci:v2", false)]
        );
    }
}
