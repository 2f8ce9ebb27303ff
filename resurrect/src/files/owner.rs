//! Who gets signals about a description. Threads must be there, and signals may come from then on.

use super::{O_ASYNC, Opening};
use crate::ResurrectError;
use crate::calls::{Calls, nr};
use crate::restore::Restore;
use persist_mem::manifest::{Description, SignalOwner};
use std::os::fd::OwnedFd;
use sys::Errno;
use sys::wait::Status;

const F_SETFL: i32 = 4;

/// Gets no signals.
const NOBODY: SignalOwner = SignalOwner {
    kind: 0,
    id: 0,
    uids: [0; 2],
    signal: 0,
};

/// Sets all owners, then `O_ASYNC` by a process that has the descriptor: its number goes into the signal.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for description in &manifest.descriptions {
        let asynchronous = description.flags & O_ASYNC != 0;
        let Some(fd) = restore.files.opened.get(&description.id) else {
            continue;
        };
        let owner = match description.owner {
            Some(owner) => owner,
            None if asynchronous => NOBODY,
            None => continue,
        };
        let done = set_owner(restore, fd, &owner);
        let opening = Opening {
            restore,
            description,
        };
        done.map_err(opening.failed("setting who gets signals"))?;
        if !asynchronous {
            continue;
        }
        let flags = description.flags & (super::SETTABLE | O_ASYNC);
        let Some((holder, fd)) = manifest.holder(description.id) else {
            // In flight: nobody has a number for it yet.
            sys::fds::set_status_flags(fd, flags)
                .map_err(opening.failed("asking for signals about it"))?;
            take_back(restore, description, fd)?;
            continue;
        };
        let keeper = restore.keeper(holder)?;
        let mut calls = Calls::new(holder.pid, "asking for signals about a file", keeper);
        let args = [fd.into(), F_SETFL.into(), flags.into()];
        calls
            .batch()
            .call("asking for signals about a file", nr::FCNTL, args);
        calls.flush()?;
        if let Some(fd) = restore.files.opened.get(&description.id) {
            take_back(restore, description, fd)?;
        }
    }
    Ok(())
}

/// A terminal makes who sets `O_ASYNC` the owner where there is none (drivers/tty/tty_io.c, `__tty_fasync`). One that was opened
/// with that flag has none, and so has one that was taken from its owner since.
fn take_back(
    restore: &Restore<'_>,
    description: &Description,
    fd: &OwnedFd,
) -> Result<(), ResurrectError> {
    let owner = description.owner.unwrap_or(NOBODY);
    if owner.id != 0 {
        return Ok(());
    }
    let done = set_owner(restore, fd, &owner);
    let opening = Opening {
        restore,
        description,
    };
    done.map_err(opening.failed("setting that nobody gets signals"))
}

/// By a child that sees the ids as the processes do.
fn set_owner(restore: &Restore<'_>, fd: &OwnedFd, owner: &SignalOwner) -> sys::Result<()> {
    let set = || match sys::files::set_owner(fd, owner) {
        // Who is gone gets nothing, and would have got nothing.
        Err(Errno::ESRCH) => sys::files::set_owner(fd, &SignalOwner { id: 0, ..*owner }),
        done => done,
    };
    let body = || sys::files::as_user(owner.uids, set).map_or_else(|errno| errno as i32, |()| 0);
    let child = restore.spawn_among(None, body)?;
    match sys::wait::wait_for(child.leader())? {
        Status::Exited(0) => Ok(()),
        Status::Exited(errno) => Err(Errno::from_raw(errno)),
        _ => Err(Errno::ECHILD),
    }
}
