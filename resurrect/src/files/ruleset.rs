//! Rulesets of Landlock (landlock_create_ruleset(2)).

use super::Opening;
use crate::ResurrectError;
use crate::thread::landlock;
use persist_mem::manifest::Layer;
use std::os::fd::OwnedFd;

pub(super) fn open(opening: &Opening<'_, '_>, layer: &Layer) -> Result<OwnedFd, ResurrectError> {
    landlock::make(layer, &|doing, errno| opening.failed(doing)(errno))
}
