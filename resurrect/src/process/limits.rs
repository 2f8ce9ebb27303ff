//! Resource limits (getrlimit(2)).

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::Live;
use sys::batch::Batch;

/// `RLIMIT_SIGPENDING`
const SIGPENDING: usize = 11;

/// Sets those that differ from what a new process has.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives() {
        let first = &mut restore.task(pid)?.first;
        let mut batch = Batch::new();
        let asked: Vec<_> = (0..live.limits.len())
            .map(|which| {
                let now = batch.space(16);
                let args = [0.into(), which.into(), 0.into(), now.into()];
                batch.call("asking for a limit", nr::PRLIMIT64, args);
                now
            })
            .collect();
        let output = run(pid, "asking for its limits", first, &batch)?;
        let mut batch = Batch::new();
        for (which, ((soft, hard), now)) in live.limits.iter().zip(asked).enumerate() {
            let now = (output.u64(now, 0), output.u64(now, 1));
            let wanted = match which {
                // What is queued may be more than its process may queue by now.
                SIGPENDING => (now.0.max(*soft), now.1.max(*hard)),
                _ => (*soft, *hard),
            };
            if now != wanted {
                put(&mut batch, which, wanted);
            }
        }
        run(pid, "setting its limits", first, &batch)?;
    }
    Ok(())
}

/// Sets the limit that is left when signals are queued.
pub(crate) fn lower_queued_signals(batch: &mut Batch, live: &Live) {
    if let Some(limit) = live.limits.get(SIGPENDING) {
        put(batch, SIGPENDING, *limit);
    }
}

fn put(batch: &mut Batch, which: usize, (soft, hard): (u64, u64)) {
    let mut bytes = soft.to_le_bytes().to_vec();
    bytes.extend_from_slice(&hard.to_le_bytes());
    let new = batch.data(&bytes);
    let args = [0.into(), which.into(), new.into(), 0.into()];
    batch.call("setting a limit", nr::PRLIMIT64, args);
}
