//! seccomp filters. They are installed while CAP_SYS_ADMIN is there, which allows that without
//! no_new_privs; the calls that are still to be made are let through because the tracer suspends them.

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::{Filter, Live, Seccomp};
use sys::Pid;
use sys::batch::{Batch, CallIndex};
use sys::ptrace::{self, options};
use sys::tracee::Tracee;

const SET_MODE_STRICT: u64 = 0;
const SET_MODE_FILTER: u64 = 1;
/// `SECCOMP_FILTER_FLAG_TSYNC`
const TSYNC: u64 = 1;
/// `SECCOMP_FILTER_FLAG_LOG`
const LOG: u64 = 1 << 1;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`, `SECCOMP_FILTER_FLAG_TSYNC_ESRCH`, `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`
const NEW_LISTENER: u64 = 1 << 3;
const TSYNC_ESRCH: u64 = 1 << 4;
const WAIT_KILLABLE_RECV: u64 = 1 << 5;
/// Bytes of an instruction (`struct sock_filter`).
const INSTRUCTION: usize = 8;
const PR_SET_SECCOMP: i32 = 22;

/// A listener that was made with its filter.
pub(crate) struct Listening {
    /// [`persist_mem::manifest::FilterListener::filter`].
    pub(crate) filter: u64,
    /// Its descriptor in the process.
    pub(crate) fd: i32,
}

/// Installs them.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives() {
        if !restore.confined.contains(&pid) {
            confine(restore, pid, live)?;
        }
    }
    Ok(())
}

/// Installs those of a process.
pub(crate) fn confine(
    restore: &mut Restore<'_>,
    pid: Pid,
    live: &Live,
) -> Result<Vec<Listening>, ResurrectError> {
    if live.all_threads().all(|t| t.seccomp == Seccomp::Off) {
        return Ok(Vec::new());
    }
    let common = common(live);
    let task = restore.task(pid)?;
    for tracee in task.first_to_last() {
        let all = crate::tree::OPTIONS | options::SUSPEND_SECCOMP;
        ptrace::set_options(tracee.tid(), all).map_err(ResurrectError::call(
            pid,
            "suspending its seccomp filters (they cannot be made by a process that has any)",
        ))?;
    }
    let doing = "installing its seccomp filters";
    let mut found = install_all(pid, live, (&mut task.first, &common, TSYNC), doing)?;
    for (tracee, thread) in task.all().zip(super::in_order(&live.threads)) {
        match &thread.seccomp {
            Seccomp::Off => {}
            Seccomp::Strict => {
                let doing = "entering strict mode";
                let mut batch = Batch::new();
                let args = [PR_SET_SECCOMP.into(), (SET_MODE_STRICT + 1).into()];
                batch.call(doing, nr::PRCTL, args);
                run(pid, doing, tracee, &batch)?;
            }
            Seccomp::Filters(own) => {
                let doing = "installing a thread's seccomp filters";
                let own = &own[common.len()..];
                found.extend(install_all(pid, live, (tracee, own, 0), doing)?);
            }
        }
    }
    Ok(found)
}

/// Has a thread install filters.
fn install_all(
    pid: Pid,
    live: &Live,
    (tracee, wanted, flags): (&mut Tracee, &[u32], u64),
    doing: &'static str,
) -> Result<Vec<Listening>, ResurrectError> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let mut batch = Batch::new();
    let made = wanted.iter().map(|index| {
        let call = install(&mut batch, live, *index, flags);
        let filter = live.filters.get(*index as usize);
        (filter.and_then(|filter| filter.listener), call)
    });
    let made: Vec<_> = made.collect();
    let output = run(pid, doing, tracee, &batch)?;
    let listening = made.into_iter().filter_map(|(listener, call)| {
        Some(Listening {
            filter: listener?.filter,
            fd: i32::try_from(output.result(call).ok()?).ok()?,
        })
    });
    Ok(listening.collect())
}

/// The filters that all threads have below their own, and all that those have who wait in vfork(2): those are shared,
/// so that a later `SECCOMP_FILTER_FLAG_TSYNC` finds one ancestry.
fn common(live: &Live) -> Vec<u32> {
    let all: Vec<Seccomp> = live.all_threads().map(|t| t.seccomp.clone()).collect();
    prefix(&all).to_vec()
}

fn prefix(all: &[Seccomp]) -> &[u32] {
    let Some(Seccomp::Filters(first)) = all.first() else {
        return &[];
    };
    let same = (0..first.len()).take_while(|&at| {
        all.iter().all(|seccomp| match seccomp {
            Seccomp::Filters(stack) => stack.get(at) == first.get(at),
            _ => false,
        })
    });
    &first[..same.count()]
}

fn install(batch: &mut Batch, live: &Live, index: u32, flags: u64) -> CallIndex {
    let none = Filter {
        code: Vec::new(),
        log: false,
        listener: None,
    };
    // An index that leads nowhere was refused when the manifest was read; the kernel refuses this.
    let filter = live.filters.get(index as usize).unwrap_or(&none);
    let code = batch.data(&filter.code);
    let mut program = [0; 16];
    let len = u16::try_from(filter.code.len() / INSTRUCTION).unwrap_or(0);
    program[..2].copy_from_slice(&len.to_le_bytes());
    let program = batch.data(&program);
    batch.pointer(program, 8, code);
    let log = if filter.log { LOG } else { 0 };
    let asks = match filter.listener {
        // Otherwise the numbers that it returns would mean two things.
        Some(_) if flags & TSYNC != 0 => NEW_LISTENER | TSYNC_ESRCH,
        Some(_) => NEW_LISTENER,
        None => 0,
    };
    let killable = match filter.listener {
        Some(listener) if listener.killable => WAIT_KILLABLE_RECV,
        _ => 0,
    };
    let flags = flags | log | asks | killable;
    let args = [SET_MODE_FILTER.into(), flags.into(), program.into()];
    batch.call("installing a seccomp filter", nr::SECCOMP, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_part_is_what_all_threads_have() {
        let stacks = |stacks: &[&[u32]]| -> Vec<Seccomp> {
            let filters = stacks.iter().map(|all| Seccomp::Filters(all.to_vec()));
            filters.collect()
        };
        assert_eq!(prefix(&stacks(&[&[1, 2, 3], &[1, 2], &[1, 2, 4]])), [1, 2]);
        assert!(prefix(&stacks(&[&[1], &[2]])).is_empty());
        assert!(prefix(&[Seccomp::Filters(vec![1]), Seccomp::Off]).is_empty());
        assert_eq!(prefix(&stacks(&[&[5, 6]])), [5, 6]);
    }
}
