//! Making the mounts again.
//!
//! Parents come before children. Of several mounts of one file system the first is made from its
//! disk, type or contents, the others are bind mounts of it. Every mount is remembered by an open
//! descriptor of its root, because paths lead to whatever is on top. Sharing is set last, so that
//! nothing propagates while mounts are made.

use super::devices::Devices;
use super::support::{Means, means, show};
use super::{MountError, Result};
use crate::early::root::{RootSpec, wait_for};
use crate::tree::{Existing, unpack};
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use persist_mem::mounts::{DeviceNumber, Mount, MountTable};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use sys::Errno;
use sys::mountapi::share_group;

/// How long a disk may take to appear.
const DISK_WAIT: Duration = Duration::from_secs(30);

/// Which mounts are made. Those of `proc` show the PID namespace of whoever mounts them, so they,
/// and what is mounted below them, must wait for a process inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// All but `proc` and what lies below.
    Outside,
    /// The rest; the others must exist already.
    Inside,
}

/// Makes the mounts of one phase below `target` (`/` once it is the root).
///
/// Mounts that fail are returned and the rest go on; mounts below a failed one are left out.
///
/// # Errors
/// The root file system itself cannot be mounted.
pub fn restore(table: &MountTable, target: &Path, phase: Phase) -> Result<Vec<MountError>> {
    let order = order(table);
    let late = late(table, &order);
    let now = |mount: &&Mount| late.contains(&mount.id) == (phase == Phase::Inside);
    let mut work = Work {
        table,
        target,
        placed: BTreeMap::new(),
        scratch: Vec::new(),
        devices: Devices::of(table.mounts.iter().filter(now)),
    };
    let mut failed = Vec::new();
    let mut lost: BTreeSet<u32> = BTreeSet::new();
    for at in &order {
        let mount = &table.mounts[*at];
        if lost.contains(&mount.parent) {
            lost.insert(mount.id);
            failed.push(step(
                mount,
                "what it is mounted on is missing",
                Errno::ENOENT,
            ));
            continue;
        }
        let is_late = late.contains(&mount.id);
        let done = match (phase, is_late) {
            (Phase::Outside, true) => continue,
            (Phase::Inside, false) => {
                work.find(mount);
                continue;
            }
            _ => work.make(mount),
        };
        if let Err(error) = done {
            if Some(at) == order.first() {
                return Err(error);
            }
            lost.insert(mount.id);
            failed.push(error);
        }
    }
    for at in &order {
        let mount = &table.mounts[*at];
        if now(&mount) {
            failed.extend(work.propagation(mount).err());
        }
    }
    work.clean();
    Ok(failed)
}

/// Takes mounts of one phase away again, those that were made; what stays is in the way of nobody.
pub fn take_away(table: &MountTable, target: &Path, phase: Phase) {
    let order = order(table);
    let late = late(table, &order);
    for at in order.iter().rev() {
        let mount = &table.mounts[*at];
        if late.contains(&mount.id) == (phase == Phase::Inside) {
            let point = bytes_path(&mount.point);
            let path = target.join(point.strip_prefix("/").unwrap_or(point));
            if let Err(errno) = umount2(&path, MntFlags::MNT_DETACH) {
                log::debug!("{} stays mounted: {errno}", path.display());
            }
        }
    }
}

/// Indices with parents before children, else in the order recorded.
fn order(table: &MountTable) -> Vec<usize> {
    let ids: BTreeSet<u32> = table.mounts.iter().map(|m| m.id).collect();
    let mut order = Vec::new();
    let mut done: BTreeSet<u32> = BTreeSet::new();
    loop {
        let before = order.len();
        for (at, mount) in table.mounts.iter().enumerate() {
            let ready = done.contains(&mount.parent) || !ids.contains(&mount.parent);
            if ready && done.insert(mount.id) {
                order.push(at);
            }
        }
        if order.len() == before {
            return order;
        }
    }
}

/// `proc` mounts and everything below them.
fn late(table: &MountTable, order: &[usize]) -> BTreeSet<u32> {
    let mut late = BTreeSet::new();
    for at in order {
        let mount = &table.mounts[*at];
        if mount.kind == "proc" || late.contains(&mount.parent) {
            late.insert(mount.id);
        }
    }
    late
}

