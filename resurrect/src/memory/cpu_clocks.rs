//! Clocks of processor time that go on from where they were ([`sys::cpu_clock`]).
//!
//! Where the calls that this takes are not free (a seccomp filter, syscall user dispatch, a tracer) they begin anew.

use super::{Kernel, vdso};
use crate::ResurrectError;
use crate::restore::Restore;
use persist_mem::filters;
use persist_mem::manifest::{Live, Seccomp, Thread};
use sys::Pid;
use sys::cpu_clock::{Counted, Whose};

/// Has all processes read them so. Nobody is forked any more: each has a vdso of its own.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let kernel = Kernel::of(restore)?;
    let Some(plan) = kernel.parked.cpu_clocks() else {
        log::debug!("this kernel's vdso is not known: processor times begin at 0");
        return Ok(());
    };
    for (pid, live) in restore.lives().filter(|(_, live)| live.mm_of.is_none()) {
        let others = restore
            .lives()
            .filter(|(_, other)| other.mm_of == Some(pid));
        let all: Vec<(Pid, &Live)> = core::iter::once((pid, live)).chain(others).collect();
        let Some(start) = vdso::start(&live.mm, &kernel.parked) else {
            continue;
        };
        if !all.iter().all(|(_, live)| is_free(live, start)) {
            continue;
        }
        let clocks = all.iter().flat_map(|(pid, live)| clocks(*pid, live));
        let pieces = plan.pieces(&clocks.collect::<Vec<Counted>>());
        let mem = restore.task(pid)?.first.mem();
        for (at, bytes) in pieces.unwrap_or_default() {
            let written = mem.write(start + at as u64, &bytes);
            written.map_err(ResurrectError::call(pid, "setting its processor time"))?;
        }
    }
    Ok(())
}

/// Whether all threads may make the calls of code in the vdso, and nobody sees them.
fn is_free(live: &Live, vdso: u64) -> bool {
    const CALLS: [u32; 2] = [39, 186];
    let allows = |filter: &u32| {
        let filter = live.filters.get(*filter as usize);
        filter.is_some_and(|filter| {
            CALLS
                .iter()
                .all(|nr| filters::allows(&filter.code, *nr, vdso))
        })
    };
    let free = |thread: &Thread| {
        let allowed = match &thread.seccomp {
            Seccomp::Off => true,
            Seccomp::Strict => false,
            Seccomp::Filters(filters) => filters.iter().all(allows),
        };
        allowed && thread.dispatch.is_none()
    };
    live.traced.is_none() && live.threads.iter().all(free)
}

fn clocks(pid: Pid, live: &Live) -> impl Iterator<Item = Counted> {
    let threads = live.all_threads();
    let threads = threads.map(|thread| (Whose::Thread(thread.tid.0), thread.cpu_time));
    core::iter::once((Whose::Process(pid.0), live.cpu_time)).chain(threads)
}
