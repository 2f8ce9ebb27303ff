//! The file systems every later step needs.

use super::{EarlyError, Result};
use crate::mounts::devices::Devices;
use nix::mount::{MsFlags, mount};
use std::path::Path;
use sys::Errno;

/// The `/proc` of early boot and of the supervisor has a device number above this.
const OWN_PROC: u32 = 64;

/// Mounts a file system without a device at `point`, making the directory. Already mounted is
/// fine.
fn pseudo(kind: &str, point: &Path, flags: MsFlags) -> Result<()> {
    std::fs::create_dir_all(point).map_err(|source| EarlyError::File {
        path: point.to_owned(),
        source,
    })?;
    match mount(Some(kind), point, Some(kind), flags, None::<&str>) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(EarlyError::Mount {
            what: kind.to_owned(),
            point: point.to_owned(),
            errno,
        }),
    }
}

/// Mounts `/dev`, `/proc` and `/sys` of the initramfs. The kernel gives the first process no
/// `/dev` of its own in an initramfs, so this comes before any logging.
///
/// # Errors
/// [`EarlyError::Mount`].
pub fn mount_basics() -> Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    pseudo("devtmpfs", Path::new("/dev"), MsFlags::MS_NOSUID)?;
    pseudo("sysfs", Path::new("/sys"), plain | MsFlags::MS_NODEV)?;
    // This one is not for the processes; low numbers were those of what they had mounted first.
    let low = Devices::up_to(OWN_PROC);
    pseudo("proc", Path::new("/proc"), plain | MsFlags::MS_NODEV)?;
    drop(low);
    Ok(())
}
