//! Domains of Landlock (landlock(7)): every layer is enforced again, in order, by a ruleset that this process makes.
//!
//! The rulesets are taken while the process can reach this one, and enforced when all is done that a domain forbids:
//! the way to this process, files, sockets, signals to others. Those that several processes are in come earlier
//! ([`together`]).

pub(crate) mod lender;
mod together;

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::error::Subject;
use crate::restore::Restore;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use persist_mem::manifest::{Layer, LayerObject, LayerRule, Thread, ThreadFiles};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use sys::batch::Batch;
use sys::landlock::Object;
use sys::tracee::Tracee;
use sys::{Errno, Pid, Tid};
pub(crate) use together::{Bridges, Early, before_fork, before_threads, end_bridges, kill_bridges};

/// Versions that have flags of landlock_restrict_self(2), and quiet rules.
const HAS_LOG_FLAGS: u32 = 7;
const HAS_QUIET: u32 = 10;

/// A table of descriptors: that of a process, or of a thread that has its own.
type Table = (Pid, Option<Tid>);

/// The numbers under which tables have the rulesets of their processes' layers.
pub(crate) type Rulesets = BTreeMap<Table, Vec<i32>>;

/// Has processes take the rulesets of their layers.
pub(crate) fn take(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    const DOING: &str = "taking its rulesets of Landlock";
    let mut taken = Rulesets::new();
    for (pid, live) in restore.lives() {
        let has = restore.task(pid)?.layers;
        if live.threads.iter().all(|thread| thread.layers.len() <= has) {
            continue;
        }
        let failed = |doing, errno| ResurrectError::call(pid, doing)(errno);
        let made = live.layers.iter().map(|layer| make(layer, &failed));
        let made: Result<Vec<OwnedFd>, ResurrectError> = made.collect();
        let made = made.map_err(|error| error.about(Subject::Process(pid)))?;
        let tables: BTreeSet<Table> = live.threads.iter().map(|one| table(pid, one)).collect();
        let pidfd = restore.self_pidfd.as_raw_fd();
        for table in tables {
            let mut batch = Batch::new();
            let take = |fd: &OwnedFd| {
                let args = [pidfd.into(), fd.as_raw_fd().into(), 0.into()];
                batch.call("taking a ruleset", nr::PIDFD_GETFD, args)
            };
            let calls: Vec<_> = made.iter().map(take).collect();
            let output = run(pid, DOING, keeper(restore, table)?, &batch)?;
            let numbers = calls.iter().map(|call| output.result(*call));
            let numbers = numbers.map(|number| number.map_or(-1, |number| number as i32));
            taken.insert(table, numbers.collect());
        }
    }
    restore.rulesets = taken;
    Ok(())
}

/// Has threads enforce them.
pub(crate) fn enforce(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let rulesets = core::mem::take(&mut restore.rulesets);
    if rulesets.is_empty() {
        return Ok(());
    }
    let tasks = restore.tasks.iter();
    let early: BTreeMap<Pid, usize> = tasks.map(|(pid, task)| (*pid, task.layers)).collect();
    super::together(
        restore,
        "restricting a thread with Landlock",
        |pid, live, thread| {
            let mut batch = Batch::new();
            let numbers = rulesets.get(&table(pid, thread));
            let has = early.get(&pid).copied().unwrap_or(0);
            for at in thread.layers.iter().skip(has) {
                let at = *at as usize;
                // The kernel refuses an index that leads nowhere.
                let number = numbers.and_then(|numbers| numbers.get(at)).unwrap_or(&-1);
                let flags = live.layers.get(at).map_or(0, flags);
                let args = [(*number).into(), flags.into()];
                batch.call("enforcing a ruleset", nr::LANDLOCK_RESTRICT_SELF, args);
            }
            batch
        },
    )?;
    for (table, numbers) in &rulesets {
        let mut batch = Batch::new();
        for number in numbers {
            batch.call("closing a ruleset", nr::CLOSE, [(*number).into()]);
        }
        let keeper = keeper(restore, *table)?;
        run(table.0, "closing its rulesets of Landlock", keeper, &batch)?;
    }
    Ok(())
}

/// How a layer is enforced.
fn flags(layer: &Layer) -> u32 {
    let logs = sys::landlock::version() >= HAS_LOG_FLAGS;
    if logs { layer.log } else { 0 }
}

/// The table that a thread's descriptors are in.
fn table(pid: Pid, thread: &Thread) -> Table {
    let whose = match &thread.files {
        Some(ThreadFiles::Own(_)) => Some(thread.tid),
        Some(ThreadFiles::Of(other)) => Some(*other),
        None => None,
    };
    (pid, whose)
}

/// A thread that has a table.
fn keeper<'a>(
    restore: &'a mut Restore<'_>,
    (pid, whose): Table,
) -> Result<&'a mut Tracee, ResurrectError> {
    let task = restore.task(pid)?;
    let Some(tid) = whose else {
        return Ok(&mut task.first);
    };
    let thread = task.threads.get_mut(&tid);
    thread.ok_or_else(|| ResurrectError::Impossible {
        pid,
        why: format!("its thread {tid} was not made"),
    })
}

/// How a failed call is told.
pub(crate) type Failed<'a> = &'a dyn Fn(&'static str, Errno) -> ResurrectError;

/// A ruleset like a layer.
pub(crate) fn make(layer: &Layer, failed: Failed<'_>) -> Result<OwnedFd, ResurrectError> {
    let quiet = sys::landlock::version() >= HAS_QUIET;
    let (handled, muted) = (layer.handled, layer.quiet);
    let muted = if quiet { muted } else { Default::default() };
    let attributes = [
        handled.fs,
        handled.net,
        handled.scope,
        muted.fs,
        muted.net,
        muted.scope,
    ];
    let ruleset = sys::landlock::ruleset(&attributes)
        .map_err(|errno| failed("making a ruleset of Landlock", errno))?;
    for rule in &layer.rules {
        let quiet = quiet && rule.quiet;
        if rule.allowed != 0 || quiet {
            add(&ruleset, rule, quiet, failed)?;
        }
    }
    Ok(ruleset)
}

fn add(
    ruleset: &OwnedFd,
    rule: &LayerRule,
    quiet: bool,
    failed: Failed<'_>,
) -> Result<(), ResurrectError> {
    let added = match &rule.object {
        LayerObject::Port(port) => {
            sys::landlock::add_rule(ruleset, Object::Port(*port), rule.allowed, quiet)
        }
        LayerObject::Path(path) => {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file = open(OsStr::from_bytes(path), flags, Mode::empty());
            let file = file.map_err(|errno| {
                let why = format!("a rule of Landlock is about it: {errno}");
                ResurrectError::changed(String::from_utf8_lossy(path), why)
            })?;
            let object = Object::Beneath(file.as_fd());
            sys::landlock::add_rule(ruleset, object, rule.allowed, quiet)
        }
    };
    added.map_err(|errno| failed("adding a rule of Landlock", errno))
}
