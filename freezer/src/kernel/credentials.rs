//! Credentials of threads.

use super::{Kernel, Unreadable};
use sys::Tid;

impl Kernel {
    /// `struct cred` of threads, None for those that are not there.
    pub(crate) fn credentials(&mut self, tids: &[Tid]) -> Result<Vec<Option<u64>>, Unreadable> {
        let of_task = self.btf.field("task_struct", "cred")?.offset;
        let tasks = self.tasks(tids)?;
        self.words_within(&tasks, of_task)
    }

    /// The word at this offset of structures, None for those that are not there.
    pub(crate) fn words_within(
        &mut self,
        structures: &[Option<u64>],
        offset: u64,
    ) -> Result<Vec<Option<u64>>, Unreadable> {
        let places = structures.iter().flatten();
        let places: Vec<u64> = places.map(|at| at.wrapping_add(offset)).collect();
        let mut found = self.words(&places)?.into_iter();
        let one = |structure: &Option<u64>| structure.and_then(|_| found.next().flatten());
        Ok(structures.iter().map(one).collect())
    }
}
