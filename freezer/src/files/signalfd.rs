//! signalfd(2).

use super::Open;
use crate::FreezerError;
use persist_mem::manifest::DescriptionKind;

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let mask = open
        .info
        .number("sigmask", 16)
        .ok_or_else(|| open.format())?;
    Ok(DescriptionKind::SignalFd { mask })
}
