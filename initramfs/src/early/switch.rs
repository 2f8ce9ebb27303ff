//! Making the mounted root `/`, from an initramfs (Documentation/filesystems/ramfs-rootfs-initramfs.rst).

use super::{EarlyError, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, chroot};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use sys::Errno;

/// Where the root is mounted before it becomes `/`.
pub const NEW_ROOT: &str = "/sysroot";

/// Whether something is mounted at `path` (it lies on another device than its parent).
fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
    match path.parent() {
        Some(parent) => device(path).is_some() && device(path) != device(parent),
        None => true,
    }
}

/// Removes what the overlay put into memory and nobody reads any more: modules and their list.
pub fn discard_overlay() {
    if let Err(error) = std::fs::remove_dir_all("/kupgrade")
        && error.kind() != std::io::ErrorKind::NotFound
    {
        log::warn!("the overlay's modules stay in memory: {error}");
    }
}

/// Takes `/proc` out of the mount tree and returns a descriptor through which it can still be
/// read (openat(2)).
///
/// The `/proc` that early boot uses shows the first PID namespace. It must not stay below the one
/// the restored processes get, or every upgrade would record one more.
///
/// # Errors
/// [`EarlyError::Switch`]; it is not mounted.
pub fn detach_proc() -> Result<File> {
    let path = Path::new("/proc");
    let proc = File::open(path).map_err(|source| EarlyError::File {
        path: path.to_owned(),
        source,
    })?;
    umount2(path, MntFlags::MNT_DETACH).map_err(|errno| EarlyError::Switch {
        root: "/".into(),
        step: "umount of /proc",
        errno,
    })?;
    Ok(proc)
}

/// Makes `new_root` the root of this process and of the mount namespace.
///
/// `/dev`, `/proc` and `/sys` of the initramfs move along, unless the new root has its own
/// mounted, in which case they are let go. Returns our own binary, which has no path in the new
/// root any more: run it again through `/proc/self/fd/N`.
///
/// # Errors
/// [`EarlyError::Switch`] with the step that failed.
pub fn switch_root(new_root: &Path) -> Result<File> {
    let binary = File::open("/proc/self/exe").map_err(|source| EarlyError::File {
        path: "/proc/self/exe".into(),
        source,
    })?;
    let fail = |step: &'static str| {
        move |errno: Errno| EarlyError::Switch {
            root: new_root.to_owned(),
            step,
            errno,
        }
    };
    for name in ["dev", "proc", "sys"] {
        let (old, new) = (Path::new("/").join(name), new_root.join(name));
        if !is_mount_point(&old) {
            continue;
        }
        if is_mount_point(&new) || !new.is_dir() {
            umount2(&old, MntFlags::MNT_DETACH).map_err(fail("umount"))?;
        } else {
            mount(
                Some(&old),
                &new,
                None::<&str>,
                MsFlags::MS_MOVE,
                None::<&str>,
            )
            .map_err(fail("move of /dev, /proc or /sys"))?;
        }
    }
    chdir(new_root).map_err(fail("chdir"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(fail("move"))?;
    chroot(".").map_err(fail("chroot"))?;
    chdir("/").map_err(fail("chdir to /"))?;
    Ok(binary)
}
