//! memfds: the description here, what is in it with the objects.

use super::Open;
use crate::FreezerError;
use crate::objects::{self, Objects};
use persist_mem::manifest::DescriptionKind;

pub(super) fn is_one(link: &[u8]) -> bool {
    link.starts_with(b"/memfd:") && link.ends_with(b" (deleted)")
}

pub(super) fn capture(
    open: &Open<'_>,
    objects: &mut Objects,
) -> Result<DescriptionKind, FreezerError> {
    let object = objects
        .find_behind(open.pid, open.copy, |file| objects::memfd(file, open.link))
        .map_err(|e| open.refuse(e.reason()))?;
    Ok(DescriptionKind::Memfd { object })
}
