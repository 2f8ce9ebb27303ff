//! `mmap(MAP_SHARED | MAP_ANONYMOUS)`.

use super::failed;
use crate::ResurrectError;
use persist_mem::manifest::SharedObject;
use std::os::fd::OwnedFd;
use sys::PAGE_SIZE_U64;

pub(super) fn make(object: &SharedObject) -> Result<OwnedFd, ResurrectError> {
    let huge = (object.page_size > PAGE_SIZE_U64).then_some(object.page_size);
    let len = usize::try_from(object.size).unwrap_or(0);
    sys::vm::shared_anonymous(len, huge).map_err(failed(object, "making it"))
}
