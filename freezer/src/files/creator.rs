//! Who made an open file: whose limits it counts for, and whose privileges it has.

use super::Open;
use crate::proc::Status;
use crate::{FreezerError, kernel};

/// The effective user when it was made. Where the kernel's memory cannot be read it is taken to be that of its holder.
pub(super) fn of(open: &Open<'_>) -> Result<u32, FreezerError> {
    match kernel::look(|kernel| kernel.creator(open.copy)) {
        Ok(creator) => Ok(creator),
        Err(why) => {
            log::debug!("fd {}: who made it: {why}", open.fd);
            let status = Status::read(open.pid, "status")?;
            // Real, effective, saved, of files.
            let ids = status.value("Uid").unwrap_or_default();
            let effective = ids.split_whitespace().nth(1);
            let effective = effective.and_then(|id| id.parse().ok());
            effective.ok_or_else(|| open.format())
        }
    }
}
