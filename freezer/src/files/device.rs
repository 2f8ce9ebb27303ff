//! Devices that are no terminals.

use super::{Class, Open, gone, kmsg, tunnel};
use crate::FreezerError;
use nix::sys::stat::{SFlag, major, minor};
use persist_mem::manifest::DescriptionKind;

/// Minors of the memory devices (major 1) that are the same wherever they are opened:
/// null, zero, full, random, urandom (Documentation/admin-guide/devices.txt).
const STATELESS: [u64; 5] = [3, 5, 7, 8, 9];

/// `/dev/kmsg`, of the same major.
const KMSG: u64 = 11;

/// Devices of major 10 that only answer requests, and remember nothing of who has them open: hwrng, btrfs-control,
/// loop-control.
const CONTROLS: [u64; 3] = [183, 234, 237];

pub(super) const DISK: &str = "block devices are not carried";

/// `/dev/net/tun`.
const TUN: (u64, u64) = (10, 200);

/// Devices that people know by a name: major, minor (None: any), why not.
const REFUSED: [(u64, Option<u64>, &str); 6] = [
    (1, Some(1), "the host's memory (/dev/mem) is not carried"),
    (
        10,
        Some(229),
        "file systems in user space (/dev/fuse) are not carried",
    ),
    (10, Some(232), "virtual machines (/dev/kvm) are not carried"),
    (
        10,
        Some(235),
        "automounters (/dev/autofs) are not carried yet",
    ),
    (10, Some(130), "watchdogs are not carried"),
    (226, None, "graphics devices are not carried"),
];

pub(super) fn classify(open: &Open<'_>) -> Result<Class, FreezerError> {
    if open.file_type() == SFlag::S_IFBLK {
        return Err(open.refuse(DISK));
    }
    let rdev = open.stat.st_rdev;
    let (major, minor) = (major(rdev), minor(rdev));
    let kind = DescriptionKind::Device {
        path: open.link.to_vec(),
        rdev,
        removed: (open.stat.st_nlink == 0).then(|| gone::owner(open)),
    };
    if is_stateless(major, minor) {
        return Ok(Class::Plain(kind));
    }
    if (major, minor) == (1, KMSG) {
        return Ok(if kmsg::is_reader(open)? {
            Class::Kmsg
        } else {
            Class::Plain(kind)
        });
    }
    if (major, minor) == TUN {
        tunnel::examine(open)?;
        return Ok(Class::Tunnel);
    }
    let why = obstacle(rdev).unwrap_or_else(|| "this device is not carried".into());
    Err(open.refuse(why))
}

fn is_stateless(major: u64, minor: u64) -> bool {
    major == 1 && STATELESS.contains(&minor) || major == 10 && CONTROLS.contains(&minor)
}

/// Why a character device that is no terminal is not carried, whoever holds it.
pub(super) fn obstacle(rdev: u64) -> Option<String> {
    let (major, minor) = (major(rdev), minor(rdev));
    if is_stateless(major, minor) || [(1, KMSG), TUN].contains(&(major, minor)) {
        return None;
    }
    let known = REFUSED
        .iter()
        .find(|(a, b, _)| *a == major && b.is_none_or(|b| b == minor));
    Some(match known {
        Some((_, _, why)) => (*why).to_owned(),
        None => format!("the device {major}:{minor} is not carried"),
    })
}
