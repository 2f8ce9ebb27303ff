//! Descriptor tables of threads that have left their process's (unshare(2), clone(2) without `CLONE_FILES`).
//!
//! `/proc/TID` shows such a table, though it is not listed (fs/proc/base.c, proc_pid_lookup takes any thread id),
//! and a pidfd of the thread leads into it (`PIDFD_THREAD`, Linux 6.9; before it see `sent.rs`). So a table is named by an id here: that
//! of its process, or that of the first thread that has it.

use super::Table;
use crate::proc;
use crate::tables::threads;
use crate::{FreezerError, Refusal};
use persist_mem::manifest::{Live, ThreadFiles};
use std::cmp::Ordering;
use std::os::unix::fs::MetadataExt;
use sys::process::{KcmpKind, kcmp};
use sys::{Pid, Tid};

/// Tables that threads of a process have, and it as a whole has not: those who share each.
pub(crate) fn groups(pid: Pid, representative: Tid, threads: &[Tid]) -> Vec<Vec<Tid>> {
    threads::groups(pid, representative, threads, KcmpKind::Files)
}

/// The tables of a process, its own first.
pub(crate) fn tables_of(pid: Pid) -> Vec<Pid> {
    let mut found = vec![pid];
    found.extend(
        first_of_each(pid, KcmpKind::Files)
            .into_iter()
            .map(|tid| Pid(tid.0)),
    );
    found
}

/// The first thread of each group that has a table of its own; none when the process has ended.
pub(crate) fn first_of_each(pid: Pid, kind: KcmpKind) -> Vec<Tid> {
    /// Links of a directory without directories in it (fs/proc/base.c, proc_task_getattr adds the threads).
    const EMPTY: u64 = 2;
    let task = std::fs::metadata(format!("/proc/{pid}/task"));
    if task.map_or(0, |task| task.nlink()) <= EMPTY + 1 {
        return Vec::new();
    }
    let Some((first, all)) = proc::representative(pid).zip(proc::threads(pid).ok()) else {
        return Vec::new();
    };
    let groups = threads::groups(pid, first, &all, kind);
    groups.iter().map(|group| group[0]).collect()
}

/// The table that a thread's descriptors are in.
pub(crate) fn table_of(pid: Pid, tid: Tid) -> Pid {
    let apart = proc::representative(pid)
        .filter(|first| *first != tid)
        .is_some_and(|first| kcmp(first, tid, KcmpKind::Files, 0, 0).is_ok_and(Ordering::is_ne));
    if apart { Pid(tid.0) } else { pid }
}

/// Notes the descriptors of threads that have their own.
pub(crate) fn capture(pid: Pid, live: &mut Live, table: &mut Table) -> Result<(), FreezerError> {
    let tids: Vec<Tid> = live.threads.iter().map(|thread| thread.tid).collect();
    let Some(first) = tids.first().filter(|_| tids.len() > 1) else {
        return Ok(());
    };
    for group in groups(pid, *first, &tids) {
        let owner = group[0];
        let files = table.capture(Pid(owner.0))?;
        for thread in &mut live.threads {
            if thread.tid == owner {
                thread.files = Some(ThreadFiles::Own(files.clone()));
            } else if group.contains(&thread.tid) {
                thread.files = Some(ThreadFiles::Of(owner));
            }
        }
    }
    Ok(())
}

/// Has refusals about tables of threads name their processes.
pub(crate) fn named(found: Vec<Refusal>) -> Vec<Refusal> {
    let name = |mut refusal: Refusal| {
        let tgid = proc::tgid(refusal.pid);
        if let Some(pid) = tgid.filter(|pid| *pid != refusal.pid) {
            refusal.resource = format!("thread {}: {}", refusal.pid, refusal.resource);
            refusal.pid = pid;
            refusal.comm = proc::comm(pid);
        }
        refusal
    };
    found.into_iter().map(name).collect()
}

/// As [`named`].
pub(crate) fn named_error(error: FreezerError) -> FreezerError {
    match error {
        FreezerError::Refused(found) => FreezerError::Refused(named(found)),
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};
    use std::sync::mpsc::channel;

    #[test]
    fn a_thread_with_its_own_table_is_found() {
        let me = Pid(std::process::id().cast_signed());
        let (tell, told) = channel();
        let (end, ended) = channel::<()>();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_FILES).unwrap();
            tell.send(Tid(nix::unistd::gettid().as_raw())).unwrap();
            ended.recv().unwrap_err();
        });
        let tid = told.recv().unwrap();
        assert!(tables_of(me).contains(&Pid(tid.0)));
        assert_eq!(table_of(me, tid), Pid(tid.0));
        assert_eq!(table_of(me, me.leader()), me);
        let refusal = Refusal {
            pid: Pid(tid.0),
            comm: String::new(),
            resource: "fd 3".into(),
            reason: String::new(),
        };
        let found = named(vec![refusal]).pop().unwrap();
        assert_eq!(found.pid, me);
        assert_eq!(found.resource, format!("thread {tid}: fd 3"));
        drop(end);
        thread.join().unwrap();
    }
}
