//! Ports of devices that a thread may use (ioperm(2), iopl(2)).
//!
//! No interface tells of them; the kernel keeps them in `task_struct.thread` (arch/x86/kernel/ioport.c). A thread
//! that had lost them would be killed at its next access.

use crate::kernel::{self, Unreadable};
use crate::{Refusal, proc};
use sys::{Pid, Tid};

/// Why a process is not carried, if a thread of it may use ports. Where the kernel's memory cannot be read nobody
/// can tell; a kernel without the fields has no such calls.
pub(crate) fn refusal(pid: Pid) -> Option<Refusal> {
    let threads = proc::threads(pid).unwrap_or_default();
    allowed(&threads).unwrap_or(false).then(|| Refusal {
        pid,
        comm: proc::comm(pid),
        resource: "ports".into(),
        reason: "it may use ports of devices (ioperm(2), iopl(2)), which is not carried".into(),
    })
}

fn allowed(threads: &[Tid]) -> Result<bool, Unreadable> {
    kernel::look(|kernel| {
        let field = |path| Ok(kernel.btf().field("task_struct", path)?.offset);
        let places = [field("thread.io_bitmap")?, field("thread.iopl_emul")?];
        let tasks = kernel.tasks(threads)?;
        let [bitmaps, levels] = places.map(|place| kernel.words_within(&tasks, place));
        let mut kept = bitmaps?.into_iter().chain(levels?).flatten();
        Ok(kept.any(|word| word != 0))
    })
}
