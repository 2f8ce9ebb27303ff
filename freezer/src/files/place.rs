//! Where a file is, when its path does not tell.

use crate::kernel::KnownNames;
use nix::sys::statfs::{
    BPF_FS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, DEVPTS_SUPER_MAGIC,
    FsType, HUGETLBFS_MAGIC, OVERLAYFS_SUPER_MAGIC, PROC_SUPER_MAGIC, RDTGROUP_SUPER_MAGIC,
    SECURITYFS_MAGIC, SELINUX_MAGIC, SMACK_MAGIC, SYSFS_MAGIC, TMPFS_MAGIC, TRACEFS_MAGIC, statfs,
};
use nix::sys::statvfs::{FsFlags, statvfs};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

// What the libraries lack of include/uapi/linux/magic.h, fs/configfs/mount.c and ipc/mqueue.c.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
const PSTOREFS_MAGIC: FsType = FsType(0x6165_676c);
const EFIVARFS_MAGIC: FsType = FsType(0xde5e_81e4);
const BINFMTFS_MAGIC: FsType = FsType(0x4249_4e4d);
const CONFIGFS_MAGIC: FsType = FsType(0x6265_6570);
const MQUEUE_MAGIC: FsType = FsType(0x1980_0202);

/// File systems that the kernel keeps in memory or makes up.
const VOLATILE: [FsType; 21] = [
    TMPFS_MAGIC,
    RAMFS_MAGIC,
    HUGETLBFS_MAGIC,
    OVERLAYFS_SUPER_MAGIC,
    PROC_SUPER_MAGIC,
    SYSFS_MAGIC,
    CGROUP_SUPER_MAGIC,
    CGROUP2_SUPER_MAGIC,
    DEVPTS_SUPER_MAGIC,
    DEBUGFS_MAGIC,
    TRACEFS_MAGIC,
    SECURITYFS_MAGIC,
    CONFIGFS_MAGIC,
    BPF_FS_MAGIC,
    PSTOREFS_MAGIC,
    EFIVARFS_MAGIC,
    BINFMTFS_MAGIC,
    RDTGROUP_SUPER_MAGIC,
    SELINUX_MAGIC,
    SMACK_MAGIC,
    MQUEUE_MAGIC,
];

/// Directory entries that a search may look at.
const SEARCH_MAX: usize = 200_000;

/// A file by device and inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    pub(crate) dev: u64,
    pub(crate) inode: u64,
}

/// Whether a path leads to the file; the last component is not followed when it is a link.
pub(super) fn leads_to(path: &Path, file: Identity) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|found| (found.dev(), found.ino()) == (file.dev, file.inode))
}

/// A directory on the file system with this device number, best a given one.
pub(super) fn directory_on(dev: u64, best: Option<&Path>) -> Option<PathBuf> {
    directory(dev, best, |_| true)
}

/// The same on a mount that can be written to.
pub(super) fn writable_directory_on(dev: u64, best: Option<&Path>) -> Option<PathBuf> {
    directory(dev, best, |path| !read_only(path))
}

/// Whether what a path leads to lies on a mount that is read-only, or on a file system that is.
pub(super) fn read_only(path: &Path) -> bool {
    let none = FsFlags::ST_RDONLY;
    statvfs(path).is_ok_and(|found| found.flags().contains(none))
}

/// Where a mount is, by its number (statx(2), `stx_mnt_id`), when a path leads there.
pub(super) fn mounted(id: u64) -> Option<PathBuf> {
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    let id = id.to_string();
    let mut lines = mounts.split(|b| *b == b'\n');
    let line = lines.find(|line| line.split(|b| *b == b' ').next() == Some(id.as_bytes()))?;
    let field = line.split(|b| *b == b' ').nth(4)?;
    let path = PathBuf::from(OsString::from_vec(unescape(field)));
    // Another one may be mounted above.
    let found = sys::files::mount_of(&path).ok()?;
    (found.to_string() == id).then_some(path)
}

fn directory(dev: u64, best: Option<&Path>, suits: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let is = |path: &Path| std::fs::metadata(path).is_ok_and(|m| m.dev() == dev && m.is_dir());
    let there = |path: &Path| is(path) && suits(path);
    if let Some(best) = best.filter(|best| there(best)) {
        return Some(best.to_owned());
    }
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    mounts
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .find(|path| there(path))
}

/// Where a mount is, by its number in mountinfo.
pub(super) fn of_mount(number: u32) -> Option<PathBuf> {
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    let mut lines = mounts.split(|b| *b == b'\n');
    lines.find_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let same = fields.next()? == number.to_string().as_bytes();
        let path = fields.nth(3).filter(|_| same)?;
        Some(PathBuf::from(OsString::from_vec(unescape(path))))
    })
}

