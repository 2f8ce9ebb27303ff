//! One new process: a shell without memory of its own.

use super::ids::GivenBack;
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::memory;
use crate::restore::Restore;
use crate::task::{Memory, Task};
use crate::thread::{landlock, slack};
use persist_mem::manifest::{Live, Thread, ThreadUndo};
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use sys::batch::Batch;
use sys::ptrace::{self, options};
use sys::tracee::Tracee;
use sys::wait::{self, Status};
use sys::{Errno, Pid, Tid, process};

const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_SYSVSEM: u64 = 0x4_0000;
const SIGCHLD: u64 = 17;
/// How processes under construction are traced.
pub(crate) const OPTIONS: u64 =
    options::TRACEFORK | options::TRACEVFORK | options::TRACECLONE | options::EXITKILL;

/// Stands for the parent of the tree's root while it is built. It ends before the tree goes on, so that
/// the end of this process is not the end of a parent.
pub(super) const INTERMEDIATE: Pid = Pid(0);

/// Makes `pid`: by this process, or by a process under construction.
pub(super) fn fork(
    restore: &mut Restore<'_>,
    pid: Pid,
    by: Option<Pid>,
    sibling: bool,
) -> Result<(), ResurrectError> {
    let locked = match by {
        Some(by) => memory::before_fork(restore, by, pid)?,
        None => Vec::new(),
    };
    let lives: BTreeMap<Pid, &Live> = restore.lives().collect();
    let owner = |pid: Pid| lives.get(&pid).and_then(|live| live.mm_of);
    let memory = by.and_then(|by| match restore.tasks.get(&by)?.memory {
        // It is the same memory, which is built already.
        _ if owner(pid).is_some() => Some(Memory::Own { inherited: true }),
        Memory::Own { .. } => Some(Memory::Of(owner(by).unwrap_or(by))),
        inherited => Some(inherited),
    });
    if let Some(by) = by {
        landlock::before_fork(restore, by, pid)?;
    }
    let mut leader = match by {
        // The first process of a PID namespace has its founder as parent whatever is done.
        None if restore.is_upgrade() => first(restore, pid, &[pid])?,
        None => {
            if !restore.tasks.contains_key(&INTERMEDIATE) {
                let leader = first(restore, INTERMEDIATE, &[])?;
                let task = Task {
                    first: leader,
                    threads: BTreeMap::new(),
                    ending: None,
                    in_vfork: BTreeMap::new(),
                    helped: false,
                    handed_over: false,
                    memory: Memory::Empty,
                    layers: 0,
                };
                restore.tasks.insert(INTERMEDIATE, task);
            }
            descendant(restore, pid, INTERMEDIATE, false)?
        }
        Some(by) => descendant(restore, pid, by, sibling)?,
    };
    if let Some(by) = by.filter(|_| !locked.is_empty()) {
        memory::after_fork(restore, by, &locked)?;
    }
    let maker = by.and_then(|by| restore.tasks.get(&by));
    leader.set_lender(maker.and_then(|maker| maker.first.lender()));
    let task = Task {
        first: leader,
        threads: BTreeMap::new(),
        ending: None,
        in_vfork: BTreeMap::new(),
        helped: false,
        handed_over: false,
        memory: memory.unwrap_or_default(),
        layers: maker.map_or(0, |maker| maker.layers),
    };
    let host = task.host_pid();
    let first = by.is_none();
    restore.tasks.insert(pid, task);
    crate::process::cgroups::enter(restore, pid, by);
    match restore.options.born {
        Some(born) if first => born(host).map_err(|why| ResurrectError::Impossible { pid, why }),
        _ => Ok(()),
    }
}

/// The clone_args structure of clone3(2).
pub(crate) fn clone_args(
    batch: &mut Batch,
    flags: u64,
    exit_signal: u64,
    id: i32,
) -> [sys::batch::Arg; 2] {
    const SIZE: usize = 88;
    let ids = batch.data(&id.to_le_bytes());
    let mut bytes = [0; SIZE];
    bytes[..8].copy_from_slice(&flags.to_le_bytes());
    bytes[32..40].copy_from_slice(&exit_signal.to_le_bytes());
    // set_tid_size
    bytes[72..80].copy_from_slice(&1_u64.to_le_bytes());
    let args = batch.data(&bytes);
    // set_tid
    batch.pointer(args, 64, ids);
    [args.into(), SIZE.into()]
}

pub(crate) fn taken(pid: Pid) -> ResurrectError {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    let comm = comm.map_or_else(|_| String::new(), |comm| format!(" ({})", comm.trim_end()));
    ResurrectError::Taken { pid, comm }
}

