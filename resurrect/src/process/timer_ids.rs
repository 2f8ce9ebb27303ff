//! The ids of timers: newer kernels (6.16) take the one that is asked for, older ones count up.

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use persist_mem::manifest::Live;
use std::ops::Range;
use sys::Pid;
use sys::batch::{Batch, CallIndex};
use sys::tracee::Tracee;

const CLOCK_MONOTONIC: i32 = 1;
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
const CHOOSING: &str = "choosing timer ids";
const COUNTING: &str = "counting timer ids";
/// How many are counted in one go.
const AT_ONCE: usize = 256;
/// How far is counted: a million takes a second.
const FAR: i32 = 1 << 20;

/// Switches on or off that new timers get the ids they ask for.
pub(super) fn choose(batch: &mut Batch, on: bool) -> CallIndex {
    let args = [PR_TIMER_CREATE_RESTORE_IDS.into(), i32::from(on).into()];
    batch.try_call(CHOOSING, nr::PRCTL, args)
}

/// Has timers get the ids they ask for, if the kernel does that.
pub(super) fn begin_to_choose(restore: &mut Restore<'_>, pid: Pid) -> Result<bool, ResurrectError> {
    let mut batch = Batch::new();
    let chosen = choose(&mut batch, true);
    let output = run(pid, CHOOSING, &mut restore.task(pid)?.first, &batch)?;
    Ok(output.result(chosen).is_ok())
}

/// As before.
pub(super) fn stop_choosing(restore: &mut Restore<'_>, pid: Pid) -> Result<(), ResurrectError> {
    let mut batch = Batch::new();
    choose(&mut batch, false);
    run(pid, CHOOSING, &mut restore.task(pid)?.first, &batch).map(drop)
}

/// Uses up ids, of which the first one is next: makes timers and removes them.
pub(super) fn count(
    pid: Pid,
    maker: &mut Tracee,
    mut ids: Range<i32>,
) -> Result<(), ResurrectError> {
    if ids.len() > FAR as usize {
        let why = format!("timer {} is too far to count to", ids.end);
        return Err(ResurrectError::Impossible { pid, why });
    }
    while !ids.is_empty() {
        use_up(pid, maker, ids.by_ref().take(AT_ONCE))?;
    }
    Ok(())
}

/// Makes timers that have these ids, and removes each of them at once.
fn use_up(
    pid: Pid,
    maker: &mut Tracee,
    ids: impl Iterator<Item = i32>,
) -> Result<(), ResurrectError> {
    let mut batch = Batch::new();
    let calls = ids.map(|id| {
        let place = batch.data(&id.to_le_bytes());
        let args = [CLOCK_MONOTONIC.into(), 0.into(), place.into()];
        let made = batch.try_call("making a timer", nr::TIMER_CREATE, args);
        let removed = batch.try_call("removing a timer", nr::TIMER_DELETE, [id.into()]);
        (id, made, removed)
    });
    let calls: Vec<_> = calls.collect();
    let output = run(pid, COUNTING, maker, &batch)?;
    for (id, made, removed) in calls {
        output
            .result(made)
            .map_err(ResurrectError::call(pid, COUNTING))?;
        if output.result(removed).is_err() {
            let why = format!("timer {id} came with another id");
            return Err(ResurrectError::Impossible { pid, why });
        }
    }
    Ok(())
}

/// Has the next timer of a process get this id, as it would have before. Where its timers are as many as it may have, or
/// it is too far, it gets the one behind the last that is there.
pub(super) fn count_on(
    restore: &mut Restore<'_>,
    pid: Pid,
    live: &Live,
    next: i32,
) -> Result<(), ResurrectError> {
    let behind_last = live
        .timers
        .last()
        .map_or(0, |timer| timer.id.saturating_add(1));
    let chosen = begin_to_choose(restore, pid)?;
    let first = &mut restore.task(pid)?.first;
    let counted = match chosen {
        true => use_up(pid, first, [next.saturating_sub(1)].into_iter()),
        false if next.saturating_sub(behind_last) > FAR => Ok(()),
        false => count(pid, first, behind_last..next),
    };
    match counted {
        Err(ResurrectError::Call { .. }) => {
            log::debug!("process {pid} may not make as many timers as it has made");
        }
        other => other?,
    }
    match chosen {
        true => stop_choosing(restore, pid),
        false => Ok(()),
    }
}
