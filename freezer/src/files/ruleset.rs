//! Rulesets of Landlock (landlock_create_ruleset(2)) that were not enforced yet, or may be once more.

use super::Open;
use crate::{FreezerError, landlock};
use persist_mem::manifest::DescriptionKind;
use std::os::fd::AsFd;

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let layer = landlock::ruleset(open.copy.as_fd()).map_err(|why| open.refuse(why))?;
    Ok(DescriptionKind::Ruleset(layer))
}
