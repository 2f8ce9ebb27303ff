//! userfaultfd(2): whose page faults a descriptor is for (fs/userfaultfd.c, `struct userfaultfd_ctx`).

use super::{Kernel, Unreadable};

const WRONG: Unreadable = Unreadable::Inconsistent("a userfaultfd");
/// `UFFD_FEATURE_INITIALIZED` (fs/userfaultfd.c): it was told which features are wanted.
const INITIALIZED: u64 = 1 << 31;
/// include/uapi/linux/userfaultfd.h
const UFFD_USER_MODE_ONLY: u64 = 1;

/// What faults of some memory are told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FaultHandler {
    /// Where the kernel has it.
    pub(crate) address: u64,
    /// `struct mm_struct` of the memory that it is for.
    pub(crate) memory: u64,
    /// Faults of the kernel's own are not told (`UFFD_USER_MODE_ONLY`).
    pub(crate) user_only: bool,
    /// `UFFD_FEATURE_*`, None of one that was not set up yet (`UFFDIO_API`).
    pub(crate) features: Option<u64>,
}

impl Kernel {
    /// What an open file is that is known to be one, by its `struct file`.
    pub(crate) fn fault_handler(&mut self, file: u64) -> Result<FaultHandler, Unreadable> {
        let found = self.fields(file, "file", &["private_data"])?;
        let address = found.first().copied().filter(|at| *at != 0).ok_or(WRONG)?;
        let fields = ["mm", "flags", "features"];
        let [memory, flags, features] = self.fields(address, "userfaultfd_ctx", &fields)?[..]
        else {
            return Err(WRONG);
        };
        Ok(FaultHandler {
            address,
            memory,
            user_only: flags & UFFD_USER_MODE_ONLY != 0,
            features: (features & INITIALIZED != 0).then_some(features & !INITIALIZED),
        })
    }

    /// `struct mm_struct` of a thread.
    pub(crate) fn memory_of(&mut self, task: u64) -> Result<u64, Unreadable> {
        let found = self.fields(task, "task_struct", &["mm"])?;
        found.first().copied().ok_or(WRONG)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{look, readable};
    use std::os::fd::AsFd;

    #[test]
    fn it_is_for_the_memory_of_its_maker() {
        let Ok(made) = sys::userfault::make() else {
            return;
        };
        let found = look(|kernel| {
            let file = kernel.own_file(made.as_fd())?;
            let task = kernel.own_task()?;
            Ok((kernel.fault_handler(file)?, kernel.memory_of(task)?))
        });
        let Some((handler, memory)) = readable(found) else {
            return;
        };
        assert_eq!(handler.memory, memory);
        assert!(handler.user_only);
        assert_eq!(handler.features, None);
        sys::userfault::set_up(&made, 0).unwrap();
        let again = look(|kernel| {
            let file = kernel.own_file(made.as_fd())?;
            kernel.fault_handler(file)
        });
        assert_eq!(again.unwrap().features, Some(0));
    }
}
