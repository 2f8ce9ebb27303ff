//! Parents that wait in vfork(2) for a child.
//!
//! Only the thread that makes such a child waits for it, and does nothing else from then on. So it gets all
//! it has of its own before; the stop that tells of the birth holds it until the thaw. Where it is the leader,
//! another thread acts for its process meanwhile. Where there is none, one is made for this, which ends before the
//! signals at the parent's death are set: children get those when the thread ends that has made them.

use super::birth;
use super::ids::GivenBack;
use crate::ResurrectError;
use crate::process::signals::{OfEnded, forget_children};
use crate::restore::Restore;
use crate::thread::{attributes, credentials, registers, signals};
use persist_mem::manifest::{Live, Process, Thread};
use std::collections::{BTreeMap, BTreeSet};
use sys::batch::Batch;
use sys::tracee::{Tracee, TraceeError};
use sys::{Errno, Pid, Tid};

const CLONE_VFORK: u64 = 0x4000;
/// A thread that shares everything with the one that makes it: CLONE_VM, _FS, _FILES, _SIGHAND, _THREAD, _SYSVSEM.
pub(crate) const HELPER: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;
/// Ids that are tried for a helper.
const TRIES: usize = 1000;
const EXIT: i64 = crate::calls::nr::EXIT;

/// The thread of `by` that waits in vfork(2) for `pid`.
pub(super) fn waits<'a>(restore: &Restore<'a>, by: Pid, pid: Pid) -> Option<&'a Thread> {
    let mut lives = restore.lives();
    let (_, live) = lives.find(|(parent, _)| *parent == by)?;
    let waiting = live.vforks.iter().find(|waiting| waiting.child == pid)?;
    Some(&waiting.thread)
}

/// Memory at an address.
pub(super) type Bytes = Option<(u64, Vec<u8>)>;

/// Makes the child `pid` of `by`, whose `thread` waits for it from then on. Returns the child's id as this process
/// sees it, and what is in the thread's rseq area.
pub(super) fn make(
    restore: &mut Restore<'_>,
    pid: Pid,
    (by, thread): (Pid, &Thread),
    (flags, exit_signal): (u64, u64),
) -> Result<(Tid, Bytes), ResurrectError> {
    let doing = format!("making its child {pid}, for which it waits");
    let mut waiter = step_aside(restore, by, thread)?;
    // The kernel writes there as soon as it is registered, and again when the thread goes on: until then the
    // pages are as they were saved.
    let failed = || ResurrectError::call(by, "keeping its rseq area as it is");
    let area = thread.rseq.map(|rseq| {
        let bytes = waiter.mem().read_vec(rseq.pointer, rseq.size as usize);
        bytes.map(|bytes| (rseq.pointer, bytes))
    });
    let area = area.transpose().map_err(failed())?;
    its_own(by, thread, &mut waiter)?;
    let live = restore.lives().find(|(found, _)| *found == by);
    for batch in live
        .into_iter()
        .flat_map(|(_, live)| signals::early(by, live, thread))
    {
        crate::calls::run(by, "queueing its signals", &mut waiter, &batch)?;
    }
    let mut batch = Batch::new();
    let args = birth::clone_args(&mut batch, flags | CLONE_VFORK, exit_signal, pid.0);
    batch.call("making a child", crate::calls::nr::CLONE3, args);
    let given_back = GivenBack::begin();
    let host = loop {
        let born = waiter.run_to_vfork(&batch);
        let output = match born.map_err(ResurrectError::tracee(by, doing.as_str()))? {
            Ok(host) => break host,
            Err(output) => output,
        };
        let failure = batch.failure(&output);
        if failure.as_ref().is_none_or(|f| f.errno != Errno::EEXIST) {
            let why = failure.map_or_else(|| "it did not wait".into(), |f| f.to_string());
            return Err(ResurrectError::Impossible { pid, why });
        }
        if !given_back.again(pid) {
            return Err(birth::taken(pid));
        }
    };
    if let Some((address, bytes)) = &area {
        let written = waiter.mem().write(*address, bytes);
        written.map_err(failed())?;
    }
    restore.task(by)?.in_vfork.insert(thread.tid, waiter);
    Ok((host, area))
}

/// A child with a copy of its parent's memory has that one's rseq registration, too, and this `area`.
pub(super) fn forget_rseq(pid: Pid, child: &mut Tracee, area: Bytes) -> Result<(), ResurrectError> {
    crate::memory::empty::forget_rseq(pid, child)?;
    let Some((address, bytes)) = area else {
        return Ok(());
    };
    let written = child.mem().write(address, &bytes);
    written.map_err(ResurrectError::call(pid, "keeping its rseq area as it is"))
}

