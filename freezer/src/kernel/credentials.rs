//! Credentials of threads.

use super::{Kernel, Unreadable};
use std::os::fd::AsFd;
use sys::Tid;

impl Kernel {
    /// `struct cred` of threads, None for those that are not there.
    pub(crate) fn credentials(&mut self, tids: &[Tid]) -> Result<Vec<Option<u64>>, Unreadable> {
        let of_task = self.btf.field("task_struct", "cred")?.offset;
        let tasks = self.tasks(tids)?;
        self.words_within(&tasks, of_task)
    }

    /// The effective user with whose credentials a file of this process was opened.
    pub(crate) fn creator(&mut self, fd: &impl AsFd) -> Result<u32, Unreadable> {
        const WHAT: &str = "who opened a file";
        let field = |structure, path| Ok(self.btf.field(structure, path)?.offset);
        let (cred, user) = (field("file", "f_cred")?, field("cred", "euid.val")?);
        let file = self.own_file(fd.as_fd())?;
        let cred = self.word(file.wrapping_add(cred), WHAT)?;
        Ok(self.word(cred.wrapping_add(user), WHAT)? as u32)
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