fn step(mount: &Mount, step: &'static str, errno: Errno) -> MountError {
    MountError::Failed {
        kind: mount.kind.clone(),
        point: show(&mount.point),
        step,
        errno,
    }
}

/// A mount that exists.
struct Placed<'a> {
    record: &'a Mount,
    root: OwnedFd,
}

struct Work<'a> {
    table: &'a MountTable,
    target: &'a Path,
    placed: BTreeMap<u32, Placed<'a>>,
    /// Directories outside of the target where whole file systems hang that are only mounted in
    /// part.
    scratch: Vec<(DeviceNumber, PathBuf, OwnedFd)>,
    devices: Devices,
}

/// The path that leads to exactly what a descriptor refers to.
fn fd_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn open_path(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    open(
        path,
        OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW,
        Mode::empty(),
    )
}

fn bytes_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Flags a bind mount takes by a second call.
fn per_mount(flags: u64) -> MsFlags {
    MsFlags::from_bits_retain(flags)
}

impl<'a> Work<'a> {
    fn path(&self, record: &Mount) -> PathBuf {
        let point = bytes_path(&record.point);
        self.target.join(point.strip_prefix("/").unwrap_or(point))
    }

    /// Remembers a mount made in the first phase.
    fn find(&mut self, record: &'a Mount) {
        if let Ok(root) = open_path(&self.path(record)) {
            self.placed.insert(record.id, Placed { record, root });
        }
    }

    fn make(&mut self, record: &'a Mount) -> Result<()> {
        let means = means(self.table, record)?;
        let path = self.path(record);
        self.ensure_point(record, &path)?;
        if let Some(source) = self.bind_source(record) {
            bind(record, &source, &path)?;
        } else if is_whole(record) {
            self.make_whole(record, means, &path, true)?;
        } else {
            let source = self.make_scratch(record, means)?;
            bind(record, &source, &path)?;
        }
        let root = open_path(&path).map_err(|errno| step(record, "open", errno))?;
        self.placed.insert(record.id, Placed { record, root });
        Ok(())
    }

    /// Where this file system is mounted already, with the recorded directory inside.
    fn bind_source(&self, record: &Mount) -> Option<PathBuf> {
        let inside = |base: &[u8]| bytes_path(&record.root).strip_prefix(bytes_path(base)).ok();
        let placed = self
            .placed
            .values()
            .filter(|p| p.record.device == record.device);
        let found = placed
            .filter_map(|p| Some((fd_path(&p.root), inside(&p.record.root)?)))
            .next();
        let scratch = || {
            let (_, _, fd) = self.scratch.iter().find(|(d, _, _)| *d == record.device)?;
            Some((fd_path(fd), inside(b"/")?))
        };
        let (base, rest) = found.or_else(scratch)?;
        // A trailing slash would be wrong for a bound file.
        Some(if rest.as_os_str().is_empty() {
            base
        } else {
            base.join(rest)
        })
    }

    /// Mount points on disks are there; those in memory file systems may have to be made.
    fn ensure_point(&self, record: &Mount, path: &Path) -> Result<()> {
        if std::fs::symlink_metadata(path).is_ok() {
            return Ok(());
        }
        let parent = self.table.mounts.iter().find(|m| m.id == record.parent);
        let in_memory = parent.is_some_and(|p| {
            matches!(p.kind.as_str(), "tmpfs" | "ramfs" | "devtmpfs") || p.id == record.id
        });
        if !in_memory && parent.is_some() {
            return Err(step(record, "its mount point is gone", Errno::ENOENT));
        }
        let source = self.bind_source(record);
        let made = if source.is_some_and(|s| s.is_file()) {
            std::fs::File::create(path).map(drop)
        } else {
            std::fs::create_dir_all(path)
        };
        made.map_err(|e| step(record, "make mount point", errno_of(&e)))
    }

