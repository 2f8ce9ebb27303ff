//! Resource limits (getrlimit(2)).

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use sys::batch::Batch;

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
            if (output.u64(now, 0), output.u64(now, 1)) == (*soft, *hard) {
                continue;
            }
            let mut bytes = soft.to_le_bytes().to_vec();
            bytes.extend_from_slice(&hard.to_le_bytes());
            let new = batch.data(&bytes);
            let args = [0.into(), which.into(), new.into(), 0.into()];
            batch.call("setting a limit", nr::PRLIMIT64, args);
        }
        run(pid, "setting its limits", first, &batch)?;
    }
    Ok(())
}
