//! Threads that wait in vfork(2) until their child ends or starts another program.
//!
//! No signal but SIGKILL and no tracer stops them there (kernel/fork.c, wait_for_vfork_done), and they cannot
//! run on before the child does. So a stopped child is as good as a stopped parent, where it is known which
//! child that is: the kernel has it in `task_struct.vfork_done`, which is on the parent's kernel stack.

use crate::kernel::{self, Unreadable};
use crate::proc;
use sys::{Pid, Tid};

/// `THREAD_SIZE` (arch/x86/include/asm/page_64_types.h) without KASAN; with it nothing is found.
pub(crate) const STACK: u64 = 16 << 10;

/// Threads that wait in vfork(2): an uninterruptible sleep in clone, vfork or clone3.
pub(crate) fn waiting_threads(pid: Pid) -> Vec<Tid> {
    let mut threads = proc::threads(pid).unwrap_or_default();
    threads.retain(|tid| waits(pid, *tid));
    threads
}

/// Whether a call is one of clone, vfork, clone3.
pub(super) fn is_one(nr: i64) -> bool {
    matches!(nr, 56 | 58 | 435)
}

/// Whether this one does.
pub(crate) fn waits(pid: Pid, tid: Tid) -> bool {
    let state = proc::Stat::read(pid, &format!("task/{tid}/stat"));
    state.is_ok_and(|stat| stat.state() == 'D')
        && proc::read_text(pid, &format!("task/{tid}/syscall"))
            .is_ok_and(|call| matches!(call.split(' ').next(), Some("56" | "58" | "435")))
}

/// The child that a thread waits for.
pub(crate) fn child_of(pid: Pid, tid: Tid) -> Option<Pid> {
    if !waits(pid, tid) {
        return None;
    }
    let children = proc::children(pid).ok()?;
    let found = kernel::look(|kernel| {
        let field = |path| Ok(kernel.btf().field("task_struct", path)?.offset);
        let (stack, done) = (field("stack")?, field("vfork_done")?);
        let others = children.iter().map(|child| child.leader());
        let tids: Vec<Tid> = core::iter::once(tid).chain(others).collect();
        let tasks = kernel.tasks(&tids)?;
        let [Some(parent), tasks @ ..] = &tasks[..] else {
            return Err(Unreadable::Inconsistent("a thread"));
        };
        let stack = kernel.word(parent.wrapping_add(stack), "a kernel stack")?;
        let places = tasks
            .iter()
            .map(|task| task.unwrap_or(0).wrapping_add(done));
        let told = kernel.words(&places.collect::<Vec<_>>())?;
        let mut both = children.iter().zip(told);
        let found = both.find(|(_, at)| at.is_some_and(|at| at.wrapping_sub(stack) < STACK));
        Ok(found.map(|(child, _)| *child))
    });
    found.ok().flatten()
}
