//! Whom timers belong to: the thread whose processor time CLOCK_THREAD_CPUTIME_ID counts makes them, and for threads
//! and processes that have ended since others are there under their ids while it does
//! (kernel/time/posix-timers.c, good_sigevent; kernel/time/posix-cpu-timers.c, pid_for_clock).

use crate::ResurrectError;
use crate::calls::nr;
use crate::restore::Restore;
use crate::task::Task;
use crate::tree::{thread, vfork};
use persist_mem::manifest::{Live, PosixTimer, TimerOwner};
use std::collections::BTreeMap;
use sys::batch::Batch;
use sys::tracee::{Tracee, TraceeError};
use sys::wait;
use sys::{Errno, Pid, Tid};

/// SIGKILL.
const KILL: i32 = 9;

/// Who is there for those that have ended.
#[derive(Default)]
pub(super) struct StandIns {
    /// By the id of the one that has ended.
    threads: BTreeMap<Tid, Tracee>,
    processes: Vec<Pid>,
}

/// Whether the process has such a thread, be it a leader that ends.
fn has(pid: Pid, live: &Live, tid: Tid) -> bool {
    tid == pid.leader() || live.all_threads().any(|thread| thread.tid == tid)
}

/// Whether it was to signal a thread that has ended: nobody gets those signals.
pub(super) fn signals_nobody(pid: Pid, live: &Live, timer: &PosixTimer) -> bool {
    timer.signals_thread() && !has(pid, live, timer.tid)
}

impl StandIns {
    /// Brings up those that a timer needs.
    pub(super) fn of(
        restore: &mut Restore<'_>,
        (pid, live): (Pid, &Live),
        timer: &PosixTimer,
    ) -> Result<StandIns, ResurrectError> {
        let mut made = StandIns::default();
        let mut needed = Vec::new();
        if timer.signals_thread() {
            needed.push(timer.tid);
        }
        match timer.owner() {
            Some(TimerOwner::Thread(tid)) => needed.push(tid),
            Some(TimerOwner::Process(other)) => made.process(restore, pid, other)?,
            None => {}
        }
        for tid in needed {
            if has(pid, live, tid) || made.threads.contains_key(&tid) {
                continue;
            }
            let first = &mut restore.task(pid)?.first;
            let stands = match thread(pid, first, tid, vfork::HELPER) {
                // Somebody else's by now.
                Err(ResurrectError::Taken { .. }) => vfork::helper(restore, pid)?,
                done => done?,
            };
            made.threads.insert(tid, stands);
        }
        Ok(made)
    }

    /// Brings up a process unless there is one.
    fn process(
        &mut self,
        restore: &Restore<'_>,
        pid: Pid,
        other: Pid,
    ) -> Result<(), ResurrectError> {
        let doing = "standing in for a process whose processor time it has measured";
        let body = || {
            sys::process::wait_for_end(&restore.self_pidfd);
            0
        };
        match restore.spawn_among(Some(other), body) {
            Ok(child) => self.processes.push(child),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(ResurrectError::call(pid, doing)(errno)),
        }
        Ok(())
    }

    /// Whether anybody is.
    pub(super) fn any(&self) -> bool {
        !self.threads.is_empty() || !self.processes.is_empty()
    }

    /// The thread that makes the timer.
    pub(super) fn maker<'t>(
        &'t mut self,
        task: &'t mut Task,
        live: &Live,
        timer: &PosixTimer,
    ) -> &'t mut Tracee {
        let first = live.threads.first().map(|thread| thread.tid);
        let Some(tid) = timer.maker().filter(|tid| first != Some(*tid)) else {
            return &mut task.first;
        };
        let one = self.threads.get_mut(&tid).or(task.threads.get_mut(&tid));
        one.or(task.ending.as_mut()).unwrap_or(&mut task.first)
    }

    /// Ends them.
    pub(super) fn end(self, pid: Pid) -> Result<(), ResurrectError> {
        const DOING: &str = "ending who stood in for others";
        for mut thread in self.threads.into_values() {
            let mut batch = Batch::new();
            batch.call(DOING, nr::EXIT, [0.into()]);
            match thread.run_raw(&batch) {
                Err(TraceeError::Ended { .. }) => {}
                Err(cause) => return Err(ResurrectError::tracee(pid, DOING)(cause)),
                Ok(_) => return Err(ResurrectError::call(pid, DOING)(Errno::EBUSY)),
            }
        }
        for process in self.processes {
            let ended = sys::process::kill(process, KILL);
            ended
                .and_then(|()| wait::wait_for(process.leader()))
                .map_err(ResurrectError::call(pid, DOING))?;
        }
        Ok(())
    }
}
