//! Interval timers.

use super::{Kernel, Unreadable};
use sys::Tid;

impl Kernel {
    /// When ITIMER_REAL of a thread's process expires, or has expired while its signal waits, in nanoseconds of this
    /// process's CLOCK_MONOTONIC.
    pub(crate) fn real_timer(&mut self, tid: Tid) -> Result<i64, Unreadable> {
        const WHAT: &str = "an interval timer";
        let [Some(task)] = self.tasks(&[tid])?[..] else {
            return Err(Unreadable::Inconsistent(WHAT));
        };
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let signal = field("task_struct", "signal")?;
        let expires = field("signal_struct", "real_timer._softexpires")?;
        let signal = self.word(task.wrapping_add(signal), WHAT)?;
        let expires = self.word(signal.wrapping_add(expires), WHAT)?;
        let [offset, _] = self.clock_offsets()?;
        Ok(expires.cast_signed().saturating_sub(offset))
    }
}
