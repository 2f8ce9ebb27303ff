//! Files that were opened in a domain of Landlock, which denies some of what else could be done with them.

use super::Open;
use super::class::Class;
use crate::{FreezerError, landlock};
use persist_mem::manifest::DescriptionKind;

/// What is denied with a description.
///
/// # Errors
/// [`FreezerError::Refused`] for what cannot be opened once more.
pub(super) fn denied(open: &Open<'_>, kind: &DescriptionKind) -> Result<u64, FreezerError> {
    let denied = landlock::denied(open)?;
    match kind {
        DescriptionKind::Path(_)
        | DescriptionKind::Handle { .. }
        | DescriptionKind::Deleted { .. }
        | DescriptionKind::Device { .. } => Ok(denied),
        _ if denied == 0 => Ok(0),
        _ => Err(refusal(open)),
    }
}

/// The same of a process that runs, in a domain.
pub(super) fn check(open: &Open<'_>, class: &Class) -> Result<(), FreezerError> {
    match class {
        Class::Plain(kind) => denied(open, kind).map(drop),
        _ => match landlock::denied(open)? {
            0 => Ok(()),
            _ => Err(refusal(open)),
        },
    }
}

fn refusal(open: &Open<'_>) -> FreezerError {
    open.refuse("Landlock denies to control the device by it, which cannot be had again")
}
