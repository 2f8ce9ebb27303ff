//! A process under construction.

use std::collections::BTreeMap;
use sys::tracee::Tracee;
use sys::{Pid, Tid};

/// What is in a process's address space beside the range for batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Nothing.
    #[default]
    Empty,
    /// What this process had when it forked it.
    Of(Pid),
    /// Its own mappings and pages.
    Own {
        /// Some of them from the process that forked it.
        inherited: bool,
    },
}

/// A process that is there, stopped.
#[derive(Debug)]
pub(crate) struct Task {
    /// Its leading thread.
    pub(crate) leader: Tracee,
    /// The other threads, by the id they have in their namespace.
    pub(crate) threads: BTreeMap<Tid, Tracee>,
    /// What its memory is.
    pub(crate) memory: Memory,
}

impl Task {
    /// The process's id as this process sees it.
    pub(crate) fn host_pid(&self) -> Pid {
        self.leader.pid()
    }

    /// All its threads, the leader first.
    pub(crate) fn all(&mut self) -> impl Iterator<Item = &mut Tracee> {
        core::iter::once(&mut self.leader).chain(self.threads.values_mut())
    }
}