    /// Mounts a file system from scratch.
    fn make_whole(&mut self, record: &Mount, means: Means, path: &Path, flags: bool) -> Result<()> {
        let source = self.source(record, means)?;
        let (super_flags, data) = split_options(record);
        let read_only = super_flags.contains(MsFlags::MS_RDONLY);
        let wanted = if flags {
            per_mount(record.flags)
        } else {
            MsFlags::empty()
        };
        let tree = self.table.trees.iter().find(|t| t.device == record.device);
        let mut first = super_flags | wanted.difference(MsFlags::MS_RDONLY);
        if tree.is_some() {
            // Its contents come first.
            first.remove(MsFlags::MS_RDONLY);
        }
        self.devices.give(record.device, || {
            mount_with(record, &source, path, first, &data)
        })?;
        if let Some(tree) = tree {
            let existing = if means == Means::Memory {
                Existing::Refuse
            } else {
                Existing::Keep
            };
            unpack(&tree.tree, path, existing)?;
            if read_only {
                let again = MsFlags::MS_REMOUNT | super_flags | wanted;
                mount(None::<&str>, path, None::<&str>, again, None::<&str>)
                    .map_err(|errno| step(record, "make read-only", errno))?;
            }
        }
        if wanted.contains(MsFlags::MS_RDONLY) && !read_only {
            remount(record, path)?;
        }
        Ok(())
    }

    fn source(&self, record: &Mount, means: Means) -> Result<PathBuf> {
        if means != Means::Disk {
            return Ok(bytes_path(&record.source).to_owned());
        }
        let disk = self.table.disks.iter().find(|d| d.device == record.device);
        let disk = disk.ok_or_else(|| step(record, "find disk", Errno::ENODEV))?;
        wait_for(&RootSpec::Uuid(disk.uuid.clone()), DISK_WAIT)
            .map(|found| found.device)
            .map_err(|_| MountError::NoDisk {
                kind: disk.kind.clone(),
                uuid: disk.uuid.clone(),
                point: show(&record.point),
                waited: DISK_WAIT,
            })
    }

    /// Mounts a file system of which only a part is wanted where nobody sees it.
    fn make_scratch(&mut self, record: &Mount, means: Means) -> Result<PathBuf> {
        let path = std::env::temp_dir().join(format!(".kupgrade-{}", record.id));
        let make = |e: std::io::Error| step(record, "make directory", errno_of(&e));
        std::fs::create_dir_all(&path).map_err(make)?;
        self.make_whole(record, means, &path, false)?;
        let fd = open_path(&path).map_err(|errno| step(record, "open", errno))?;
        self.scratch.push((record.device, path, fd));
        self.bind_source(record)
            .ok_or_else(|| step(record, "find its directory", Errno::ENOENT))
    }

    /// Puts the mount into its peer group, under its master.
    fn propagation(&self, record: &Mount) -> Result<()> {
        let Some(placed) = self.placed.get(&record.id) else {
            return Ok(());
        };
        let path = fd_path(&placed.root);
        let change = |flags: MsFlags, what: &'static str| {
            mount(None::<&str>, &path, None::<&str>, flags, None::<&str>)
                .map_err(|errno| step(record, what, errno))
        };
        // A fresh mount inherits sharing from its parent.
        change(MsFlags::MS_PRIVATE, "make private")?;
        if record.unbindable {
            return change(MsFlags::MS_UNBINDABLE, "make unbindable");
        }
        if let Some(leader) = record.master.and_then(|group| self.leader(group, record)) {
            share_group(leader.root.as_fd(), placed.root.as_fd())
                .map_err(|errno| step(record, "join its master's group", errno))?;
            change(MsFlags::MS_SLAVE, "make slave")?;
        }
        match record.shared.map(|group| self.leader(group, record)) {
            None => Ok(()),
            Some(None) => change(MsFlags::MS_SHARED, "make shared"),
            Some(Some(peer)) => share_group(peer.root.as_fd(), placed.root.as_fd())
                .map_err(|errno| step(record, "join its peer group", errno)),
        }
    }

    /// The first mount of a peer group, when that is another one made before.
    fn leader(&self, group: u32, record: &Mount) -> Option<&Placed<'a>> {
        let first = self.table.mounts.iter().find(|m| m.shared == Some(group))?;
        (first.id != record.id)
            .then(|| self.placed.get(&first.id))
            .flatten()
    }

    fn clean(&mut self) {
        for (_, path, fd) in self.scratch.drain(..) {
            drop(fd);
            if let Err(errno) = umount2(&path, MntFlags::MNT_DETACH) {
                log::warn!("{} stays mounted: {errno}", path.display());
            }
            let _ = std::fs::remove_dir(&path);
        }
    }
}

