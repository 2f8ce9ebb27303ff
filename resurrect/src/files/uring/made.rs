//! Rings that are made by their process: what is registered counts for its memory (`VmPin`, and buffers are cloned only
//! between rings of one memory), and a thread of the kernel's that takes entries (`IORING_SETUP_SQPOLL`) belongs to it,
//! has its memory and its descriptors.

use super::wanted;
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::{DescriptionKind, Ring};
use std::os::fd::{AsFd, OwnedFd};
use sys::batch::Batch;
use sys::uring::Params;
use sys::{Errno, Pid, process};

/// Has processes make their rings.
pub(crate) fn open(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for description in &manifest.descriptions {
        if let DescriptionKind::Ring(ring) = &description.kind
            && let Some(maker) = maker(restore, ring)
        {
            let made = open_one(restore, ring, maker)?;
            restore.files.opened.insert(description.id, made);
        }
    }
    Ok(())
}

/// The process that makes a ring; of those that share their memory, the one that has it first.
fn maker(restore: &Restore<'_>, ring: &Ring) -> Option<Pid> {
    let maker = ring.poller.map(|poller| poller.pid);
    if maker.is_some() {
        return maker;
    }
    let (pid, live) = restore.lives().find(|(pid, _)| Some(*pid) == ring.maker)?;
    Some(live.mm_of.unwrap_or(pid))
}

fn open_one(restore: &mut Restore<'_>, ring: &Ring, pid: Pid) -> Result<OwnedFd, ResurrectError> {
    const DOING: &str = "making a ring of io_uring";
    let failed = || ResurrectError::call(pid, DOING);
    let wanted = Params::new(ring.completions, wanted(ring));
    let wanted = match ring.poller {
        Some(poller) => wanted.polled(poller.processor, poller.idle),
        None => wanted,
    };
    let task = restore.task(pid)?;
    let host_pid = task.host_pid();
    let first = &mut task.first;
    let mut batch = Batch::new();
    let params = batch.data(&wanted.bytes());
    let args = [ring.entries.into(), params.into()];
    let fd = batch.call(DOING, nr::IO_URING_SETUP, args);
    let output = run(pid, DOING, first, &batch)?;
    let fd = output.result(fd).map_err(failed())?;
    let params = Params::of_bytes(output.bytes(params));
    let pidfd = process::pidfd_open(host_pid).map_err(failed())?;
    let made = process::pidfd_getfd(pidfd.as_fd(), fd as i32).map_err(failed())?;
    let mut batch = Batch::new();
    batch.call("closing a copy of its ring", nr::CLOSE, [fd.into()]);
    run(pid, DOING, first, &batch)?;
    match params.sizes() == (ring.entries, ring.completions) && params.offsets() == ring.offsets {
        true => Ok(made),
        false => Err(failed()(Errno::EINVAL)),
    }
}
