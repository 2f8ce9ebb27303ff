//! Open files that were not carried: the restorer hands over its own.

use super::Opening;
use crate::ResurrectError;
use std::os::fd::OwnedFd;
use sys::Errno;

pub(super) fn open(opening: &Opening<'_, '_>, number: i32) -> Result<OwnedFd, ResurrectError> {
    let externals = opening.restore.options.externals;
    let given = externals.and_then(|all| all.get(&number));
    let given = given.ok_or_else(|| ResurrectError::Own {
        subject: None,
        doing: format!(
            "descriptor {number} was external when the tree was saved: say --external fd[{number}] and have it open"
        ),
        errno: Errno::EBADF,
    })?;
    sys::fds::duplicate(given, 0).map_err(opening.failed("handing it over"))
}
