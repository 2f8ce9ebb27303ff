//! What `task_struct` says of threads in a word: where the tables are that they have in common with others, and such.

use super::{Kernel, Unreadable, look};
use std::collections::BTreeMap;
use sys::Tid;

/// A word of the `task_struct` of each of these threads; of none where the kernel's memory cannot be read.
pub(crate) fn words_of(tids: &[Tid], field: &str) -> BTreeMap<Tid, u64> {
    let found = look(|kernel| kernel.tables(tids, field)).unwrap_or_default();
    let found = tids.iter().zip(found);
    found
        .filter_map(|(tid, word)| Some((*tid, word?)))
        .collect()
}

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