/// Whether the record shows what mounting the file system gives by itself: all of it, or for btrfs
/// the subvolume its options name.
fn is_whole(record: &Mount) -> bool {
    let subvolume = record
        .super_options
        .split(|b| *b == b',')
        .find_map(|o| o.strip_prefix(b"subvol="))
        .unwrap_or(b"/");
    record.root == subvolume
}

fn bind(record: &Mount, source: &Path, path: &Path) -> Result<()> {
    mount(
        Some(source),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(|errno| step(record, "bind", errno))?;
    remount(record, path)
}

/// Sets the per-mount flags.
fn remount(record: &Mount, path: &Path) -> Result<()> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | per_mount(record.flags);
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .map_err(|errno| step(record, "set flags", errno))
}

/// Splits the file system's options into flags of mount(2) and the text it hands through.
fn split_options(record: &Mount) -> (MsFlags, Vec<Vec<u8>>) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for option in record
        .super_options
        .split(|b| *b == b',')
        .filter(|o| !o.is_empty())
    {
        match option {
            b"ro" => flags |= MsFlags::MS_RDONLY,
            b"sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            b"dirsync" => flags |= MsFlags::MS_DIRSYNC,
            b"lazytime" => flags |= MsFlags::MS_LAZYTIME,
            // Shown by the kernel, not taken by it.
            b"rw" | b"seclabel" => {}
            other => data.push(other.to_vec()),
        }
    }
    (flags, data)
}

/// mount(2); an option this kernel does not take is left out and reported.
fn mount_with(
    record: &Mount,
    source: &Path,
    path: &Path,
    flags: MsFlags,
    data: &[Vec<u8>],
) -> Result<()> {
    let attempt = |options: &[Vec<u8>]| {
        let text = options.join(&b',');
        let text = (!text.is_empty()).then(|| OsStr::from_bytes(&text).to_owned());
        mount(
            Some(source),
            path,
            Some(record.kind.as_str()),
            flags,
            text.as_deref(),
        )
    };
    let first = match attempt(data) {
        Ok(()) => return Ok(()),
        Err(errno) => errno,
    };
    if first != Errno::EINVAL {
        return Err(step(record, "mount", first));
    }
    for without in 0..data.len() {
        let mut fewer = data.to_vec();
        let option = fewer.remove(without);
        if attempt(&fewer).is_ok() {
            log::warn!(
                "{} on {}: this kernel does not take the option {}",
                record.kind,
                show(&record.point),
                show(&option)
            );
            return Ok(());
        }
    }
    Err(step(record, "mount", first))
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::info::parse;

    fn table(text: &[u8]) -> MountTable {
        MountTable {
            mounts: parse(text).unwrap(),
            ..MountTable::default()
        }
    }

    #[test]
    fn parents_come_first_and_proc_waits() {
        let table = table(
            b"30 20 0:9 / /proc/x rw - binfmt_misc b rw\n10 1 8:1 / / rw - ext4 a rw\n\
              20 10 0:5 / /proc rw - proc p rw\n40 10 0:6 / /sys rw - sysfs s rw\n",
        );
        let order = order(&table);
        let ids: Vec<u32> = order.iter().map(|at| table.mounts[*at].id).collect();
        assert_eq!(ids, [10, 20, 40, 30]);
        assert_eq!(
            late(&table, &order).into_iter().collect::<Vec<_>>(),
            [20, 30]
        );
    }

    #[test]
    fn options_are_split_into_flags_and_text() {
        let table = table(
            b"1 0 8:1 / / rw - ext4 a ro,seclabel,lazytime,errors=remount-ro,stripe=4\n\
              2 1 0:33 /@ /b rw - btrfs b rw,subvolid=256,subvol=/@\n3 1 8:1 /x /y rw - ext4 a rw\n",
        );
        let (flags, data) = split_options(&table.mounts[0]);
        assert_eq!(flags, MsFlags::MS_RDONLY | MsFlags::MS_LAZYTIME);
        assert_eq!(data, [b"errors=remount-ro".to_vec(), b"stripe=4".to_vec()]);
        let whole: Vec<bool> = table.mounts.iter().map(is_whole).collect();
        assert_eq!(whole, [true, true, false]);
    }
}
