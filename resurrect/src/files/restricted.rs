//! Files that were opened in a domain of Landlock: once more, by a thread in one that denies as much.

use super::{Opening, flags, located, path};
use crate::ResurrectError;
use crate::restore::Restore;
use nix::sys::stat::Mode;
use std::os::fd::OwnedFd;
use sys::Errno;

/// Opens those that something is denied with again.
pub(super) fn open_all(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for description in manifest.descriptions.iter().filter(|one| one.denied != 0) {
        let opening = Opening {
            restore,
            description,
        };
        let Some(open) = restore.files.opened.get(&description.id) else {
            continue;
        };
        let again = again(&opening, open).map_err(opening.failed("opening it in a domain"))?;
        path::seek(description, &again)?;
        restore.files.opened.insert(description.id, again);
    }
    Ok(())
}

fn again(opening: &Opening<'_, '_>, open: &OwnedFd) -> sys::Result<OwnedFd> {
    let (flags, denied) = (flags(opening.description), opening.description.denied);
    located::through(open, |link| {
        let work = move || {
            sys::landlock::restrict_this_thread_to(&[denied, 0, 0, 0, 0, 0])?;
            nix::fcntl::open(link, flags, Mode::empty())
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, work);
            let thread = thread.map_err(|_| Errno::EAGAIN)?;
            thread.join().unwrap_or(Err(Errno::EFAULT))
        })
    })
}
