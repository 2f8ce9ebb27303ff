//! What of a file's identity is good for another kernel.
//!
//! Memory file systems are made again there, with the same paths and contents, and number their inodes as
//! they please.

use crate::files::lasting;
use persist_mem::manifest::{Backing, DescriptionKind, FileRef, Live, Manifest, State};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Forgets the inode numbers that will not last ([`FileRef::inode`] is 0 then).
pub(super) fn forget_inodes(manifest: &mut Manifest) {
    let mut known = Known::default();
    for description in &mut manifest.descriptions {
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
    let own = own.filter_map(|thread| thread.directories.as_deref_mut());
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
