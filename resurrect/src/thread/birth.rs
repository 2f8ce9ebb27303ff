//! Making threads, as many as there are in a few batches of the one that acts for their process.

use super::{leader, slack};
use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use crate::task::Task;
use crate::tree::ids::GivenBack;
use crate::tree::{OPTIONS, clone_args, taken, wait_until_stopped};
use persist_mem::manifest::{Birth, Live, Thread, ThreadUndo};
use std::collections::{BTreeMap, BTreeSet};
use sys::batch::{Batch, CallIndex};
use sys::ptrace::{self, options};
use sys::tracee::{Tracee, TraceeError};
use sys::{Errno, Pid, Tid};

const CLONE_VM: u64 = 0x100;
const CLONE_FS: u64 = 0x200;
const CLONE_FILES: u64 = 0x400;
const CLONE_SIGHAND: u64 = 0x800;
/// The tracer of who makes it is its tracer from the first moment on.
const CLONE_PTRACE: u64 = 0x2000;
const CLONE_THREAD: u64 = 0x1_0000;
const CLONE_SYSVSEM: u64 = 0x4_0000;
/// The I/O context (ioprio_set(2)).
pub(crate) const CLONE_IO: u64 = 0x8000_0000;
const FLAGS: u64 = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD;
/// Of [`Birth::shares`].
const SHARES: [u64; 4] = [CLONE_FILES, CLONE_FS, CLONE_SYSVSEM, CLONE_IO];

/// Threads that are made in one batch.
const AT_ONCE: usize = 300;

/// Makes every thread beside the leaders.
pub(crate) fn create(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    // In a PID namespace of their own only the events tell which thread is which.
    let told = restore.is_upgrade();
    for (pid, live) in restore.lives() {
        let task = restore.task(pid)?;
        let led = usize::from(live.ended_leader.is_none());
        let wanted = live.threads.get(led..).unwrap_or_default().iter();
        // Some may have been needed to make a child.
        let wanted = wanted.filter(|thread| !task.threads.contains_key(&thread.tid));
        let wanted: Vec<&Thread> = wanted.collect();
        for (maker, wanted) in in_turn(wanted, &births(pid, live)?) {
            for some in wanted.chunks(AT_ONCE) {
                if told {
                    make(pid, (task, maker), some, 0)?;
                } else {
                    untold(pid, (task, maker), some)?;
                }
            }
        }
        if led == 0 {
            leader::step_back(live, task);
        }
    }
    Ok(())
}

/// Of a thread with its process's tables, and nobody's I/O context.
const PLAIN: Birth = Birth {
    by: None,
    shares: [true, true, true, false],
};

fn births(pid: Pid, live: &Live) -> Result<BTreeMap<Tid, Birth>, ResurrectError> {
    live.births().map_err(|tid| ResurrectError::Impossible {
        pid,
        why: format!("no thread has all the tables that its thread {tid} shares"),
    })
}

/// How a thread is made.
fn birth(pid: Pid, live: &Live, thread: &Thread) -> Result<Birth, ResurrectError> {
    let has_own = thread.files.is_some() || thread.directories.is_some();
    if !has_own && thread.undo == ThreadUndo::Shared && thread.io_of.is_none() {
        return Ok(PLAIN);
    }
    let all = births(pid, live)?;
    Ok(all.get(&thread.tid).copied().unwrap_or(PLAIN))
}

/// A thread and how it is made.
type Born<'a> = (&'a Thread, Birth);

/// Those who are made by the same one together, behind that one.
fn in_turn<'a>(
    mut wanted: Vec<&'a Thread>,
    births: &BTreeMap<Tid, Birth>,
) -> Vec<(Option<Tid>, Vec<Born<'a>>)> {
    let of = |thread: &Thread| births.get(&thread.tid).copied().unwrap_or(PLAIN);
    let mut turns = Vec::new();
    while !wanted.is_empty() {
        let waits: BTreeSet<Tid> = wanted.iter().map(|thread| thread.tid).collect();
        let mut by: BTreeMap<Option<Tid>, Vec<Born<'a>>> = BTreeMap::new();
        wanted.retain(|thread| {
            let birth = of(thread);
            let now = birth.by.is_none_or(|by| !waits.contains(&by));
            if now {
                by.entry(birth.by).or_default().push((*thread, birth));
            }
            !now
        });
        if by.is_empty() {
            break;
        }
        turns.extend(by);
    }
    turns
}
/// Makes one thread of `live`, unless it is there.
pub(crate) fn one(
    pid: Pid,
    task: &mut Task,
    live: &Live,
    thread: &Thread,
) -> Result<(), ResurrectError> {
    if task.threads.contains_key(&thread.tid) {
        return Ok(());
    }
    let birth = birth(pid, live, thread)?;
    let maker = live
        .threads
        .iter()
        .find(|known| Some(known.tid) == birth.by);
    if let Some(maker) = maker {
        one(pid, task, live, maker)?;
    }
    make(pid, (task, birth.by), &[(thread, birth)], 0)
}

