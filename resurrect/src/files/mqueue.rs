//! POSIX message queues: several descriptions, one queue.

use super::Opening;
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::error::Subject;
use crate::restore::Restore;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};
use persist_mem::manifest::{
    Description, DescriptionId, DescriptionKind, Descriptor, Manifest, Notification, Notify,
    PosixQueue,
};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use sys::batch::Batch;
use sys::{Errno, mqueue};

const O_RDWR: i32 = 2;
const O_NONBLOCK: i32 = 0o4000;

/// The queues that have a name, open here until every description is. (Through /proc a description would get
/// `O_LARGEFILE`, which queues have not, so it is opened by name.)
pub(super) type Queues = BTreeMap<u32, OwnedFd>;

/// Finds every queue by its name, or makes it. Those whose name was removed come first, with all their
/// descriptions: others may have the name since.
pub(super) fn make(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let queues = &restore.manifest.posix_queues;
    for queue in queues.iter().filter(|queue| queue.unlinked) {
        make_unlinked(restore, queue)?;
    }
    for queue in queues.iter().filter(|queue| !queue.unlinked) {
        let made = make_one(queue)?;
        restore.files.queues.insert(queue.id, made);
    }
    Ok(())
}

/// Makes a queue under its old name, or under another one where that is taken, opens all its descriptions, and
/// removes the name.
fn make_unlinked(restore: &mut Restore<'_>, queue: &PosixQueue) -> Result<(), ResurrectError> {
    let (mut name, made) = (name(queue)?, create(&name(queue)?, queue));
    let made = match made {
        Err(Errno::EEXIST) => {
            let other = format!(".kupgrade-{}-{}", std::process::id(), queue.id);
            name = CString::new(other).map_err(|_| failed(queue, "naming it")(Errno::EINVAL))?;
            create(&name, queue)
        }
        made => made,
    };
    let made = made.map_err(failed(queue, "making it"))?;
    let opened = fill(&made, queue).and_then(|()| open_all(restore, queue, &name));
    mqueue::unlink(&name).map_err(failed(queue, "unlinking it"))?;
    restore.files.opened.extend(opened?);
    Ok(())
}

fn open_all(
    restore: &Restore<'_>,
    queue: &PosixQueue,
    name: &CStr,
) -> Result<Vec<(DescriptionId, OwnedFd)>, ResurrectError> {
    let of_it = |description: &&Description| matches!(description.kind, DescriptionKind::MessageQueue { queue: id } if id == queue.id);
    let descriptions = restore.manifest.descriptions.iter().filter(of_it);
    let opened = descriptions.map(|description| {
        let opening = Opening {
            restore,
            description,
        };
        open_by(&opening, name).map(|fd| (description.id, fd))
    });
    opened.collect()
}

/// Removes the names of all queues.
pub(crate) fn remove_all(manifest: &Manifest) {
    for queue in manifest.posix_queues.iter().filter(|queue| !queue.unlinked) {
        if let Ok(name) = CString::new(queue.name.as_slice()) {
            // What was not made cannot be removed.
            let _ = mqueue::unlink(&name);
        }
    }
}

/// Lets go of the queues.
pub(super) fn finish(restore: &mut Restore<'_>) {
    restore.files.queues.clear();
}

fn failed(queue: &PosixQueue, doing: &'static str) -> impl FnOnce(Errno) -> ResurrectError + use<> {
    let what = format!("message queue {}", String::from_utf8_lossy(&queue.name));
    let subject = Some(Subject::Queue(queue.id));
    move |errno| ResurrectError::Description {
        subject,
        what,
        doing,
        errno,
    }
}

fn name(queue: &PosixQueue) -> Result<CString, ResurrectError> {
    CString::new(queue.name.as_slice()).map_err(|_| failed(queue, "naming it")(Errno::EINVAL))
}

fn make_one(queue: &PosixQueue) -> Result<OwnedFd, ResurrectError> {
    let name = name(queue)?;
    if let Ok(there) = mqueue::open(&name, O_RDWR | O_NONBLOCK, None) {
        // It has outlived its users, and is as others have left it.
        return Ok(there);
    }
    let made = create(&name, queue).map_err(failed(queue, "making it"))?;
    fill(&made, queue)?;
    Ok(made)
}

fn create(name: &CStr, queue: &PosixQueue) -> sys::Result<OwnedFd> {
    mqueue::open(name, O_RDWR | O_NONBLOCK, Some(queue.sizes))
}

