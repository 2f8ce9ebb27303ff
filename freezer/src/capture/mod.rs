//! A stopped tree, described.

mod attributes;
mod credentials;
mod memory;
mod pages;
mod process;
mod signals;
mod sleep;
mod thread;
mod timers;

pub(crate) use memory::refusals as memory_refusals;

use crate::files::Table;
use crate::{FreezerError, Frozen};
use nix::time::ClockId;
use persist_mem::manifest::{Clocks, Host, Manifest, Process, State};
use sys::Pid;

/// Where the contents of pages go.
pub trait PageSink {
    /// Keeps `pages` pages of a process from address `va`; returns the number of the first page in
    /// the store. Pages of one call get consecutive numbers.
    ///
    /// # Errors
    /// Whatever reading or writing them meets.
    fn save(&mut self, mem: &sys::vm::ProcMem, va: u64, pages: u64) -> std::io::Result<u64>;
}

/// Describes a stopped tree. The processes stay stopped and are left as they were.
///
/// # Errors
/// When anything is met that is not carried, or cannot be read.
pub fn capture(frozen: &Frozen, sink: &mut dyn PageSink) -> Result<Manifest, FreezerError> {
    crate::files::pipe::refuse_outside(frozen)?;
    let mut table = Table::new();
    let mut processes = Vec::new();
    for pid in frozen.pids() {
        processes.push(process::capture(frozen, pid, &mut table, sink)?);
    }
    for &pid in frozen.zombies() {
        processes.push(zombie(pid)?);
    }
    let (descriptions, pipes) = table.finish();
    Ok(Manifest {
        host: host()?,
        processes,
        descriptions,
        pipes,
        shared_objects: Vec::new(),
        upgrade: None,
    })
}

fn zombie(pid: Pid) -> Result<Process, FreezerError> {
    let stat = crate::proc::Stat::read(pid, "stat")?;
    let status = i32::try_from(stat.field(52)).unwrap_or(0);
    let state = State::Zombie {
        status,
        comm: stat.comm().to_vec(),
    };
    Ok(Process {
        pid,
        ppid: stat.pid(4),
        pgid: stat.pid(5),
        sid: stat.pid(6),
        state,
    })
}

fn host() -> Result<Host, FreezerError> {
    let this = Pid(nix::unistd::getpid().as_raw());
    let read =
        |clock| sys::clock::read_ns(clock).map_err(FreezerError::call(this, "reading the clocks"));
    let clocks = Clocks {
        realtime: read(ClockId::CLOCK_REALTIME)?,
        monotonic: read(ClockId::CLOCK_MONOTONIC)?,
        boottime: read(ClockId::CLOCK_BOOTTIME)?,
        tsc: sys::clock::tsc(),
    };
    let uname = nix::sys::utsname::uname()
        .map_err(FreezerError::call(this, "asking for the kernel's release"))?;
    Ok(Host {
        release: uname.release().to_string_lossy().into_owned(),
        kupgrade: env!("CARGO_PKG_VERSION").into(),
        clocks,
        page_size: 4096,
    })
}
