//! memfd_secret(2).

use super::{Made, errno_of, failed, pieces, set_times};
use crate::ResurrectError;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown, ftruncate};
use persist_mem::manifest::{SharedKind, SharedObject};
use persist_mem::store::PageStore;
use std::os::fd::{AsFd, OwnedFd};
use sys::vm::write_file;
use sys::{Errno, PAGE_SIZE_U64};

/// It, with its contents. It has one description, which is that of whoever has it open.
pub(super) fn make(object: &SharedObject, store: &dyn PageStore) -> Result<Made, ResurrectError> {
    let SharedKind::Secret { mode, owner, .. } = &object.kind else {
        return Err(failed(object, "making it")(Errno::EINVAL));
    };
    let fd = sys::secret::new().map_err(failed(object, "making it"))?;
    let size = i64::try_from(object.size).map_err(|_| failed(object, "sizing it")(Errno::EFBIG))?;
    if size > 0 {
        ftruncate(&fd, size).map_err(failed(object, "sizing it"))?;
    }
    fchmod(&fd, Mode::from_bits_retain(*mode)).map_err(failed(object, "setting its mode"))?;
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    fchown(&fd, Some(uid), Some(gid)).map_err(failed(object, "setting its owner"))?;
    // The kernel copies old pages to files, and from there to a mapping of it.
    let between = sys::vm::memfd(c"kupgrade", 1).map_err(failed(object, "making a copy of it"))?;
    let whole = object.size.next_multiple_of(PAGE_SIZE_U64);
    write_file(&between, &pieces(object, store, whole)?)
        .map_err(failed(object, "copying its contents"))?;
    let extents = object.extents.iter();
    let parts = extents.map(|one| (one.va, one.pages * PAGE_SIZE_U64));
    sys::secret::copy_in(fd.as_fd(), object.size, &between, parts)
        .map_err(failed(object, "writing its contents"))?;
    let copy = || -> Result<OwnedFd, ResurrectError> {
        let copy = fd.try_clone();
        copy.map_err(|e| failed(object, "duplicating it")(errno_of(&e)))
    };
    Ok(Made::File {
        read: copy()?,
        first: Some(copy()?),
        write: Some(fd),
        sealer: None,
    })
}

/// Its times, which writing has changed.
pub(super) fn finish(object: &SharedObject, fd: &OwnedFd) -> Result<(), ResurrectError> {
    match &object.kind {
        SharedKind::Secret { times, .. } => set_times(object, fd, *times),
        _ => Ok(()),
    }
}
