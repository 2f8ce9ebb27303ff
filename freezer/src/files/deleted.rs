//! Regular files that have been removed and have no name left: the description here, what is in
//! them with the objects.

use super::Open;
use crate::FreezerError;
use crate::objects::{self, Objects};
use nix::sys::stat::SFlag;
use persist_mem::manifest::DescriptionKind;

pub(super) fn is_one(open: &Open<'_>) -> bool {
    let regular = open.file_type() == SFlag::S_IFREG && open.stat.st_nlink == 0;
    regular && open.link.starts_with(b"/") && open.link.ends_with(b" (deleted)")
}

pub(super) fn capture(
    open: &Open<'_>,
    objects: &mut Objects,
) -> Result<DescriptionKind, FreezerError> {
    let object = objects
        .find_behind(open.pid, open.copy, |file| {
            objects::deleted(file, open.link)
        })
        .map_err(|e| open.refuse(e.reason()))?;
    Ok(DescriptionKind::Deleted { object })
}
