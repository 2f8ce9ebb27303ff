//! I/O contexts that are shared (`CLONE_IO`): who sets an I/O priority (ioprio_set(2)) sets it for all of them.
//!
//! kcmp(2) takes two threads without a context for sharers of one, so the kernel's memory is read.

use crate::Frozen;
use crate::kernel;
use persist_mem::manifest::{Process, State};
use std::collections::BTreeMap;
use sys::{Pid, Tid};

/// Contexts of threads, 0 for none.
#[derive(Debug, Default)]
pub(super) struct Contexts(BTreeMap<Tid, u64>);

impl Contexts {
    /// Of everybody who is stopped. None are known where the kernel's memory cannot be read.
    pub(super) fn find(frozen: &Frozen) -> Contexts {
        let threads = frozen.pids().flat_map(|pid| frozen.threads(pid));
        let tids: Vec<Tid> = threads.map(|(tid, _)| tid).collect();
        let found = kernel::look(|kernel| {
            let field = kernel.btf().field("task_struct", "io_context")?.offset;
            let tasks = kernel.tasks(&tids)?;
            kernel.words_within(&tasks, field)
        });
        let found = found.unwrap_or_default().into_iter().zip(tids);
        Contexts(found.filter_map(|(at, tid)| Some((tid, at?))).collect())
    }

    fn same(&self, one: Tid, two: Tid) -> bool {
        let of = |tid| self.0.get(&tid).copied().filter(|at| *at != 0);
        of(one).is_some() && of(one) == of(two)
    }

    /// Says of a process whether it shares its parent's, and of its threads whether they share its first one's.
    pub(super) fn tell(&self, process: &mut Process) {
        let (pid, parent): (Pid, Pid) = (process.pid, process.ppid);
        let State::Live(live) = &mut process.state else {
            return;
        };
        live.shares_io = self.same(pid.leader(), parent.leader());
        let Some((first, others)) = live.threads.split_first_mut() else {
            return;
        };
        for thread in others {
            thread.shares_io = self.same(first.tid, thread.tid);
        }
    }
}