/// Takes a thread that is going to wait from those that act. Where it has acted for its process another one does
/// from then on.
fn step_aside(
    restore: &mut Restore<'_>,
    by: Pid,
    thread: &Thread,
) -> Result<Tracee, ResurrectError> {
    let live = restore.lives().find(|(pid, _)| *pid == by);
    let Some((_, live)) = live else {
        return Err(not_made(by, thread.tid));
    };
    let acts = match live.threads.first() {
        _ if thread.tid != by.leader() => {
            let task = restore.task(by)?;
            crate::thread::birth::one(by, task, live, thread)?;
            let made = task.threads.remove(&thread.tid);
            return made.ok_or_else(|| not_made(by, thread.tid));
        }
        Some(other) => {
            let task = restore.task(by)?;
            crate::thread::birth::one(by, task, live, other)?;
            let made = task.threads.remove(&other.tid);
            made.ok_or_else(|| not_made(by, other.tid))?
        }
        None => helper(restore, by)?,
    };
    let task = restore.task(by)?;
    task.helped = live.threads.is_empty();
    Ok(core::mem::replace(&mut task.first, acts))
}

fn not_made(pid: Pid, tid: Tid) -> ResurrectError {
    let why = format!("its thread {tid} was not made");
    ResurrectError::Impossible { pid, why }
}

/// A thread under an id that nobody has or will have.
pub(crate) fn helper(restore: &mut Restore<'_>, by: Pid) -> Result<Tracee, ResurrectError> {
    let wanted: BTreeSet<i32> = restore.manifest.processes.iter().flat_map(ids).collect();
    let first = &mut restore.task(by)?.first;
    let mut free = (by.0 + 1..).filter(|id| !wanted.contains(id)).take(TRIES);
    loop {
        let id = free.next().ok_or_else(|| ResurrectError::Impossible {
            pid: by,
            why: "there is no id for a helper".into(),
        })?;
        match birth::thread(by, first, Tid(id), HELPER) {
            Err(ResurrectError::Taken { .. }) => {}
            made => return made,
        }
    }
}

/// Ids that a process has or names.
fn ids(process: &Process) -> Vec<i32> {
    let threads = process.live().into_iter().flat_map(Live::all_threads);
    let threads = threads.map(|thread| thread.tid.0);
    let own = [process.pid, process.pgid, process.sid].map(|pid| pid.0);
    threads.chain(own).collect()
}

/// What the waiting thread has of its own.
fn its_own(pid: Pid, thread: &Thread, tracee: &mut Tracee) -> Result<(), ResurrectError> {
    attributes::of_thread(pid, tracee, thread)?;
    let mut batch = Batch::new();
    credentials::become_user(&mut batch, &thread.credentials);
    credentials::afterwards(&mut batch, thread);
    crate::calls::run(pid, "setting a thread's credentials", tracee, &batch).map(drop)
}

/// Ends the threads that have acted for parents that wait. One whose memory no child has is the last one to act in it.
pub(crate) fn end_helpers(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    const DOING: &str = "ending a helper";
    let ended = OfEnded::of(restore.manifest);
    let lives: BTreeMap<Pid, &Live> = restore.lives().collect();
    for (pid, live) in restore.lives() {
        let task = restore.task(pid)?;
        if !task.helped {
            continue;
        }
        let first = &mut task.first;
        let mut batch = Batch::new();
        forget_children(pid, live, &ended, &mut batch);
        let ended = if registers::actor(&lives, pid) == pid {
            crate::calls::run(pid, DOING, first, &batch)?;
            let gate = registers::own_gate(first, live, &mut None);
            registers::remove_scratch(pid, first, live, &mut None)?;
            let gate = gate.ok_or_else(|| ResurrectError::call(pid, DOING)(Errno::ENOENT))?;
            first.single_call(gate, EXIT, [0; 6]).map(drop)
        } else {
            batch.call(DOING, EXIT, [0.into()]);
            first.run_raw(&batch).map(drop)
        };
        match ended {
            Err(TraceeError::Ended { .. }) => {}
            Err(cause) => return Err(ResurrectError::tracee(pid, DOING)(cause)),
            Ok(()) => return Err(ResurrectError::call(pid, DOING)(Errno::EBUSY)),
        }
    }
    Ok(())
}
