//! Stopping every thread of a process tree, and letting go again.

use crate::FreezerError;
use crate::proc;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use sys::wait::{self, Status};
use sys::{Errno, Pid, Tid, ptrace};

/// How long a thread may take to stop. Longer waits are uninterruptible sleeps, or a vfork parent
/// whose child does not let go.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A stopped thread.
#[derive(Clone, Copy, Debug)]
pub struct FrozenThread {
    /// The signal that had stopped its process before (job control).
    pub group_stop: Option<i32>,
    /// Nanoseconds of the scheduler's clock at which it went to sleep, None when it ran or the
    /// kernel does not tell (`/proc/PID/task/TID/sched`).
    pub asleep_since_ns: Option<u64>,
}

/// A process tree whose threads are all stopped. They go on when this is dropped, also when the
/// tracer ends in any way: the kernel detaches them then.
#[derive(Debug)]
pub struct Frozen {
    processes: Vec<(Pid, BTreeMap<Tid, FrozenThread>)>,
    zombies: Vec<Pid>,
    /// Scheduler clock when stopping began.
    pub scheduler_ns: u64,
}

impl Frozen {
    /// Live processes, parents before children.
    pub fn pids(&self) -> impl Iterator<Item = Pid> + '_ {
        self.processes.iter().map(|(pid, _)| *pid)
    }

    /// Ended processes that nobody has waited for.
    #[must_use]
    pub fn zombies(&self) -> &[Pid] {
        &self.zombies
    }

    /// The threads of one process, the leader first.
    #[must_use]
    pub fn threads(&self, pid: Pid) -> Vec<(Tid, FrozenThread)> {
        let mut threads: Vec<_> = self
            .processes
            .iter()
            .filter(|(found, _)| *found == pid)
            .flat_map(|(_, threads)| threads.iter().map(|(tid, thread)| (*tid, *thread)))
            .collect();
        threads.sort_by_key(|(tid, _)| (*tid != pid.leader(), *tid));
        threads
    }

    /// Ends every process of the tree (SIGKILL), children first, instead of letting it go on.
    pub fn kill(mut self) {
        let processes = core::mem::take(&mut self.processes);
        for (pid, threads) in processes.iter().rev() {
            // A process that is gone already is what is wanted.
            let _ = sys::process::kill(*pid, libc_sigkill());
            for tid in threads.keys() {
                let _ = wait::wait_for_at_most(*tid, STOP_WITHIN);
            }
        }
    }
}

fn libc_sigkill() -> i32 {
    nix::sys::signal::Signal::SIGKILL as i32
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for (_, threads) in &self.processes {
            for tid in threads.keys() {
                // ESRCH: it was killed meanwhile; there is nothing left to let go.
                let _ = ptrace::detach(*tid, 0);
            }
        }
    }
}

/// Stops every thread of `root` and its descendants.
///
/// # Errors
/// When a thread cannot be traced or does not stop. Everything stopped so far goes on then.
pub fn freeze(root: Pid) -> Result<Frozen, FreezerError> {
    let mut frozen = Frozen {
        processes: Vec::new(),
        zombies: Vec::new(),
        scheduler_ns: scheduler_now(),
    };
    // New threads and children appear as long as one of them runs; a round without news ends it.
    loop {
        let mut news = false;
        for pid in proc::tree(root)? {
            news |= freeze_process(&mut frozen, pid, pid == root)?;
        }
        if !news {
            return Ok(frozen);
        }
    }
}

