//! Leaders that have ended while other threads of their processes run.
//!
//! Such a leader is made like all others, since only it can make its process. When the other threads are
//! there it steps back; it ends before the credentials are set, among which the signals at the parent's death
//! are: children get those when the thread ends that has made them.

use super::{attributes, credentials, signals};
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::process::signals::OfEnded;
use crate::restore::Restore;
use crate::task::Task;
use persist_mem::manifest::{EndedLeader, Live, Remains};
use std::time::{Duration, Instant};
use sys::batch::Batch;
use sys::ptrace::{self, options};
use sys::regs::{NO_SYSCALL, Regs};
use sys::tracee::Tracee;
use sys::wait::{self, Status};
use sys::{Errno, Pid, procdir};

/// `PTRACE_EVENT_EXIT`.
const EVENT_EXIT: i32 = 6;
const WITHIN: Duration = Duration::from_secs(10);

/// From now on another thread acts for the process.
pub(super) fn step_back(live: &Live, task: &mut Task) {
    let first = live.threads.first().map(|thread| thread.tid);
    if let Some(first) = first.and_then(|tid| task.threads.remove(&tid)) {
        task.ending = Some(core::mem::replace(&mut task.first, first));
    }
}

/// Ends them, as they looked from outside. Signals that wait for the process are queued before: those that
/// the kernel has sent (`si_code` of 0 and above) can only be queued by the leader (kernel/signal.c,
/// do_rt_sigqueueinfo).
pub(crate) fn end(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let ended = OfEnded::of(restore.manifest);
    for (pid, live) in restore.lives() {
        let (Some(leader), Some(tracee)) = (&live.ended_leader, restore.task(pid)?.ending.as_mut())
        else {
            continue;
        };
        const DOING: &str = "preparing the end of its leader";
        for batch in signals::of_process(pid, live, &ended) {
            run(pid, DOING, tracee, &batch)?;
        }
        let mut batch = Batch::new();
        appearance(&mut batch, &leader.remains);
        run(pid, DOING, tracee, &batch)?;
        exit(pid, tracee, leader)?;
    }
    Ok(())
}

/// Gives a thread that is about to end what will be seen of it.
pub(crate) fn appearance(batch: &mut Batch, remains: &Remains) {
    attributes::name(batch, &remains.comm);
    attributes::scheduling(batch, &remains.scheduling, true);
    attributes::processors(batch, &remains.scheduling);
    credentials::become_ended_user(batch, &remains.credentials);
    attributes::personality(batch, remains.personality);
    if remains.no_new_privs {
        credentials::no_new_privs(batch);
    }
}

/// Makes it call exit(2). It is let go on its way out, so that nobody but its parent is told of its end.
fn exit(pid: Pid, tracee: &mut Tracee, leader: &EndedLeader) -> Result<(), ResurrectError> {
    const DOING: &str = "ending its leader";
    let failed = || ResurrectError::call(pid, DOING);
    let (tid, host) = (tracee.tid(), tracee.pid());
    let gate = tracee.scratch().and_then(|scratch| {
        let at = sys::tracee::find_gate(sys::batch::code())?;
        Some(scratch.address + at as u64)
    });
    let regs = tracee.regs().map_err(ResurrectError::tracee(pid, DOING))?;
    let regs = Regs {
        rip: gate.ok_or_else(|| failed()(Errno::ENOMEM))?,
        rax: nr::EXIT.cast_unsigned(),
        rdi: u64::from(leader.code),
        orig_rax: NO_SYSCALL,
        ..regs
    };
    let set = tracee.set_regs(&regs);
    set.map_err(ResurrectError::tracee(pid, DOING))?;
    let wanted = crate::tree::OPTIONS | options::TRACEEXIT;
    // Its process may have filters by now, which are for the calls of its own.
    ptrace::set_options(tid, wanted | options::SUSPEND_SECCOMP)
        .or_else(|_| ptrace::set_options(tid, wanted))
        .map_err(failed())?;
    ptrace::cont(tid, 0).map_err(failed())?;
    match wait::wait_for_at_most(tid, WITHIN).map_err(failed())? {
        Some(Status::Event(EVENT_EXIT)) => {}
        Some(status) => {
            let why = format!("its leader stopped with {status:?} instead of ending");
            return Err(ResurrectError::Impossible { pid, why });
        }
        None => return Err(failed()(Errno::ETIMEDOUT)),
    }
    // Until now it would have taken the signals that wait for the process.
    let masked = tracee.set_sigmask(leader.remains.sigmask);
    masked.map_err(ResurrectError::tracee(pid, DOING))?;
    ptrace::detach(tid, 0).map_err(failed())?;
    wait_until_ended(host).map_err(failed())
}

fn wait_until_ended(host: Pid) -> sys::Result<()> {
    let begun = Instant::now();
    loop {
        let stat = procdir::read(host, &format!("task/{host}/stat"))?;
        // The state is behind the name, which may hold anything.
        let close = stat.iter().rposition(|byte| *byte == b')').unwrap_or(0);
        if stat.get(close + 2) == Some(&b'Z') {
            return Ok(());
        }
        if begun.elapsed() > WITHIN {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}