/// Paths that the names by which the kernel knows an inode may have, as far as its file system is mounted.
pub(crate) fn paths_of(names: &KnownNames) -> Vec<Vec<u8>> {
    let points = mount_points(names.device);
    let below = |name: &[u8], root: &[u8], point: &[u8]| {
        let rest = name.strip_prefix(root.strip_suffix(b"/").unwrap_or(root))?;
        let point = point.strip_suffix(b"/").unwrap_or(point);
        let path = [point, rest].concat();
        let inside = rest.is_empty() || rest.starts_with(b"/");
        inside.then(|| if path.is_empty() { b"/".to_vec() } else { path })
    };
    let names = names.paths.iter();
    let found = names.flat_map(|name| {
        let points = points.iter();
        points.filter_map(|(root, point)| below(name, root, point))
    });
    found.collect()
}

/// Every mount of the file system with this number (`s_dev`: 12 bits of major, 20 of minor): which part of it is
/// mounted, and where.
fn mount_points(device: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
    let number = format!("{}:{}", device >> 20, device & 0xf_ffff);
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let lines = mounts.split(|b| *b == b'\n');
    let found = lines.filter_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let same = fields.nth(2)? == number.as_bytes();
        let (root, point) = (fields.next()?, fields.next()?);
        same.then(|| (unescape(root), unescape(point)))
    });
    found.collect()
}

/// Octal escapes of mountinfo: `\040` is a blank.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, more)) = rest.split_first() {
        let octal = more.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        let code = octal.and_then(|d| u8::from_str_radix(d, 8).ok());
        match code.filter(|_| first == b'\\') {
            Some(code) => {
                out.push(code);
                rest = &more[3..];
            }
            None => {
                out.push(first);
                rest = more;
            }
        }
    }
    out
}

/// Whether inode numbers and handles of this file system are still good after a reboot.
pub(crate) fn lasting(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|found| !VOLATILE.contains(&found.filesystem_type()))
}

/// Whether a directory lies on procfs, which keeps files only as long as it has to: all that is known of one in use is
/// its one name.
pub(super) fn is_procfs(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|found| found.filesystem_type() == PROC_SUPER_MAGIC)
}

/// A name of the file on its file system: below one directory first, then anywhere below another.
pub(super) fn search(file: Identity, near: Option<&Path>, below: &Path) -> Option<PathBuf> {
    let mut left = SEARCH_MAX;
    near.and_then(|near| walk(file, near, &mut left))
        .or_else(|| walk(file, below, &mut left))
}

/// Another name of a file whose name is gone.
pub(crate) fn other_name(file: Identity, gone: &[u8]) -> Option<PathBuf> {
    let near = parent(gone).filter(|dir| dir.is_dir());
    let below = directory_on(file.dev, None).or_else(|| near.map(Path::to_owned))?;
    search(file, near, &below)
}

fn walk(file: Identity, top: &Path, left: &mut usize) -> Option<PathBuf> {
    if leads_to(top, file) {
        return Some(top.to_owned());
    }
    let mut directories = vec![top.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            *left = left.checked_sub(1)?;
            let Ok(found) = entry.metadata() else {
                continue;
            };
            if (found.dev(), found.ino()) == (file.dev, file.inode) {
                return Some(entry.path());
            }
            if found.is_dir() && found.dev() == file.dev {
                directories.push(entry.path());
            }
        }
    }
    None
}

/// The directory that a path names its last component in.
pub(super) fn parent(path: &[u8]) -> Option<&Path> {
    Path::new(OsStr::from_bytes(path)).parent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks() {
        assert_eq!(unescape(br"/a\040b\134c"), b"/a b\\c");
        assert_eq!(unescape(br"/a\04"), br"/a\04");
    }

    #[test]
    fn a_hard_link_is_found() {
        let dir = std::env::temp_dir().join(format!("place-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("deep/er")).unwrap();
        std::fs::write(dir.join("one"), "x").unwrap();
        std::fs::hard_link(dir.join("one"), dir.join("deep/er/two")).unwrap();
        let found = std::fs::metadata(dir.join("one")).unwrap();
        let file = Identity {
            dev: found.dev(),
            inode: found.ino(),
        };
        std::fs::remove_file(dir.join("one")).unwrap();
        let gone = dir.join("one");
        assert_eq!(
            other_name(file, gone.as_os_str().as_bytes()),
            Some(dir.join("deep/er/two"))
        );
        assert_eq!(
            search(file, Some(&dir), &dir),
            Some(dir.join("deep/er/two"))
        );
        assert_eq!(
            directory_on(file.dev, None).map(|d| std::fs::metadata(d).unwrap().dev()),
            Some(file.dev)
        );
        std::fs::remove_dir_all(dir).unwrap();
    }
}