/// Stops the threads of one process that are not stopped yet. True when there was one.
fn freeze_process(frozen: &mut Frozen, pid: Pid, root: bool) -> Result<bool, FreezerError> {
    if frozen.zombies.contains(&pid) {
        return Ok(false);
    }
    let stat = match proc::Stat::read(pid, "stat") {
        Ok(stat) => stat,
        Err(e) if root => return Err(e),
        Err(_) => return Ok(false),
    };
    if stat.state() == 'Z' {
        let threads = proc::threads(pid)?;
        if threads.len() > 1 {
            let why = "its leading thread has ended while others run";
            return Err(FreezerError::refuse(pid, "thread", why));
        }
        frozen.zombies.push(pid);
        return Ok(true);
    }
    if !frozen.processes.iter().any(|(found, _)| *found == pid) {
        frozen.processes.push((pid, BTreeMap::new()));
    }
    let Some(index) = frozen.processes.iter().position(|(found, _)| *found == pid) else {
        return Ok(false);
    };
    let mut waiting = Vec::new();
    for tid in proc::threads(pid)? {
        if frozen.processes[index].1.contains_key(&tid) {
            continue;
        }
        let asleep_since_ns = asleep_since(pid, tid);
        match seize(pid, tid) {
            Ok(()) => {}
            Err(FreezerError::Seize {
                errno: Errno::ESRCH,
                ..
            }) => continue,
            Err(e) => return Err(e),
        }
        let thread = FrozenThread {
            group_stop: None,
            asleep_since_ns,
        };
        frozen.processes[index].1.insert(tid, thread);
        waiting.push(tid);
    }
    let news = !waiting.is_empty();
    for tid in waiting {
        match wait_until_stopped(pid, tid)? {
            Stop::Gone => drop(frozen.processes[index].1.remove(&tid)),
            Stop::Trap => {}
            Stop::Group(signal) => {
                if let Some(thread) = frozen.processes[index].1.get_mut(&tid) {
                    thread.group_stop = Some(signal);
                }
            }
        }
    }
    frozen.processes.retain(|(_, threads)| !threads.is_empty());
    Ok(news)
}

fn seize(pid: Pid, tid: Tid) -> Result<(), FreezerError> {
    let failed = |errno| {
        let hint = match errno {
            Errno::EPERM => ": is another tracer attached to it, or are privileges missing?",
            _ => "",
        };
        FreezerError::Seize {
            pid,
            tid,
            errno,
            hint,
        }
    };
    // Filters must not see the calls made inside; where the kernel cannot suspend them, `check`
    // has already refused processes that have any.
    ptrace::seize(tid, ptrace::options::SUSPEND_SECCOMP)
        .or_else(|errno| {
            if errno == Errno::ESRCH {
                Err(errno)
            } else {
                ptrace::seize(tid, 0)
            }
        })
        .map_err(failed)?;
    ptrace::interrupt(tid).map_err(failed)
}

enum Stop {
    Trap,
    Group(i32),
    Gone,
}

fn wait_until_stopped(pid: Pid, tid: Tid) -> Result<Stop, FreezerError> {
    let end = Instant::now() + STOP_WITHIN;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let status = match wait::wait_for_at_most(tid, left) {
            Ok(Some(status)) => status,
            Ok(None) => {
                let state = proc::Stat::read(pid, &format!("task/{tid}/stat"))
                    .map_or('?', |stat| stat.state());
                let seconds = STOP_WITHIN.as_secs();
                return Err(FreezerError::WontStop {
                    pid,
                    tid,
                    seconds,
                    state,
                });
            }
            Err(_) => return Ok(Stop::Gone),
        };
        match status {
            Status::Trap => return Ok(Stop::Trap),
            Status::GroupStop(signal) => return Ok(Stop::Group(signal)),
            Status::Exited(_) | Status::Killed(_) => return Ok(Stop::Gone),
            // A signal on its way: let it take effect; the stop asked for comes right behind.
            Status::Signal(signal) => {
                let _ = ptrace::cont(tid, signal);
            }
            Status::Event(_) | Status::Syscall | Status::Continued => {
                let _ = ptrace::cont(tid, 0);
            }
        }
    }
}

/// The scheduler's clock now: our own last start on the CPU, made recent by yielding.
fn scheduler_now() -> u64 {
    std::thread::yield_now();
    exec_start("/proc/thread-self/sched").unwrap_or(0)
}

/// When a sleeping thread went to sleep.
fn asleep_since(pid: Pid, tid: Tid) -> Option<u64> {
    let stat = proc::Stat::read(pid, &format!("task/{tid}/stat")).ok()?;
    (stat.state() == 'S')
        .then(|| exec_start(&format!("/proc/{pid}/task/{tid}/sched")))
        .flatten()
}

/// `se.exec_start` in nanoseconds (kernel/sched/debug.c prints milliseconds with six decimals).
fn exec_start(path: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("se.exec_start"))?;
    let (whole, fraction) = line.rsplit(':').next()?.trim().split_once('.')?;
    let (whole, fraction): (u64, u64) = (whole.parse().ok()?, fraction.parse().ok()?);
    Some(whole * 1_000_000 + fraction)
}
