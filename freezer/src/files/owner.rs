//! Who gets signals about a description (fcntl(2), `F_SETOWN_EX`, `F_SETSIG`).

use super::{O_PATH, Open};
use crate::FreezerError;
use persist_mem::manifest::SignalOwner;

/// None when nobody does.
pub(super) fn capture(open: &Open<'_>) -> Result<Option<SignalOwner>, FreezerError> {
    if open.ownerless || open.flags()? & O_PATH != 0 {
        return Ok(None);
    }
    let owner = sys::files::owner(open.copy).map_err(open.call("asking who gets its signals"))?;
    // Who has ended was named in some way.
    Ok((owner.id != 0 || owner.signal != 0 || owner.kind != 0).then_some(owner))
}
