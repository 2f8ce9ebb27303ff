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
    /// The thread that acts for the process: its leader, or another one that goes on when that does not.
    pub(crate) first: Tracee,
    /// The other threads, by the id they have in their namespace.
    pub(crate) threads: BTreeMap<Tid, Tracee>,
    /// Its leader, when it shall end before the others go on.
    pub(crate) ending: Option<Tracee>,
    /// Its threads that wait in vfork(2) for children.
    pub(crate) in_vfork: BTreeMap<Tid, Tracee>,
    /// All of them do: `first` is made for this, and ends before they go on.
    pub(crate) helped: bool,
    /// Its tracer has it again: its threads are only named here.
    pub(crate) handed_over: bool,
    /// What its memory is.
    pub(crate) memory: Memory,
    /// How many layers of Landlock its threads are made with.
    pub(crate) layers: usize,
}

impl Task {
    /// The process's id as this process sees it.
    pub(crate) fn host_pid(&self) -> Pid {
        self.first.pid()
    }

    /// All its threads, a leader that ends last.
    pub(crate) fn first_to_last(&mut self) -> impl Iterator<Item = &mut Tracee> {
        let others = self.threads.values_mut();
        core::iter::once(&mut self.first)
            .chain(others)
            .chain(&mut self.ending)
    }

    /// All its threads that go on and can be worked in, the one that acts for it first.
    pub(crate) fn all(&mut self) -> impl Iterator<Item = &mut Tracee> {
        let first = (!self.helped).then_some(&mut self.first);
        let all = first.into_iter().chain(self.threads.values_mut());
        all.filter(|_| !self.handed_over)
    }

    /// Its threads in the same order, when its tracer has them.
    pub(crate) fn handed_over(&self) -> impl Iterator<Item = Tid> {
        let all = core::iter::once(&self.first).chain(self.threads.values());
        let all = all.filter(|_| self.handed_over);
        all.map(Tracee::tid)
    }
}
