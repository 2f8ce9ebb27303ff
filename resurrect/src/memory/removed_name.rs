//! Mapped files that have lost the name by which they were mapped, and have another one.

use crate::gone_path::Naming;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open as open_file, openat};
use nix::sys::stat::Mode;
use nix::unistd::linkat;
use persist_mem::manifest::FileRef;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Opens a file by a name that reads as `gone`, which it has no longer than that takes.
pub(super) fn open(file: &FileRef, gone: &[u8], flags: OFlag) -> sys::Result<OwnedFd> {
    static OPENED: AtomicU64 = AtomicU64::new(0);
    let reference = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let other = open_file(at(&file.path), reference, Mode::empty())?;
    let naming = Naming {
        place: |name: &Path| {
            linkat(&other, "", AT_FDCWD, name, AtFlags::AT_EMPTY_PATH).map(|()| true)
        },
        open: |near: &OwnedFd, inside: &Path| openat(near, inside, flags, Mode::empty()),
    };
    let mark = format!("m{}", OPENED.fetch_add(1, Ordering::Relaxed));
    naming.open_by(at(gone), &mark)
}

fn at(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}
