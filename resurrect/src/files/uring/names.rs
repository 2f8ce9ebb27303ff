//! Threads have a ring among their own numbers (`IORING_REGISTER_RING_FDS`).

use super::thread;
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::Ring;
use std::os::fd::{AsRawFd, OwnedFd};
use sys::batch::Batch;
use sys::uring::register;

/// Registers a ring with them.
pub(super) fn register(
    restore: &mut Restore<'_>,
    ring: &Ring,
    opened: &OwnedFd,
) -> Result<(), ResurrectError> {
    let doing = "registering a ring of io_uring with a thread";
    let pidfd = restore.self_pidfd.as_raw_fd();
    for (tid, number) in &ring.names {
        let (pid, tracee) = thread(restore, *tid)?;
        let mut batch = Batch::new();
        let args = [pidfd.into(), opened.as_raw_fd().into(), 0.into()];
        let fd = batch.call("taking the ring", nr::PIDFD_GETFD, args);
        let taken = run(pid, doing, tracee, &batch)?;
        let fd = taken.result(fd).unwrap_or(0);
        // struct io_uring_rsrc_update: offset, reserved, data
        let wanted = [u64::from(*number), fd].map(u64::to_le_bytes).concat();
        let mut batch = Batch::new();
        let wanted = batch.data(&wanted);
        let args = [
            fd.into(),
            register::RING_FDS.into(),
            wanted.into(),
            1.into(),
        ];
        batch.call(doing, nr::IO_URING_REGISTER, args);
        batch.call("closing a copy of its ring", nr::CLOSE, [fd.into()]);
        run(pid, doing, tracee, &batch)?;
    }
    Ok(())
}
