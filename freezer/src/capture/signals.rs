//! Signal dispositions and queued signals.

use crate::FreezerError;
use crate::proc::Status;
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

/// The queue of a thread, or (`shared`) of its process, of which `status` tells.
pub(super) fn pending(
    (pid, tid): (Pid, Tid),
    status: &Status,
    shared: bool,
) -> Result<Vec<QueuedSignal>, FreezerError> {
    let found = ptrace::peek_siginfo(tid, shared)
        .map_err(FreezerError::call(pid, "reading its queued signals"))?;
    let queued: Vec<_> = found
        .iter()
        .map(|info| QueuedSignal(info.to_vec()))
        .collect();
    let set = status.mask(if shared { "ShdPnd" } else { "SigPnd" });
    Ok(with_bare(queued, set))
}

/// Adds those that are pending without a siginfo, since there was no room in the queue (`RLIMIT_SIGPENDING`):
/// they come with one of zeros (kernel/signal.c, collect_signal).
pub(super) fn with_bare(mut queued: Vec<QueuedSignal>, set: u64) -> Vec<QueuedSignal> {
    for signal in (1..=SIGNALS).filter(|signal| *signal != SIGKILL && set >> (signal - 1) & 1 != 0)
    {
        let number = signal.to_le_bytes();
        if !queued.iter().any(|info| info.0.starts_with(&number)) {
            let mut info = vec![0; ptrace::SIGINFO_SIZE];
            info[..4].copy_from_slice(&number);
            queued.push(QueuedSignal(info));
        }
    }
    queued
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_had_no_room_in_the_queue_is_pending_too() {
        let info = |signal: i32| {
            let mut info = vec![0; ptrace::SIGINFO_SIZE];
            info[..4].copy_from_slice(&signal.to_le_bytes());
            QueuedSignal(info)
        };
        let queued = vec![info(40), info(40)];
        let found = with_bare(queued.clone(), 1 << 39 | 1 << 9 | 1 << 8);
        assert_eq!(found, [info(40), info(40), info(10)]);
        assert_eq!(with_bare(queued.clone(), 0), queued);
    }
}