fn descendant(
    restore: &mut Restore<'_>,
    pid: Pid,
    by: Pid,
    sibling: bool,
) -> Result<Tracee, ResurrectError> {
    let scratch = restore.scratch.place();
    let recorded = restore.manifest.processes.iter().find(|p| p.pid == pid);
    // Helpers have none.
    let exit_signal = recorded.map_or(SIGCHLD, |p| u64::from(p.exit_signal.cast_unsigned()));
    let mut batch = Batch::new();
    let mut flags = if sibling { CLONE_PARENT } else { 0 };
    if let Some(live) = recorded.and_then(|process| process.live()) {
        for (whose, flag) in shared(live) {
            let Some(owner) = whose else { continue };
            if !has_table_of(restore, by, owner, flag) {
                let why =
                    format!("it shares a table with {owner}, and {by} makes it, which does not");
                return Err(ResurrectError::Impossible { pid, why });
            }
            flags |= flag;
        }
    }
    if let Some(thread) = shares_io(restore, pid, by, sibling) {
        crate::thread::birth::have_io_context(by, &mut restore.task(by)?.first, thread)?;
        flags |= crate::thread::birth::CLONE_IO;
    }
    // A sibling's exit signal is that of the caller.
    let signal = if sibling { 0 } else { exit_signal };
    if let Some(thread) = super::vfork::waits(restore, by, pid) {
        let (host, area) = super::vfork::make(restore, pid, (by, thread), (flags, signal))?;
        wait_until_stopped(pid, host)?;
        let mut leader = adopt(pid, host, scratch)?;
        if flags & CLONE_VM == 0 {
            super::vfork::forget_rseq(pid, &mut leader, area)?;
        }
        return Ok(leader);
    }
    let leader = recorded.and_then(|process| process.live());
    let leader = leader.and_then(|live| live.all_threads().find(|of| of.tid == pid.leader()));
    slack::around(&mut batch, leader, |batch| {
        let args = clone_args(batch, flags, signal, pid.0);
        batch.call("making a child", nr::CLONE3, args);
    });
    let thread = recorded.filter(|process| process.ppid == by && !sibling);
    let parent = parent(
        restore,
        by,
        thread.and_then(|process| process.parent_thread),
        flags,
    )?;
    let host = child(parent, by, pid, &batch)?;
    wait_until_stopped(pid, host)?;
    adopt(pid, host, scratch)
}

/// Has `parent`, a thread of `by`, make the child `pid`.
fn child(parent: &mut Tracee, by: Pid, pid: Pid, batch: &Batch) -> Result<Tid, ResurrectError> {
    let failed = || ResurrectError::tracee(by, format!("making its child {pid}"));
    let given_back = GivenBack::begin();
    loop {
        let output = parent.run_raw(batch).map_err(failed())?;
        let born = parent.take_born();
        let Some(failure) = batch.failure(&output) else {
            let host = born.last().copied();
            return host.ok_or_else(|| ResurrectError::Impossible {
                pid,
                why: "the kernel did not tell of its birth".into(),
            });
        };
        if failure.errno != Errno::EEXIST {
            let cause = sys::tracee::TraceeError::Call {
                tid: parent.tid(),
                failure: Box::new(failure),
            };
            return Err(failed()(cause));
        }
        if !given_back.again(pid) {
            return Err(taken(pid));
        }
    }
}

/// The first thread of a process that shares the I/O context of `by`, which makes it.
fn shares_io<'a>(restore: &Restore<'a>, pid: Pid, by: Pid, sibling: bool) -> Option<&'a Thread> {
    let process = restore.manifest.processes.iter().find(|p| p.pid == pid)?;
    let made = process.ppid == by && process.parent_thread.is_none() && !sibling;
    let live = process.live().filter(|live| live.shares_io && made)?;
    live.all_threads().next()
}

/// The thread of `by` that makes a child: its leader, or another one that is made for it already.
fn parent<'a>(
    restore: &'a mut Restore<'_>,
    by: Pid,
    thread: Option<Tid>,
    flags: u64,
) -> Result<&'a mut Tracee, ResurrectError> {
    let live = restore.lives().find(|(pid, _)| *pid == by);
    let found = live.and_then(|(_, live)| {
        let mut threads = live.all_threads();
        Some((live, threads.find(|known| Some(known.tid) == thread)?))
    });
    let task = restore.task(by)?;
    let waits = |tid: Tid| task.in_vfork.contains_key(&tid);
    // What a child shares with its parent it has from a thread that has it.
    let has = |thread: &Thread| {
        (flags & CLONE_FILES == 0 || thread.files.is_none())
            && (flags & CLONE_FS == 0 || thread.directories.is_none())
            && (flags & CLONE_SYSVSEM == 0 || thread.undo == ThreadUndo::Shared)
    };
    let makes = |thread: &Thread| thread.tid != by.leader() && !waits(thread.tid) && has(thread);
    let Some((live, thread)) = found.filter(|(_, thread)| makes(thread)) else {
        return Ok(&mut task.first);
    };
    crate::thread::birth::one(by, task, live, thread)?;
    Ok(task.threads.get_mut(&thread.tid).unwrap_or(&mut task.first))
}

