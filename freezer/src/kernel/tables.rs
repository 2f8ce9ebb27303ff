//! Tables that threads have in common with others: where they are.

use super::{Kernel, Unreadable};
use sys::Tid;

impl Kernel {
    /// Addresses of what a field of threads' `task_struct` points to, None for those that are not there.
    pub(crate) fn tables(
        &mut self,
        tids: &[Tid],
        field: &str,
    ) -> Result<Vec<Option<u64>>, Unreadable> {
        let of_task = self.btf.field("task_struct", field)?.offset;
        let tasks = self.tasks(tids)?;
        self.words_within(&tasks, of_task)
    }
}
