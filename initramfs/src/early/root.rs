//! The root disk, found by identity.

use super::{EarlyError, Result};
use crate::superblock::{Identity, identify};
use nix::mount::{MsFlags, mount};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Names a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSpec {
    /// By the UUID in its superblock.
    Uuid(String),
    /// By its label.
    Label(String),
    /// By the partition's UUID, as far as the kernel tells it (uevent `PARTUUID`, from 6.16).
    PartUuid(String),
    /// By the device's name, `/dev/vda1`.
    Device(PathBuf),
}

impl RootSpec {
    /// Reads the value of `root=`.
    ///
    /// # Errors
    /// [`EarlyError::BadRootSpec`].
    pub fn parse(text: &str) -> Result<RootSpec> {
        match text.split_once('=') {
            Some(("UUID", id)) => Ok(RootSpec::Uuid(id.to_owned())),
            Some(("LABEL", id)) => Ok(RootSpec::Label(id.to_owned())),
            Some(("PARTUUID", id)) => Ok(RootSpec::PartUuid(id.to_owned())),
            None if text.starts_with("/dev/") => Ok(RootSpec::Device(text.into())),
            _ => Err(EarlyError::BadRootSpec(text.to_owned())),
        }
    }

    fn is(&self, device: &Path, identity: Option<&Identity>, uevent: &str) -> bool {
        match self {
            RootSpec::Uuid(id) => identity.is_some_and(|i| i.uuid.eq_ignore_ascii_case(id)),
            RootSpec::Label(id) => identity.is_some_and(|i| i.label.as_ref() == Some(id)),
            RootSpec::PartUuid(id) => uevent.lines().any(|l| {
                l.strip_prefix("PARTUUID=")
                    .is_some_and(|u| u.eq_ignore_ascii_case(id))
            }),
            RootSpec::Device(path) => path == device,
        }
    }
}

impl fmt::Display for RootSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RootSpec::Uuid(id) => write!(f, "UUID={id}"),
            RootSpec::Label(id) => write!(f, "LABEL={id}"),
            RootSpec::PartUuid(id) => write!(f, "PARTUUID={id}"),
            RootSpec::Device(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A block device with what lies on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its node, `/dev/vda1`.
    pub device: PathBuf,
    /// What lies on it, when known.
    pub identity: Option<Identity>,
}

/// Block devices that hold something, from `SYS/class/block`.
fn devices(sys: &Path, dev: &Path) -> Vec<(Found, String)> {
    let Ok(entries) = std::fs::read_dir(sys.join("class/block")) else {
        return Vec::new();
    };
    let mut out = Vec::new();
    for entry in entries.flatten() {
        let read =
            |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("size").trim().parse::<u64>().unwrap_or(0) == 0 {
            continue;
        }
        let name = entry.file_name().to_string_lossy().replace('!', "/");
        let device = dev.join(name);
        let identity = identify(&device).ok().flatten();
        out.push((Found { device, identity }, read("uevent")));
    }
    out.sort_by(|a, b| a.0.device.cmp(&b.0.device));
    out
}

/// Waits until the file system named by `spec` is there, looking every 5 ms at most.
///
/// # Errors
/// [`EarlyError::NoRoot`] after `bound`, naming what there is.
pub fn wait_for(spec: &RootSpec, bound: Duration) -> Result<Found> {
    wait_in(spec, bound, Path::new("/sys"), Path::new("/dev"))
}

fn wait_in(spec: &RootSpec, bound: Duration, sys: &Path, dev: &Path) -> Result<Found> {
    let start = Instant::now();
    loop {
        let all = devices(sys, dev);
        for (found, uevent) in &all {
            if spec.is(&found.device, found.identity.as_ref(), uevent) {
                log::info!(
                    "{spec} is {} after {:?}",
                    found.device.display(),
                    start.elapsed()
                );
                return Ok(found.clone());
            }
        }
        if start.elapsed() >= bound {
            return Err(EarlyError::NoRoot {
                spec: spec.to_string(),
                waited: bound,
                seen: describe(&all),
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn describe(all: &[(Found, String)]) -> String {
    if all.is_empty() {
        return "none (is the disk's driver among the overlay's modules?)".to_owned();
    }
    let one = |found: &Found| match &found.identity {
        Some(i) => format!("{} ({} UUID={})", found.device.display(), i.kind, i.uuid),
        None => found.device.display().to_string(),
    };
    all.iter()
        .map(|(found, _)| one(found))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Mounts a found root read-write at `point` (made if needed).
///
/// # Errors
/// [`EarlyError::Mount`], naming each type that was tried when the superblock told none.
pub fn mount_root(found: &Found, point: &Path, options: &str) -> Result<()> {
    std::fs::create_dir_all(point).map_err(|source| EarlyError::File {
        path: point.to_owned(),
        source,
    })?;
    let kinds: Vec<&str> = match &found.identity {
        Some(identity) => vec![identity.kind],
        None => vec!["ext4", "xfs", "btrfs"],
    };
    let mut last = sys::Errno::EINVAL;
    for kind in &kinds {
        let data = (!options.is_empty()).then_some(options);
        match mount(
            Some(&found.device),
            point,
            Some(*kind),
            MsFlags::empty(),
            data,
        ) {
            Ok(()) => return Ok(()),
            Err(errno) => last = errno,
        }
    }
    Err(EarlyError::Mount {
        what: format!("{} ({})", found.device.display(), kinds.join(", ")),
        point: point.to_owned(),
        errno: last,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;

    #[test]
    fn specs_are_read_and_shown() {
        for text in ["UUID=ab-c", "LABEL=x", "PARTUUID=1-2", "/dev/vda1"] {
            assert_eq!(RootSpec::parse(text).unwrap().to_string(), text);
        }
        assert!(RootSpec::parse("/mnt/x").is_err());
        assert!(RootSpec::parse("ZFS=tank").is_err());
    }

    #[test]
    fn the_disk_is_found_by_its_superblock_not_by_name() {
        let tmp = TestDir::new("root");
        let mut disk = vec![0; 8192];
        disk[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        disk[1024 + 0x68] = 0xaa;
        tmp.write("dev/vdb", &disk);
        tmp.write("dev/vda", vec![0; 8192]);
        tmp.write("sys/class/block/vda/size", "16\n");
        tmp.write("sys/class/block/vdb/size", "16\n");
        tmp.write("sys/class/block/vdb/uevent", "DEVNAME=vdb\nPARTUUID=AB-1\n");
        tmp.write("sys/class/block/loop0/size", "0\n");
        let (sys, dev) = (tmp.path().join("sys"), tmp.path().join("dev"));
        let find = |spec: &str| {
            wait_in(
                &RootSpec::parse(spec).unwrap(),
                Duration::from_millis(10),
                &sys,
                &dev,
            )
        };
        let found = find("UUID=AA000000-0000-0000-0000-000000000000").unwrap();
        assert_eq!(found.device, dev.join("vdb"));
        assert_eq!(find("PARTUUID=ab-1").unwrap().device, dev.join("vdb"));
        let error = find("UUID=bb").unwrap_err().to_string();
        assert!(
            error.contains("UUID=bb") && error.contains("vdb (ext2 UUID=aa0"),
            "{error}"
        );
    }
}
