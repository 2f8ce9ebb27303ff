//! POSIX message queues: several descriptions, one queue.

use super::Opening;
use crate::ResurrectError;
use crate::restore::Restore;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown};
use persist_mem::manifest::{Manifest, PosixQueue};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use sys::{Errno, mqueue};

const O_RDWR: i32 = 2;
const O_NONBLOCK: i32 = 0o4000;

/// The queues, open here until every description is: they keep their names till then, since a
/// description is opened by name. (Through /proc it would get `O_LARGEFILE`, which queues have not.)
pub(super) type Queues = BTreeMap<u32, OwnedFd>;

/// Finds every queue by its name, or makes it.
pub(super) fn make(manifest: &Manifest) -> Result<Queues, ResurrectError> {
    let mut queues = Queues::new();
    for queue in &manifest.posix_queues {
        queues.insert(queue.id, make_one(queue)?);
    }
    Ok(queues)
}

/// Unlinks those that were.
pub(super) fn finish(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    restore.files.queues.clear();
    let queues = restore.manifest.posix_queues.iter();
    queues.filter(|queue| queue.unlinked).try_for_each(|queue| {
        let name = name(queue)?;
        mqueue::unlink(&name).map_err(failed(queue, "unlinking it"))
    })
}

fn failed(queue: &PosixQueue, doing: &'static str) -> impl FnOnce(Errno) -> ResurrectError + use<> {
    let what = format!("message queue {}", String::from_utf8_lossy(&queue.name));
    move |errno| ResurrectError::Description { what, doing, errno }
}

fn name(queue: &PosixQueue) -> Result<CString, ResurrectError> {
    CString::new(queue.name.as_slice()).map_err(|_| failed(queue, "naming it")(Errno::EINVAL))
}

fn make_one(queue: &PosixQueue) -> Result<OwnedFd, ResurrectError> {
    let failed = |doing| failed(queue, doing);
    let name = name(queue)?;
    if !queue.unlinked
        && let Ok(there) = mqueue::open(&name, O_RDWR | O_NONBLOCK, None)
    {
        // It has outlived its users, and is as others have left it.
        return Ok(there);
    }
    let made =
        mqueue::open(&name, O_RDWR | O_NONBLOCK, Some(queue.sizes)).map_err(failed("making it"))?;
    for (priority, text) in &queue.messages {
        mqueue::send(&made, *priority, text).map_err(failed("sending its messages"))?;
    }
    fchmod(&made, Mode::from_bits_retain(queue.mode)).map_err(failed("setting its mode"))?;
    let (uid, gid) = (Uid::from_raw(queue.owner.0), Gid::from_raw(queue.owner.1));
    fchown(&made, Some(uid), Some(gid)).map_err(failed("setting its owner"))?;
    Ok(made)
}

pub(super) fn open(opening: &Opening<'_, '_>, queue: u32) -> Result<OwnedFd, ResurrectError> {
    let queues = &opening.restore.manifest.posix_queues;
    let found = queues.iter().find(|found| found.id == queue);
    let found = found.ok_or_else(|| opening.failed("finding it")(Errno::ENOENT))?;
    let flags = (opening.flags() - OFlag::O_NOCTTY).bits();
    mqueue::open(&name(found)?, flags, None).map_err(opening.failed("opening it"))
}
