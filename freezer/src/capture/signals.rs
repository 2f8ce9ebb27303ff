//! Signal dispositions and queued signals.

use crate::FreezerError;
use persist_mem::manifest::{QueuedSignal, SigAction};
use sys::batch::{Batch, Buffer, Output};
use sys::{Pid, Tid, ptrace};

const RT_SIGACTION: i64 = 13;
const SIGNALS: i32 = 64;
const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;

/// Where the 64 dispositions are written, signal 1 first.
pub(super) struct Asked(Vec<Buffer>);

/// No file of `/proc` shows handlers, so they are asked for inside.
pub(super) fn ask(batch: &mut Batch) -> Asked {
    let mut buffers = Vec::new();
    for signal in 1..=SIGNALS {
        let old = batch.space(32);
        buffers.push(old);
        if signal != SIGKILL && signal != SIGSTOP {
            let args = [signal.into(), 0.into(), old.into(), 8.into()];
            batch.call("asking for a signal action", RT_SIGACTION, args);
        }
    }
    Asked(buffers)
}

/// All 64 dispositions.
pub(super) fn actions(Asked(buffers): Asked, out: &Output) -> Vec<SigAction> {
    let action = |buffer| SigAction {
        handler: out.u64(buffer, 0),
        flags: out.u64(buffer, 1),
        restorer: out.u64(buffer, 2),
        mask: out.u64(buffer, 3),
    };
    buffers.into_iter().map(action).collect()
}

/// The queue of a thread, or (`shared`) of its process.
pub(super) fn pending(pid: Pid, tid: Tid, shared: bool) -> Result<Vec<QueuedSignal>, FreezerError> {
    let found = ptrace::peek_siginfo(tid, shared)
        .map_err(FreezerError::call(pid, "reading its queued signals"))?;
    Ok(found
        .iter()
        .map(|info| QueuedSignal(info.to_vec()))
        .collect())
}
