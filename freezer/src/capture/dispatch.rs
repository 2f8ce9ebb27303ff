//! Syscall user dispatch of threads (Documentation/admin-guide/syscall-user-dispatch.rst).

use crate::FreezerError;
use crate::kernel::{self, Unreadable};
use persist_mem::manifest::Dispatch;
use std::collections::BTreeMap;
use sys::ptrace::{self, SudConfiguration};
use sys::vm::ProcMem;
use sys::{Errno, Pid, Tid};

/// `PR_SYS_DISPATCH_OFF`, `PR_SYS_DISPATCH_ON`
const OFF: u64 = 0;
const ON: u64 = 1;
/// `SYSCALL_DISPATCH_FILTER_ALLOW`
const ALLOW: u8 = 0;
/// `SYSCALL_WORK_SYSCALL_USER_DISPATCH` (include/linux/thread_info.h)
const WORK: u64 = 1 << 5;

/// Those of the threads whose calls are dispatched.
pub(super) fn of_threads(tids: &[Tid]) -> BTreeMap<Tid, Dispatch> {
    let mut found = BTreeMap::new();
    for tid in tids {
        match ptrace::sud_configuration(*tid) {
            Ok(told) if told.mode == OFF => {}
            Ok(told) => {
                found.insert(
                    *tid,
                    Dispatch {
                        mode: told.mode,
                        selector: told.selector,
                        offset: told.offset,
                        len: told.len,
                    },
                );
            }
            // Kernels before 6.4 do not tell.
            Err(_) => return from_memory(tids).unwrap_or_default(),
        }
    }
    found
}

/// Whether a stopped thread's calls are dispatched.
pub(crate) fn is_dispatched(tid: Tid) -> bool {
    !of_threads(&[tid]).is_empty()
}

/// As the kernel has it in each `task_struct`.
fn from_memory(tids: &[Tid]) -> Result<BTreeMap<Tid, Dispatch>, Unreadable> {
    kernel::look(|kernel| {
        let field = |path| Ok(kernel.btf().field("task_struct", path)?.offset);
        let places = [
            field("thread_info.syscall_work")?,
            field("syscall_dispatch.selector")?,
            field("syscall_dispatch.offset")?,
            field("syscall_dispatch.len")?,
        ];
        let tasks = kernel.tasks(tids)?;
        let known: Vec<(Tid, u64)> = tids
            .iter()
            .zip(tasks)
            .filter_map(|(tid, task)| Some((*tid, task?)))
            .collect();
        let addresses: Vec<u64> = known
            .iter()
            .flat_map(|(_, task)| places.map(|place| task.wrapping_add(place)))
            .collect();
        let words = kernel.words(&addresses)?;
        let dispatch = |words: &[Option<u64>]| match words {
            [Some(work), Some(selector), Some(offset), Some(len)] if work & WORK != 0 => {
                Some(Dispatch {
                    mode: ON,
                    selector: *selector,
                    offset: *offset,
                    len: *len,
                })
            }
            _ => None,
        };
        let threads = known.iter().zip(words.chunks(places.len()));
        Ok(threads
            .filter_map(|((tid, _), words)| Some((*tid, dispatch(words)?)))
            .collect())
    })
}

/// Whether calls that we make in a thread would be dispatched now.
pub(super) fn now(mem: &ProcMem, dispatch: &Dispatch) -> bool {
    let mut selector = [ALLOW];
    match dispatch.selector {
        0 => true,
        va => mem.read(va, &mut selector).is_err() || selector != [ALLOW],
    }
}

/// Switches it off for calls that are not the program's.
pub(super) fn suspend(pid: Pid, tid: Tid) -> Result<(), FreezerError> {
    match ptrace::set_sud_configuration(tid, &SudConfiguration::default()) {
        Err(Errno::EIO) => Err(FreezerError::refuse(
            pid,
            format!("thread {tid}"),
            "its system calls are dispatched to user space just now, which kernels before 6.4 do not \
             let others switch off; try again when it runs its own code",
        )),
        done => done.map_err(failed(pid, tid)),
    }
}

/// Switches it on again.
pub(super) fn resume(pid: Pid, tid: Tid, dispatch: &Dispatch) -> Result<(), FreezerError> {
    let wanted = SudConfiguration {
        mode: dispatch.mode,
        selector: dispatch.selector,
        offset: dispatch.offset,
        len: dispatch.len,
    };
    ptrace::set_sud_configuration(tid, &wanted).map_err(failed(pid, tid))
}

fn failed(pid: Pid, tid: Tid) -> impl FnOnce(Errno) -> FreezerError {
    FreezerError::call(
        pid,
        format!("switching the syscall dispatch of thread {tid}"),
    )
}
