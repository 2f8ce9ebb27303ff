//! memfd_create(2).

use super::{failed, set_times};
use crate::ResurrectError;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown, ftruncate};
use persist_mem::manifest::{SharedKind, SharedObject};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use sys::{Errno, PAGE_SIZE_U64};

const MFD_CLOEXEC: u32 = 1;
const MFD_ALLOW_SEALING: u32 = 2;
const MFD_HUGETLB: u32 = 4;
/// Since 6.3; before, every memfd is as this says.
const MFD_EXEC: u32 = 0x10;
const MFD_HUGE_SHIFT: u32 = 26;

pub(super) fn make(object: &SharedObject) -> Result<OwnedFd, ResurrectError> {
    let SharedKind::Memfd {
        name, mode, owner, ..
    } = &object.kind
    else {
        return Err(failed(object, "making it")(Errno::EINVAL));
    };
    let name =
        CString::new(name.as_slice()).map_err(|_| failed(object, "naming it")(Errno::EINVAL))?;
    let huge = if object.page_size > PAGE_SIZE_U64 {
        MFD_HUGETLB | object.page_size.trailing_zeros() << MFD_HUGE_SHIFT
    } else {
        0
    };
    let flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | huge;
    let fd = match sys::vm::memfd(&name, flags | MFD_EXEC) {
        Err(Errno::EINVAL) => sys::vm::memfd(&name, flags),
        made => made,
    }
    .map_err(failed(object, "making it"))?;
    let size = i64::try_from(object.size).map_err(|_| failed(object, "sizing it")(Errno::EFBIG))?;
    ftruncate(&fd, size).map_err(failed(object, "sizing it"))?;
    fchmod(&fd, Mode::from_bits_retain(*mode)).map_err(failed(object, "setting its mode"))?;
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    fchown(&fd, Some(uid), Some(gid)).map_err(failed(object, "setting its owner"))?;
    Ok(fd)
}

/// What making and mapping it would change: its attributes and times.
pub(super) fn finish(object: &SharedObject, fd: &OwnedFd) -> Result<(), ResurrectError> {
    let SharedKind::Memfd {
        times, attributes, ..
    } = &object.kind
    else {
        return Ok(());
    };
    for (name, value) in attributes {
        sys::xattr::set_of(fd, name, value).map_err(failed(object, "setting an attribute"))?;
    }
    set_times(object, fd, *times)
}

/// Seals it, through a description that is open for writing. Mappings and contents are there already.
pub(super) fn seal(
    object: &SharedObject,
    writable: Option<&OwnedFd>,
    seals: u32,
) -> Result<(), ResurrectError> {
    if seals == 0 {
        return Ok(());
    }
    let writable = writable.ok_or_else(|| failed(object, "sealing it")(Errno::EBADF))?;
    let seals = SealFlag::from_bits_retain(seals.cast_signed());
    fcntl(writable, FcntlArg::F_ADD_SEALS(seals)).map_err(failed(object, "sealing it"))?;
    Ok(())
}
