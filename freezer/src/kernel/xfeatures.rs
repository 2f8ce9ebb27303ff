//! Extended registers.

use super::{Kernel, Unreadable};
use sys::Tid;

impl Kernel {
    /// The state components that each leader's process may use (arch/x86/kernel/fpu/xstate.c, struct fpu_state_perm).
    /// None for those that are not there.
    pub(crate) fn permitted_xfeatures(
        &mut self,
        leaders: &[Tid],
    ) -> Result<Vec<Option<u64>>, Unreadable> {
        const PERMITTED: &str = "perm.__state_perm";
        let inside = format!("thread.fpu.{PERMITTED}");
        let at = match self.btf.field("task_struct", &inside) {
            Ok(field) => field.offset,
            // Since Linux 6.16 it lies behind the task (x86_task_fpu).
            Err(_) => self.btf.size_of("task_struct")? + self.btf.field("fpu", PERMITTED)?.offset,
        };
        let tasks = self.tasks(leaders)?;
        self.words_within(&tasks, at)
    }
}
