//! One processor for this process and those that it builds.
//!
//! A rebuild is thousands of calls in other processes, each waited for: one of the two sleeps always. Woken
//! on another processor, which idles and must be woken itself, either costs many times what the call does.

use crate::ResurrectError;
use crate::restore::Restore;
use crate::thread::in_order;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid as This;
use persist_mem::manifest::{Scheduling, Thread};
use std::borrow::Cow;
use sys::{Errno, Pid, Tid};

/// While it lives, this thread and what it forks run on the processor it is on.
#[derive(Debug)]
pub(crate) struct OneProcessor {
    before: CpuSet,
    one: CpuSet,
}

impl OneProcessor {
    /// None where that cannot be, or could not be undone for those that change their user.
    pub(crate) fn hold() -> Option<OneProcessor> {
        const CAP_SYS_NICE: u64 = 1 << 23;
        let capabilities = effective()?;
        let before = sched_getaffinity(This::from_raw(0)).ok()?;
        let mut one = CpuSet::new();
        one.set(sched_getcpu().ok()?).ok()?;
        if capabilities & CAP_SYS_NICE == 0 || sched_setaffinity(This::from_raw(0), &one).is_err() {
            return None;
        }
        Some(OneProcessor { before, one })
    }

    /// Lets another thread run where this one may.
    pub(crate) fn release(&self, tid: Tid) {
        // Nobody is harmed when it stays where it is.
        let _ = sched_setaffinity(This::from_raw(tid.0), &self.before);
    }

    /// Has another thread run on this processor only.
    pub(crate) fn share(&self, tid: Tid) {
        // It runs elsewhere then, which takes longer.
        let _ = sched_setaffinity(This::from_raw(tid.0), &self.one);
    }

    /// Does something, with threads of this process, on all processors it may use.
    pub(crate) fn without<T>(this: Option<&OneProcessor>, work: impl FnOnce() -> T) -> T {
        // A failure costs time only: there was this set before, or is this one.
        let set = |which: fn(&OneProcessor) -> &CpuSet| {
            let _ = this.map(|this| sched_setaffinity(This::from_raw(0), which(this)));
        };
        set(|this| &this.before);
        let done = work();
        set(|this| &this.one);
        done
    }
}

impl Drop for OneProcessor {
    fn drop(&mut self) {
        // Fails only when those processors have gone meanwhile.
        let _ = sched_setaffinity(This::from_raw(0), &self.before);
    }
}

/// Effective capabilities of this process.
fn effective() -> Option<u64> {
    let me = Pid(nix::unistd::getpid().as_raw());
    let status = sys::procdir::read(me, "status").ok()?;
    let text = String::from_utf8_lossy(&status);
    let line = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    u64::from_str_radix(line?.trim(), 16).ok()
}

/// Gives every thread the processors it had.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    crate::thread::each(restore, |pid, tracee, thread| {
        give(pid, tracee.tid(), thread)
    })?;
    for (pid, live) in restore.lives() {
        let task = restore.task(pid)?;
        for (tid, thread) in task.handed_over().zip(in_order(&live.threads)) {
            give(pid, tid, thread)?;
        }
        for waiting in &live.vforks {
            if let Some(tracee) = task.in_vfork.get(&waiting.thread.tid) {
                give(pid, tracee.tid(), &waiting.thread)?;
            }
        }
    }
    Ok(())
}

fn give(pid: Pid, tid: Tid, thread: &Thread) -> Result<(), ResurrectError> {
    let mask = wanted(&thread.scheduling);
    if mask.is_empty() {
        return Ok(());
    }
    allow(tid, &mask).map_err(ResurrectError::call(pid, "setting its processors"))
}

/// The mask that a thread asks for.
pub(crate) fn wanted(scheduling: &Scheduling) -> Cow<'_, [u8]> {
    match scheduling.anywhere {
        true => all(scheduling.affinity.len()).into(),
        false => scheduling.affinity.as_slice().into(),
    }
}

/// Lets a thread run on these processors, or on all when none of them is there any more, as the kernel does with a
/// thread whose last one goes.
pub(crate) fn allow(tid: Tid, mask: &[u8]) -> sys::Result<()> {
    match sys::process::set_affinity(tid, mask) {
        Err(Errno::EINVAL) => sys::process::set_affinity(tid, &all(mask.len())),
        done => done,
    }
}

fn all(len: usize) -> Vec<u8> {
    vec![u8::MAX; len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_run_nowhere_may_run_everywhere() {
        let now = || sched_getaffinity(This::from_raw(0)).unwrap();
        let before = now();
        let mut gone = vec![0; 128];
        gone[127] = 0x80;
        allow(Tid(nix::unistd::gettid().as_raw()), &gone).unwrap();
        let everywhere = now();
        sched_setaffinity(This::from_raw(0), &before).unwrap();
        let within = |n: &usize| before.is_set(*n) != Ok(true) || everywhere.is_set(*n) == Ok(true);
        assert!((0..CpuSet::count()).all(|n| within(&n)));
    }

    #[test]
    fn it_is_one_and_then_those_of_before() {
        let now = || sched_getaffinity(This::from_raw(0)).unwrap();
        let count = |set: &CpuSet| {
            (0..CpuSet::count())
                .filter(|n| set.is_set(*n) == Ok(true))
                .count()
        };
        let before = now();
        let Some(held) = OneProcessor::hold() else {
            return;
        };
        assert_eq!(count(&now()), 1);
        OneProcessor::without(Some(&held), || assert_eq!(now(), before));
        assert_eq!(count(&now()), 1);
        drop(held);
        assert_eq!(now(), before);
    }
}
