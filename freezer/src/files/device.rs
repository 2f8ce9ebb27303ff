//! Character devices without a state of their own.

use super::Open;
use crate::FreezerError;
use nix::sys::stat::{SFlag, fstat, major, minor};
use persist_mem::manifest::DescriptionKind;

/// Minors of the memory devices (major 1) that are the same wherever they are opened:
/// null, zero, full, random, urandom (Documentation/admin-guide/devices.txt).
const STATELESS: [u64; 5] = [3, 5, 7, 8, 9];

/// None when it is no device.
pub(super) fn capture(open: &Open<'_>) -> Result<Option<DescriptionKind>, FreezerError> {
    let found = fstat(open.copy).map_err(open.call("fstat"))?;
    let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFBLK {
        return Err(open.refuse("block devices are not carried"));
    }
    if kind != SFlag::S_IFCHR {
        return Ok(None);
    }
    match (major(found.st_rdev), minor(found.st_rdev)) {
        (1, minor) if STATELESS.contains(&minor) => Ok(Some(DescriptionKind::Device {
            path: open.link.to_vec(),
            rdev: found.st_rdev,
        })),
        (4 | 5 | 136..=143, _) => Err(open.refuse("terminals are not carried yet")),
        (major, minor) => Err(open.refuse(format!("the device {major}:{minor} is not carried"))),
    }
}
