//! Requests that workers of the kernel wait in.

use crate::kernel::{self, AtWork};
use crate::proc;
use std::collections::BTreeSet;
use sys::{Pid, Tid};

/// Those of a process, as far as they are submitted again by a restore.
pub(crate) fn waiting(pid: Pid) -> Vec<AtWork> {
    let sleeps = |tid: &Tid| {
        let stat = proc::Stat::read(pid, &format!("task/{tid}/stat"));
        stat.is_ok_and(|stat| stat.state() == 'S')
    };
    let threads = proc::threads(pid).unwrap_or_default();
    let (workers, others): (Vec<Tid>, Vec<Tid>) = threads
        .into_iter()
        .partition(|tid| proc::is_worker(pid, *tid));
    let workers: Vec<Tid> = workers.into_iter().filter(sleeps).collect();
    if workers.is_empty() {
        return Vec::new();
    }
    let found = kernel::look(|kernel| {
        let mut held = BTreeSet::new();
        for task in kernel.tasks(&others)?.into_iter().flatten() {
            held.extend(kernel.files(task)?.into_iter().map(|(_, file)| file));
        }
        let tasks: Vec<u64> = kernel.tasks(&workers)?.into_iter().flatten().collect();
        let mut found = kernel.at_work(&tasks)?;
        found.retain(|it| held.contains(&it.requests[0].file));
        // Who has gone on meanwhile is at something else.
        let still = kernel.ring_works(&tasks)?;
        found.retain(|it| still.contains(&it.work));
        Ok(found)
    });
    let all = workers.iter().all(sleeps);
    found.map_or(Vec::new(), |found| if all { found } else { Vec::new() })
}
