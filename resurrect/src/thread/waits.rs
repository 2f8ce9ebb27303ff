//! Waits on sockets with a time-out of their own, which go on with what remains of it.

use crate::ResurrectError;
use crate::restore::Restore;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use sys::socket_wait::SocketWait;
use sys::{Pid, Tid};

/// A thread that is about to wait on a socket.
#[derive(Debug)]
pub(crate) struct Wait {
    pid: Pid,
    tid: Tid,
    socket: SocketWait,
    left: Duration,
    seen: Instant,
}

/// Those of all threads.
pub(crate) fn find(restore: &mut Restore<'_>) -> Result<Vec<Wait>, ResurrectError> {
    let mut found = Vec::new();
    let elapsed = restore.elapsed();
    let firsts: BTreeMap<Pid, Tid> = restore
        .tasks
        .iter()
        .map(|(pid, task)| (*pid, task.first.tid()))
        .collect();
    super::each(restore, |pid, tracee, thread| {
        let (Some(wait), Some(first)) = (thread.socket_wait, firsts.get(&pid)) else {
            return Ok(());
        };
        let pidfd = match thread.files {
            Some(_) => sys::process::pidfd_of_thread(tracee.tid()),
            None => sys::process::pidfd_through(tracee.pid(), *first),
        };
        let socket = pidfd
            .and_then(|pidfd| SocketWait::of(pidfd.as_fd(), wait.fd, wait.sends))
            .map_err(ResurrectError::call(pid, "asking for a socket's time-out"))?;
        found.extend(socket.map(|socket| Wait {
            pid: tracee.pid(),
            tid: tracee.tid(),
            socket,
            left: Duration::from_nanos(wait.remaining).saturating_sub(elapsed),
            seen: Instant::now(),
        }));
        Ok(())
    })?;
    Ok(found)
}

impl Wait {
    pub(crate) fn left(&self) -> Duration {
        self.left.saturating_sub(self.seen.elapsed())
    }

    pub(crate) fn tid(&self) -> Tid {
        self.tid
    }

    /// Lets the thread go by `detach`, to wait for what remains of its time.
    pub(crate) fn go_on<T>(&self, detach: impl FnOnce() -> T) -> T {
        let nanoseconds = u64::try_from(self.left().as_nanos()).unwrap_or(u64::MAX);
        // After an error it waits for the whole time again.
        let shortened = self.socket.begin(self.tid, nanoseconds).unwrap_or(false);
        let done = detach();
        if shortened && let Err(errno) = self.socket.end(self.pid, self.tid) {
            log::warn!(
                "thread {}: a socket keeps a shorter time-out: {errno}",
                self.tid
            );
        }
        done
    }
}