/// Makes threads without a stop of who makes them at each.
fn untold(
    pid: Pid,
    (task, by): (&mut Task, Option<Tid>),
    wanted: &[Born<'_>],
) -> Result<(), ResurrectError> {
    let failed = || ResurrectError::call(pid, "choosing what is told of it");
    let maker = making(pid, task, by)?.tid();
    ptrace::set_options(maker, OPTIONS & !options::TRACECLONE).map_err(failed())?;
    make(pid, (task, by), wanted, CLONE_PTRACE)?;
    // They have the options that it had.
    let made = wanted.iter().map(|(thread, _)| thread.tid);
    for tid in made.chain([maker]) {
        ptrace::set_options(tid, OPTIONS).map_err(failed())?;
    }
    Ok(())
}

/// The thread that makes others.
fn making(pid: Pid, task: &mut Task, by: Option<Tid>) -> Result<&mut Tracee, ResurrectError> {
    let Some(tid) = by else {
        return Ok(&mut task.first);
    };
    let maker = task.threads.get_mut(&tid);
    maker.ok_or_else(|| ResurrectError::Impossible {
        pid,
        why: format!("its thread {tid}, which is to make others, was not made"),
    })
}

/// Makes threads, one after the other. An id may not be given back yet (see [`GivenBack`]).
fn make(
    pid: Pid,
    (task, by): (&mut Task, Option<Tid>),
    wanted: &[Born<'_>],
    more: u64,
) -> Result<(), ResurrectError> {
    let given_back = GivenBack::begin();
    let mut left = wanted;
    loop {
        let made = make_some(pid, (&mut *task, by), left, more)?;
        left = left.get(made..).unwrap_or_default();
        let Some((refused, _)) = left.first() else {
            return Ok(());
        };
        let id = Pid(refused.tid.0);
        if !given_back.again(id) {
            return Err(taken(id));
        }
    }
}

/// Makes threads until one's id is not free, and tells how many it made. They have signals blocked as the one that
/// makes them. Who has a table of its own gets it here, while there is nothing in it.
fn make_some(
    pid: Pid,
    (task, by): (&mut Task, Option<Tid>),
    wanted: &[Born<'_>],
    more: u64,
) -> Result<usize, ResurrectError> {
    const DOING: &str = "making its threads";
    let (batch, calls) = calls(wanted, more);
    let maker = making(pid, task, by)?;
    let ran = maker.run_raw(&batch);
    let told = maker.take_born();
    let output = ran.map_err(ResurrectError::tracee(pid, DOING))?;
    let made = wanted.iter().zip(&calls);
    let made: Vec<Tid> = made
        .filter(|(_, call)| output.result(**call).is_ok())
        .map(|((thread, _), _)| thread.tid)
        .collect();
    let hosts = if more == 0 { &told } else { &made };
    for (tid, host) in made.iter().zip(hosts) {
        task.threads.insert(*tid, task.first.sibling(*host));
        wait_until_stopped(pid, *host)?;
    }
    let failure = batch.failure(&output);
    if let Some(failure) = failure.filter(|failure| failure.errno != Errno::EEXIST) {
        let (tid, failure) = (making(pid, task, by)?.tid(), Box::new(failure));
        return Err(ResurrectError::tracee(pid, DOING)(TraceeError::Call {
            tid,
            failure,
        }));
    }
    if hosts.len() != made.len() {
        return Err(ResurrectError::Impossible {
            pid,
            why: "the kernel did not tell of the birth of all its threads".into(),
        });
    }
    Ok(made.len())
}

/// The calls that make threads.
fn calls(wanted: &[Born<'_>], more: u64) -> (Batch, Vec<CallIndex>) {
    let mut batch = Batch::new();
    let mut calls = Vec::new();
    for (thread, birth) in wanted {
        let shared = SHARES.iter().zip(birth.shares).filter(|(_, has)| *has);
        let flags = shared.fold(FLAGS | more, |all, (flag, _)| all | flag);
        if flags & CLONE_IO != 0 {
            io_context(&mut batch, thread);
        }
        calls.push(slack::around(&mut batch, Some(thread), |batch| {
            let args = clone_args(batch, flags, 0, thread.tid.0);
            batch.call("making a thread", nr::CLONE3, args)
        }));
    }
    (batch, calls)
}

/// Sets the I/O priority that `like` had: who has done that has a context that others can share.
fn io_context(batch: &mut Batch, like: &Thread) {
    const WHO_PROCESS: i32 = 1;
    let priority = like.scheduling.ioprio.into();
    let args = [WHO_PROCESS.into(), 0.into(), priority];
    batch.call("making an I/O context", nr::IOPRIO_SET, args);
}

/// Has a thread make such a context.
pub(crate) fn have_io_context(
    pid: Pid,
    tracee: &mut Tracee,
    like: &Thread,
) -> Result<(), ResurrectError> {
    let mut batch = Batch::new();
    io_context(&mut batch, like);
    run(pid, "making an I/O context", tracee, &batch).map(drop)
}
