//! Upgrades: every program and subject verifies itself on the other side.

use anyhow::Result;

use super::Host;
use crate::rig::Rig;

/// On to trixie's kernel.
pub(super) fn to_trixie(host: &mut Host, rig: &Rig) -> Result<()> {
    host.must_upgrade(rig, "6.12")
}

/// On to the newest kernel.
pub(super) fn to_newest(host: &mut Host, rig: &Rig) -> Result<()> {
    host.must_upgrade(rig, "backports")
}
