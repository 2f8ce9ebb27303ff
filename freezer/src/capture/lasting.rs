//! What of a file's identity is good for another kernel.
//!
//! Memory file systems are made again there, with the same paths and contents, and number their inodes and the
//! entries of directories as they please.

use crate::files::lasting;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use persist_mem::manifest::{
    Backing, Description, DescriptionKind, FileRef, Live, Manifest, State, ThreadDirectories,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Forgets the inode numbers that will not last ([`FileRef::inode`] is 0 then), and tells places in directories
/// otherwise ([`Description::unread`]).
pub(super) fn settle(manifest: &mut Manifest) {
    let mut known = Known::default();
    for description in &mut manifest.descriptions {
        description.unread = unread(description);
        if let DescriptionKind::Path(file) | DescriptionKind::Fifo { file, .. } =
            &mut description.kind
        {
            known.settle(file);
        }
    }
    for process in &mut manifest.processes {
        if let State::Live(live) = &mut process.state {
            references(live, &mut known);
        }
    }
}

fn references(live: &mut Live, known: &mut Known) {
    known.settle(&mut live.mm.exe);
    let own = live.threads.iter_mut();
    let own = own.filter_map(|thread| match &mut thread.directories {
        Some(ThreadDirectories::Own(own)) => Some(&mut **own),
        _ => None,
    });
    for directories in own.chain([&mut live.directories]) {
        known.settle(&mut directories.cwd);
        known.settle(&mut directories.root);
    }
    for vma in &mut live.mm.vmas {
        if let Backing::File { file, .. } = &mut vma.backing {
            known.settle(file);
        }
    }
}

/// How much of a directory in memory has not been read, when it was begun.
fn unread(description: &Description) -> Option<u32> {
    let DescriptionKind::Path(file) = &description.kind else {
        return None;
    };
    let path = Path::new(OsStr::from_bytes(&file.path));
    let in_memory =
        || statfs(path).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC) && path.is_dir();
    if description.pos == 0 || !in_memory() {
        return None;
    }
    let directory = std::fs::File::open(path).ok()?;
    sys::fds::seek(&directory, description.pos).ok()?;
    let unread = sys::dirents::offsets(&directory).ok()?;
    u32::try_from(unread.len()).ok()
}

/// Directories that have been asked.
#[derive(Default)]
struct Known(HashMap<PathBuf, bool>);

impl Known {
    fn settle(&mut self, file: &mut FileRef) {
        let path = Path::new(OsStr::from_bytes(&file.path));
        // A file that is a mount point itself has the file system of that mount.
        let of_directory = path.parent().filter(|_| !path.is_dir());
        let place = of_directory.unwrap_or(path).to_owned();
        let lasts = *self
            .0
            .entry(place)
            .or_insert_with_key(|place| lasting(place));
        if !lasts {
            file.inode = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_memory_file_systems_are_forgotten() {
        let mut known = Known::default();
        let mut inode = |path: &str| {
            let mut file = FileRef {
                path: path.into(),
                inode: 7,
                size: 0,
            };
            known.settle(&mut file);
            file.inode
        };
        assert_eq!(inode("/dev/shm"), 0);
        assert_eq!(inode("/dev/shm/some file"), 0);
        for made_up in ["/proc/1", "/proc/meminfo", "/sys/kernel"] {
            assert_eq!(inode(made_up), 0, "{made_up}");
        }
        // Where tests run in containers it is a file system in layers.
        let lasts = lasting(Path::new("/usr"));
        assert_eq!(inode("/usr/bin"), if lasts { 7 } else { 0 });
    }
}