/// Messages, mode and owner.
fn fill(made: &OwnedFd, queue: &PosixQueue) -> Result<(), ResurrectError> {
    let failed = |doing| failed(queue, doing);
    for (priority, text) in &queue.messages {
        mqueue::send(made, *priority, text).map_err(failed("sending its messages"))?;
    }
    fchmod(made, Mode::from_bits_retain(queue.mode)).map_err(failed("setting its mode"))?;
    let (uid, gid) = (Uid::from_raw(queue.owner.0), Gid::from_raw(queue.owner.1));
    fchown(made, Some(uid), Some(gid)).map_err(failed("setting its owner"))
}

pub(super) fn open(opening: &Opening<'_, '_>, queue: u32) -> Result<OwnedFd, ResurrectError> {
    let queues = &opening.restore.manifest.posix_queues;
    let found = queues.iter().find(|found| found.id == queue);
    let found = found.ok_or_else(|| opening.failed("finding it")(Errno::ENOENT))?;
    open_by(opening, &name(found)?)
}

fn open_by(opening: &Opening<'_, '_>, name: &CStr) -> Result<OwnedFd, ResurrectError> {
    // O_CLOEXEC is there when the description shows it.
    let kept = OFlag::from_bits_retain(opening.description.flags.cast_signed()) & OFlag::O_CLOEXEC;
    let flags = opening.flags() - OFlag::O_NOCTTY - OFlag::O_CLOEXEC;
    let flags = flags | kept;
    let opened = mqueue::open(name, flags.bits(), None).map_err(opening.failed("opening it"))?;
    // mq_open(2) does not set it, and open(2) always does.
    if opening.description.flags & super::O_LARGEFILE != 0
        && let Some(by_path) = open_by_path(name, flags, &opened)
    {
        return Ok(by_path);
    }
    Ok(opened)
}

/// Opens a queue by the path that it has where the file system of queues is mounted (mq_overview(7)).
fn open_by_path(name: &CStr, flags: OFlag, queue: &OwnedFd) -> Option<OwnedFd> {
    let name = OsStr::from_bytes(name.to_bytes());
    let path = Path::new("/dev/mqueue").join(name);
    let opened = openat(AT_FDCWD, &path, flags | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let (one, other) = (fstat(queue).ok()?, fstat(&opened).ok()?);
    ((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)).then_some(opened)
}

/// Registers every process again that was to be told of messages.
pub(crate) fn notify(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for queue in &manifest.posix_queues {
        // On the same kernel one that is not of the tree is registered still.
        if let Some(wanted) = queue.notification
            && restore.tasks.contains_key(&wanted.owner)
        {
            register(restore, queue, wanted)?;
        }
    }
    Ok(())
}

fn register(
    restore: &mut Restore<'_>,
    queue: &PosixQueue,
    wanted: Notification,
) -> Result<(), ResurrectError> {
    const DOING: &str = "asking to be notified of messages";
    const SIGEV_THREAD: i32 = 2;
    let failed = |errno| failed(queue, DOING)(errno);
    let manifest = restore.manifest;
    let is_it = |entry: &&Descriptor| {
        let description = manifest.description(entry.description);
        description.is_some_and(|found| {
            matches!(found.kind, DescriptionKind::MessageQueue { queue: id } if id == queue.id)
        })
    };
    let mut of_owner = manifest.tables().filter(|table| table.pid == wanted.owner);
    let found = of_owner.find_map(|table| Some((table, table.files.iter().find(is_it)?.fd)));
    let (table, fd) = found.ok_or_else(|| failed(Errno::EBADF))?;
    let mut batch = Batch::new();
    // struct sigevent: value, signal, kind, the rest unused.
    let mut event = [0; 64];
    let mut put = |value: u64, signal: i32, kind: i32| {
        event[..8].copy_from_slice(&value.to_le_bytes());
        event[8..12].copy_from_slice(&signal.to_le_bytes());
        event[12..16].copy_from_slice(&kind.to_le_bytes());
    };
    match wanted.notify {
        Notify::Nothing => put(0, 0, 1),
        Notify::Signal { signal, value } => put(value, signal, 0),
        Notify::Message { socket, .. } => put(0, socket, SIGEV_THREAD),
    }
    let event = batch.data(&event);
    if let Notify::Message { cookie, .. } = wanted.notify {
        let cookie = batch.data(&cookie);
        batch.pointer(event, 0, cookie);
    }
    batch.call(DOING, nr::MQ_NOTIFY, [fd.into(), event.into()]);
    run(table.pid, DOING, restore.keeper(table)?, &batch).map(drop)
}
