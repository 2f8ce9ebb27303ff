//! Which id the next timer of a process gets (timer_create(2)): the kernel counts on behind those that were removed, and
//! shows that to nobody.

use crate::{Frozen, kernel};
use persist_mem::manifest::{Process, State};
use std::collections::BTreeMap;
use sys::{Pid, Tid};

/// Those of processes that have ever had a timer.
#[derive(Debug, Default)]
pub(super) struct NextIds(BTreeMap<Pid, i32>);

impl NextIds {
    /// Of everybody who is stopped. None where the kernel's memory cannot be read.
    pub(super) fn find(frozen: &Frozen) -> NextIds {
        let first = |pid: Pid| Some((pid, frozen.first(pid).ok()?));
        let (pids, tids): (Vec<Pid>, Vec<Tid>) = frozen.pids().filter_map(first).unzip();
        let found = kernel::look(|kernel| kernel.next_timer_ids(&tids)).unwrap_or_default();
        let found = pids.into_iter().zip(found);
        let counted = found.filter_map(|(pid, next)| Some((pid, next.filter(|next| *next > 0)?)));
        NextIds(counted.collect())
    }

    /// Tells a process, where that is not the one behind its last timer.
    pub(super) fn tell(&self, process: &mut Process) {
        let next = self.0.get(&process.pid).copied();
        if let State::Live(live) = &mut process.state {
            let behind_last = live.timers.last().and_then(|timer| timer.id.checked_add(1));
            live.next_timer_id = next.filter(|next| Some(*next) != behind_last);
        }
    }
}
