//! Files that have been removed: their contents, under a path that reads as before.

use super::{TMPFILE, failed};
use crate::ResurrectError;
use crate::gone_path::Naming;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown, ftruncate};
use persist_mem::manifest::{SharedKind, SharedObject};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use sys::Errno;

/// `FS_SYNC_FL`, `FS_NODUMP_FL`, `FS_NOATIME_FL` (include/uapi/linux/fs.h): what means something for a file without a
/// name, and does not keep it from being filled.
const INODE_FLAGS: u32 = 0x8 | 0x40 | 0x80;

/// `flags` are those of the description that made it before, where that can be told: `O_WRONLY`,
/// `O_TMPFILE`, `O_NOFOLLOW`.
pub(super) fn make(object: &SharedObject, flags: u32) -> Result<OwnedFd, ResurrectError> {
    let SharedKind::Deleted {
        path,
        mode,
        owner,
        attributes,
        inode_flags,
        nameable,
        ..
    } = &object.kind
    else {
        return Err(failed(object, "making it")(Errno::EINVAL));
    };
    let path = Path::new(OsStr::from_bytes(path));
    let given = OFlag::from_bits_retain(flags.cast_signed());
    let access = match given & OFlag::O_ACCMODE {
        OFlag::O_WRONLY => OFlag::O_WRONLY,
        _ => OFlag::O_RDWR,
    };
    let kept = given & OFlag::O_NOFOLLOW | access;
    let fd = if *nameable {
        without_name(path, kept)
    } else if flags & TMPFILE == 0 {
        unlinked(path, object.id, kept)
    } else {
        without_name(path, kept | OFlag::O_EXCL)
    };
    let fd = fd.map_err(failed(object, "making it"))?;
    let size = i64::try_from(object.size).map_err(|_| failed(object, "sizing it")(Errno::EFBIG))?;
    ftruncate(&fd, size).map_err(failed(object, "sizing it"))?;
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    fchown(&fd, Some(uid), Some(gid)).map_err(failed(object, "setting its owner"))?;
    fchmod(&fd, Mode::from_bits_retain(*mode)).map_err(failed(object, "setting its mode"))?;
    for (name, value) in attributes {
        sys::xattr::set_of(&fd, name, value).map_err(failed(object, "setting an attribute"))?;
    }
    let own = sys::files::inode_flags(&fd).unwrap_or(0);
    let wanted = own & !INODE_FLAGS | inode_flags & INODE_FLAGS;
    if wanted != own {
        sys::files::set_inode_flags(&fd, wanted).map_err(failed(object, "setting its flags"))?;
    }
    Ok(fd)
}

/// Its times, when it is filled.
pub(super) fn set_times(object: &SharedObject, fd: &OwnedFd) -> Result<(), ResurrectError> {
    match object.kind {
        SharedKind::Deleted { times, .. } => super::set_times(object, fd, times),
        _ => Ok(()),
    }
}

/// `O_TMPFILE` where it was made: such a file can be given a name later (linkat(2)), without `O_EXCL`. `kept` has its
/// access mode.
fn without_name(path: &Path, kept: OFlag) -> sys::Result<OwnedFd> {
    let mut above = path.ancestors().skip(1);
    let directory = above.find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let flags = OFlag::O_TMPFILE | OFlag::O_CLOEXEC | kept;
    open(directory, flags, Mode::S_IRUSR | Mode::S_IWUSR)
}

/// A new file without a name, on the file system that the path is on.
fn unlinked(path: &Path, id: u32, kept: OFlag) -> sys::Result<OwnedFd> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | kept;
    let naming = Naming {
        place: |_: &Path| Ok(false),
        open: |near: &OwnedFd, inside: &Path| {
            openat(near, inside, flags, Mode::S_IRUSR | Mode::S_IWUSR)
        },
    };
    naming.open_by(path, &id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_path_reads_as_before_and_nothing_is_left() {
        let dir = std::env::temp_dir().join(format!("deleted-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("taken"), "another").unwrap();
        let times = std::fs::metadata(&dir).unwrap().modified().unwrap();
        for name in ["gone/a file", "taken", "free"] {
            let path = dir.join(name);
            let fd = unlinked(&path, 7, OFlag::O_RDWR).unwrap();
            let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
            assert_eq!(link, Path::new(&format!("{} (deleted)", path.display())));
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        }
        assert_eq!(std::fs::read(dir.join("taken")).unwrap(), b"another");
        let after = std::fs::metadata(&dir).unwrap().modified().unwrap();
        assert_eq!(after, times);
        std::fs::remove_file(dir.join("taken")).unwrap();
        std::fs::remove_dir(&dir).unwrap();
    }
}
