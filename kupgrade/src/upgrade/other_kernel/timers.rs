//! Whether it lets processes choose the ids of their POSIX timers.

use super::{OtherKernel, Version, refuse};
use freezer::Refusal;
use persist_mem::manifest::Manifest;

/// Since when there is `PR_TIMER_CREATE_RESTORE_IDS`.
const SINCE: Version = (6, 16);

/// Those who choose them, where they could not.
pub(super) fn refusals(there: &OtherKernel, manifest: &Manifest) -> Vec<Refusal> {
    if there.version >= SINCE {
        return Vec::new();
    }
    let reason = format!(
        "it chooses the ids of its timers (PR_TIMER_CREATE_RESTORE_IDS), which Linux {} does not let it",
        there.release
    );
    refuse(
        manifest,
        |process| process.live().is_some_and(|live| live.chooses_timer_ids),
        "timers",
        &reason,
    )
}
