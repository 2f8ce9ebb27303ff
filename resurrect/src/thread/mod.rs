//! What each thread has of its own.

pub(crate) mod attributes;
pub(crate) mod credentials;
pub(crate) mod leader;
pub(crate) mod registers;
pub(crate) mod seccomp;
pub(crate) mod signals;
pub(crate) mod waits;

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use crate::task::Task;
use crate::tree::thread as birth;
use persist_mem::manifest::{Live, Thread};
use sys::Pid;
use sys::batch::Batch;
use sys::tracee::Tracee;

const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_SYSVSEM: u64 = 0x4_0000;
/// The I/O context (ioprio_set(2)).
pub(crate) const CLONE_IO: u64 = 0x8000_0000;
const FLAGS: u64 = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD;

/// Makes every thread beside the leaders.
pub(crate) fn create(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives() {
        let task = restore.task(pid)?;
        let led = usize::from(live.ended_leader.is_none());
        for thread in live.threads.iter().skip(led) {
            one(pid, task, thread)?;
        }
        if led == 0 {
            leader::step_back(live, task);
        }
    }
    Ok(())
}

/// Makes one thread, unless it is there: it may have been needed to make a child.
pub(crate) fn one(pid: Pid, task: &mut Task, thread: &Thread) -> Result<(), ResurrectError> {
    if !task.threads.contains_key(&thread.tid) {
        let undo = if thread.own_undo { 0 } else { CLONE_SYSVSEM };
        let mut flags = FLAGS | undo;
        if thread.shares_io {
            have_io_context(pid, &mut task.first, thread)?;
            flags |= CLONE_IO;
        }
        let made = birth(pid, &mut task.first, thread.tid, flags)?;
        task.threads.insert(thread.tid, made);
    }
    Ok(())
}

/// Has a thread set the I/O priority that `like` had: from then on it has a context that others can share.
pub(crate) fn have_io_context(
    pid: Pid,
    tracee: &mut Tracee,
    like: &Thread,
) -> Result<(), ResurrectError> {
    const DOING: &str = "making an I/O context";
    const WHO_PROCESS: i32 = 1;
    let mut batch = Batch::new();
    let priority = like.scheduling.ioprio.into();
    batch.call(
        DOING,
        nr::IOPRIO_SET,
        [WHO_PROCESS.into(), 0.into(), priority],
    );
    run(pid, DOING, tracee, &batch).map(drop)
}

/// Does something with every thread.
pub(crate) fn each(
    restore: &mut Restore<'_>,
    mut work: impl FnMut(Pid, &mut Tracee, &Thread) -> Result<(), ResurrectError>,
) -> Result<(), ResurrectError> {
    each_in(restore, |pid, tracee, _, thread| work(pid, tracee, thread))
}

/// Does something with every thread that needs to know its process.
pub(super) fn each_in(
    restore: &mut Restore<'_>,
    mut work: impl FnMut(Pid, &mut Tracee, &Live, &Thread) -> Result<(), ResurrectError>,
) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives() {
        let task = restore.task(pid)?;
        // The only thread of such a process has all it needs.
        if task.in_vfork.is_some() {
            continue;
        }
        for (tracee, thread) in task.all().zip(in_order(&live.threads)) {
            work(pid, tracee, live, thread)?;
        }
    }
    Ok(())
}

/// The one that acts for the process, then the others by id, as [`crate::task::Task::all`] gives them.
fn in_order(threads: &[Thread]) -> impl Iterator<Item = &Thread> {
    let mut rest: Vec<&Thread> = threads.iter().skip(1).collect();
    rest.sort_by_key(|thread| thread.tid);
    threads.first().into_iter().chain(rest)
}
