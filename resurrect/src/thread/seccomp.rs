//! seccomp filters. They are installed while CAP_SYS_ADMIN is there, which allows that without
//! no_new_privs; the calls that are still to be made are let through because the tracer suspends them.

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::{Filter, Live, Seccomp};
use sys::batch::Batch;
use sys::ptrace::{self, options};

const SET_MODE_STRICT: u64 = 0;
const SET_MODE_FILTER: u64 = 1;
/// `SECCOMP_FILTER_FLAG_TSYNC`
const TSYNC: u64 = 1;
/// `SECCOMP_FILTER_FLAG_LOG`
const LOG: u64 = 1 << 1;
/// Bytes of an instruction (`struct sock_filter`).
const INSTRUCTION: usize = 8;
const PR_SET_SECCOMP: i32 = 22;

/// Installs them.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives() {
        if live.all_threads().all(|t| t.seccomp == Seccomp::Off) {
            continue;
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
        let mut batch = Batch::new();
        for index in common {
            install(&mut batch, live, index, TSYNC);
        }
        run(
            pid,
            "installing its seccomp filters",
            &mut task.first,
            &batch,
        )?;
    }
    super::each_in(restore, |pid, tracee, live, thread| {
        let mut batch = Batch::new();
        match &thread.seccomp {
            Seccomp::Off => return Ok(()),
            Seccomp::Strict => {
                let args = [PR_SET_SECCOMP.into(), (SET_MODE_STRICT + 1).into()];
                batch.call("entering strict mode", nr::PRCTL, args);
            }
            Seccomp::Filters(own) => {
                for index in &own[common(live).len()..] {
                    install(&mut batch, live, *index, 0);
                }
            }
        }
        run(pid, "installing a thread's seccomp filters", tracee, &batch).map(drop)
    })
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

fn install(batch: &mut Batch, live: &Live, index: u32, flags: u64) {
    let none = Filter {
        code: Vec::new(),
        log: false,
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
    let args = [SET_MODE_FILTER.into(), (flags | log).into(), program.into()];
    batch.call("installing a seccomp filter", nr::SECCOMP, args);
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
