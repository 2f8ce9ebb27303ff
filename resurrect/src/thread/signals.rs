//! Queued signals of threads and processes.

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::process::signals::forget_children;
use crate::restore::Restore;
use persist_mem::manifest::{Live, QueuedSignal};
use sys::Pid;
use sys::batch::{Batch, Buffer};

fn signal(queued: &QueuedSignal) -> i32 {
    queued
        .0
        .first_chunk::<4>()
        .map_or(0, |bytes| i32::from_le_bytes(*bytes))
}

/// Queues them again, in order.
pub(crate) fn queue(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    // Leaders that end have done it; for who waits in vfork(2) there are none.
    for (pid, live) in restore
        .lives()
        .filter(|(_, live)| live.ended_leader.is_none() && live.in_vfork.is_none())
    {
        let mut batch = Batch::new();
        of_process(&mut batch, pid, live);
        run(
            pid,
            "queueing its signals",
            &mut restore.task(pid)?.first,
            &batch,
        )?;
    }
    super::each(restore, |pid, tracee, thread| {
        let mut batch = Batch::new();
        for queued in &thread.pending {
            let info = put(&mut batch, queued);
            let args = [
                pid.0.into(),
                thread.tid.0.into(),
                signal(queued).into(),
                info.into(),
            ];
            batch.call("queueing a signal", nr::RT_TGSIGQUEUEINFO, args);
        }
        if batch.is_empty() {
            return Ok(());
        }
        run(pid, "queueing a thread's signals", tracee, &batch).map(drop)
    })
}

/// Those of a process as a whole, by its leader.
pub(super) fn of_process(batch: &mut Batch, pid: Pid, live: &Live) {
    forget_children(live, batch);
    for queued in &live.pending {
        let info = put(batch, queued);
        let args = [pid.0.into(), signal(queued).into(), info.into()];
        batch.call("queueing a signal", nr::RT_SIGQUEUEINFO, args);
    }
}

fn put(batch: &mut Batch, queued: &QueuedSignal) -> Buffer {
    let mut bytes = queued.0.clone();
    bytes.resize(sys::ptrace::SIGINFO_SIZE, 0);
    batch.data(&bytes)
}