/// Whose tables a process has where they are not its own, and the flags that make it so.
fn shared(live: &Live) -> [(Option<Pid>, u64); 5] {
    [
        (live.mm_of, CLONE_VM),
        (live.fs_of, CLONE_FS),
        (live.files_of, CLONE_FILES),
        (live.actions_of, CLONE_SIGHAND),
        (live.undo_of, CLONE_SYSVSEM),
    ]
}

/// Whether `pid` has the table of `owner` that `flag` shares.
fn has_table_of(restore: &Restore<'_>, pid: Pid, owner: Pid, flag: u64) -> bool {
    let found = restore.lives().find(|(found, _)| *found == pid);
    let whose = found.and_then(|(_, live)| {
        let mut tables = shared(live).into_iter();
        tables.find(|(_, its)| *its == flag)?.0.or(Some(pid))
    });
    whose == Some(owner)
}

/// The first process: a copy of this one, emptied.
fn first(restore: &mut Restore<'_>, pid: Pid, set_tid: &[Pid]) -> Result<Tracee, ResurrectError> {
    let flags = restore.options.root_flags;
    let host = process::spawn(flags, set_tid, || {
        process::wait_for_end(&restore.self_pidfd);
        1
    });
    let host = match host {
        Ok(host) => host.leader(),
        Err(Errno::EEXIST) => return Err(taken(pid)),
        Err(errno) => return Err(ResurrectError::call(pid, "making it")(errno)),
    };
    let failed = |doing: &'static str| ResurrectError::call(pid, doing);
    ptrace::seize(host, OPTIONS).map_err(failed("tracing it"))?;
    ptrace::interrupt(host).map_err(failed("stopping it"))?;
    wait_until_stopped(pid, host)?;
    let mut leader = adopt(pid, host, restore.scratch.place())?;
    memory::empty::forget_rseq(pid, &mut leader)?;
    memory::empty::park_vdso(pid, &mut leader, restore.scratch.end())?;
    memory::empty::unmap_all(
        pid,
        &mut leader,
        restore.scratch.place().address,
        restore.scratch.end(),
    )?;
    close_all_but(pid, &mut leader, restore.self_pidfd.as_raw_fd())?;
    Ok(leader)
}

fn close_all_but(pid: Pid, leader: &mut Tracee, kept: i32) -> Result<(), ResurrectError> {
    let mut batch = Batch::new();
    if kept > 0 {
        let args = [0.into(), (kept - 1).into(), 0.into()];
        batch.call("closing descriptors", nr::CLOSE_RANGE, args);
    }
    let args = [(kept + 1).into(), u64::from(u32::MAX).into(), 0.into()];
    batch.call("closing descriptors", nr::CLOSE_RANGE, args);
    run(pid, "closing descriptors", leader, &batch).map(drop)
}

/// Waits for the stop that a new thread begins with.
pub(crate) fn wait_until_stopped(pid: Pid, host: Tid) -> Result<(), ResurrectError> {
    let failed = |errno| ResurrectError::call(pid, "waiting for its first stop")(errno);
    // It stops before it runs, for which it needs the processor that this process is on.
    match wait::wait_for(host).map_err(failed)? {
        Status::Trap => Ok(()),
        _ => Err(failed(Errno::EPROTO)),
    }
}

/// Takes hold of a new process: nothing may be delivered to it before it is whole.
fn adopt(pid: Pid, host: Tid, scratch: sys::tracee::Scratch) -> Result<Tracee, ResurrectError> {
    let failed = || ResurrectError::tracee(pid, "taking hold of it");
    let mut leader = Tracee::new(Pid(host.0), host).map_err(failed())?;
    leader.adopt_scratch(scratch, true).map_err(failed())?;
    leader.block_signals().map_err(failed())?;
    Ok(leader)
}

/// A new thread of a process, stopped. `tracee` makes it.
pub(crate) fn thread(
    pid: Pid,
    tracee: &mut Tracee,
    tid: Tid,
    flags: u64,
) -> Result<Tracee, ResurrectError> {
    let mut batch = Batch::new();
    let args = clone_args(&mut batch, flags, 0, tid.0);
    batch.call("making a thread", nr::CLONE3, args);
    let doing = format!("making its thread {tid}");
    let output = tracee
        .run_raw(&batch)
        .map_err(ResurrectError::tracee(pid, doing.as_str()))?;
    let born = tracee.take_born();
    if let Some(failure) = batch.failure(&output) {
        if failure.errno == Errno::EEXIST {
            return Err(taken(Pid(tid.0)));
        }
        let cause = sys::tracee::TraceeError::Call {
            tid: tracee.tid(),
            failure: Box::new(failure),
        };
        return Err(ResurrectError::tracee(pid, doing)(cause));
    }
    let host = born
        .last()
        .copied()
        .ok_or_else(|| ResurrectError::Impossible {
            pid,
            why: format!("the kernel did not tell of the birth of thread {tid}"),
        })?;
    wait_until_stopped(pid, host)?;
    let mut thread = tracee.sibling(host);
    thread
        .block_signals()
        .map_err(ResurrectError::tracee(pid, "taking hold of a thread"))?;
    Ok(thread)
}
