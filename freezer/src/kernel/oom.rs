//! What the killer of processes goes by when memory runs out (mm/oom_kill.c).

use super::{Kernel, Unreadable};
use sys::Tid;

impl Kernel {
    /// The lowest `oom_score_adj` that a thread's process may set by itself (fs/proc/base.c, __set_oom_adj).
    pub(crate) fn oom_score_least(&mut self, tid: Tid) -> Result<i16, Unreadable> {
        const WHAT: &str = "the lowest score of a process";
        let [Some(task)] = self.tasks(&[tid])?[..] else {
            return Err(Unreadable::Inconsistent(WHAT));
        };
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let signal = field("task_struct", "signal")?;
        let least = field("signal_struct", "oom_score_adj_min")?;
        let signal = self.word(task.wrapping_add(signal), WHAT)?;
        let least = self.word(signal.wrapping_add(least), WHAT)?;
        let [low, high, ..] = least.to_le_bytes();
        Ok(i16::from_le_bytes([low, high]))
    }
}
