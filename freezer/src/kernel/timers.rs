//! Timers of processes.

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

    /// The id that the next timer of each thread's process gets, or a later one where that is in use
    /// (kernel/time/posix-timers.c, posix_timer_add). None for those that are not there.
    pub(crate) fn next_timer_ids(&mut self, tids: &[Tid]) -> Result<Vec<Option<i32>>, Unreadable> {
        let next = self
            .btf
            .field("signal_struct", "next_posix_timer_id")
            // Before Linux 6.4.
            .or_else(|_| self.btf.field("signal_struct", "posix_timer_id"))?
            .offset;
        let signals = self.tables(tids, "signal")?;
        let found = self.words_within(&signals, next)?;
        let low = |word: u64| {
            let [a, b, c, d, ..] = word.to_le_bytes();
            i32::from_le_bytes([a, b, c, d])
        };
        Ok(found.into_iter().map(|word| word.map(low)).collect())
    }
}
