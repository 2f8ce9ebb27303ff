//! What each thread has of its own.

pub(crate) mod attributes;
pub(crate) mod birth;
pub(crate) mod confinement;
pub(crate) mod credentials;
pub(crate) mod landlock;
pub(crate) mod leader;
pub(crate) mod registers;
pub(crate) mod seccomp;
pub(crate) mod signals;
pub(crate) mod slack;
pub(crate) mod sleeps;
pub(crate) mod tiles;
pub(crate) mod traced;
pub(crate) mod waits;

use crate::ResurrectError;
use crate::calls::run_together;
use crate::restore::Restore;
use persist_mem::manifest::{Live, Thread};
use std::collections::BTreeMap;
use sys::Pid;
use sys::batch::Batch;
use sys::tracee::Tracee;

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
        for (tracee, thread) in task.all().zip(in_order(&live.threads)) {
            work(pid, tracee, live, thread)?;
        }
    }
    Ok(())
}

/// Makes calls in every thread, side by side; empty batches are not made.
fn together(
    restore: &mut Restore<'_>,
    doing: &str,
    batch: impl Fn(Pid, &Live, &Thread) -> Batch,
) -> Result<(), ResurrectError> {
    let lives: BTreeMap<Pid, &Live> = restore.lives().collect();
    let mut work = Vec::new();
    for (pid, task) in &mut restore.tasks {
        let Some(live) = lives.get(pid) else {
            continue;
        };
        for (tracee, thread) in task.all().zip(in_order(&live.threads)) {
            let batch = batch(*pid, live, thread);
            if !batch.is_empty() {
                work.push((*pid, tracee, batch));
            }
        }
    }
    run_together(doing, work).map(drop)
}

/// The one that acts for the process, then the others by id, as [`crate::task::Task::all`] gives them.
pub(crate) fn in_order(threads: &[Thread]) -> impl Iterator<Item = &Thread> {
    let mut rest: Vec<&Thread> = threads.iter().skip(1).collect();
    rest.sort_by_key(|thread| thread.tid);
    threads.first().into_iter().chain(rest)
}
