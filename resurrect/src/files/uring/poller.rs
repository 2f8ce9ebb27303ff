//! Rings from which a thread of the kernel's takes entries (`IORING_SETUP_SQPOLL`). It belongs to the process that makes
//! the ring, has its memory and its descriptors.

use super::wanted;
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::{DescriptionKind, Ring, RingPoller};
use std::os::fd::{AsFd, OwnedFd};
use sys::batch::Batch;
use sys::uring::Params;
use sys::{Errno, process};

/// Has processes make these rings.
pub(crate) fn open(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let manifest = restore.manifest;
    for description in &manifest.descriptions {
        if let DescriptionKind::Ring(ring) = &description.kind
            && let Some(poller) = ring.poller
        {
            let made = open_one(restore, ring, poller)?;
            restore.files.opened.insert(description.id, made);
        }
    }
    Ok(())
}

fn open_one(
    restore: &mut Restore<'_>,
    ring: &Ring,
    poller: RingPoller,
) -> Result<OwnedFd, ResurrectError> {
    const DOING: &str = "making a ring of io_uring with a thread";
    let failed = || ResurrectError::call(poller.pid, DOING);
    let wanted = Params::new(ring.completions, wanted(ring));
    let wanted = wanted.polled(poller.processor, poller.idle).bytes();
    let task = restore.task(poller.pid)?;
    let host_pid = task.host_pid();
    let first = &mut task.first;
    let mut batch = Batch::new();
    let params = batch.data(&wanted);
    let args = [ring.entries.into(), params.into()];
    let fd = batch.call(DOING, nr::IO_URING_SETUP, args);
    let output = run(poller.pid, DOING, first, &batch)?;
    let fd = output.result(fd).map_err(failed())?;
    let params = Params::of_bytes(output.bytes(params));
    let pidfd = process::pidfd_open(host_pid).map_err(failed())?;
    let made = process::pidfd_getfd(pidfd.as_fd(), fd as i32).map_err(failed())?;
    let mut batch = Batch::new();
    batch.call("closing a copy of its ring", nr::CLOSE, [fd.into()]);
    run(poller.pid, DOING, first, &batch)?;
    match params.sizes() == (ring.entries, ring.completions) && params.offsets() == ring.offsets {
        true => Ok(made),
        false => Err(failed()(Errno::EINVAL)),
    }
}
