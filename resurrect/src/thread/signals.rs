//! Queued signals of threads and processes.
//!
//! From here on breakpoints end no batches any more: they would take a SIGTRAP that is queued, and make the
//! kernel forget that it is ignored (kernel/signal.c, force_sig_info_to_task).

use crate::ResurrectError;
use crate::calls::nr;
use crate::process::signals::{OfEnded, forget_children, put_action, queued_early};
use crate::process::{limits, timers};
use crate::restore::Restore;
use persist_mem::manifest::{Live, QueuedSignal, Thread};
use std::collections::{BTreeMap, BTreeSet};
use sys::batch::{Batch, Buffer};
use sys::tracee::Tracee;
use sys::{Pid, Tid, process};

const SIGTRAP: usize = 5;
const SIGKILL: i32 = 9;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
const SIGTSTP: i32 = 20;
const SIGTTOU: i32 = 22;
const SIGURG: i32 = 23;
const REAL_TIME: i32 = 32;
const SIGNALS: i32 = 64;
/// Signals that faults raise: SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV and SIGSYS.
const FAULTS: [i32; 6] = [4, 5, 7, 8, 11, 31];
const EVERY: u64 = u64::MAX;
/// Signals that one batch queues.
const AT_ONCE: usize = 400;

/// Its number.
pub(crate) fn number(queued: &QueuedSignal) -> i32 {
    queued
        .0
        .first_chunk::<4>()
        .map_or(0, |bytes| i32::from_le_bytes(*bytes))
}

/// Queues them again, in order.
pub(crate) fn queue(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    super::each_in(restore, |pid, tracee, live, _| {
        tracee.set_marker(marker(&queued(live)));
        tracee
            .set_sigmask(EVERY)
            .map_err(ResurrectError::tracee(pid, "blocking its signals"))
    })?;
    settle_actions(restore)?;
    // Where all threads wait in vfork(2) there are none.
    for (pid, live) in restore.lives().filter(|(_, live)| !live.threads.is_empty()) {
        let first = &mut restore.task(pid)?.first;
        if live.ended_leader.is_none() && !live.waits_in_vfork(pid.leader()) {
            for batch in queues(pid, live) {
                settled(pid, "queueing its signals", first, &batch)?;
            }
        }
    }
    super::each_in(restore, |pid, tracee, live, thread| {
        let queued = |queued: &&QueuedSignal| is_queued_inside(live, queued);
        let pending: Vec<_> = thread.pending.iter().filter(queued).collect();
        for some in pending.chunks(AT_ONCE) {
            let batch = for_thread(pid, thread.tid, some);
            settled(pid, "queueing a thread's signals", tracee, &batch)?;
        }
        Ok(())
    })?;
    let with_signals = |live: &Live| !live.threads.is_empty() && !nothing_to_queue(live);
    for (pid, live) in restore.lives().filter(|(_, live)| with_signals(live)) {
        let first = &mut restore.task(pid)?.first;
        let mut batch = Batch::new();
        limits::set_last(&mut batch, live);
        settled(pid, "setting its last limits", first, &batch)?;
    }
    Ok(())
}

/// What all processes need before signals are queued, side by side.
fn settle_actions(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    const DOING: &str = "setting its actions for signals";
    let lives: BTreeMap<Pid, &Live> = restore.lives().collect();
    let owners: BTreeSet<Pid> = lives.values().filter_map(|live| live.mm_of).collect();
    let ended = OfEnded::of(restore.manifest);
    let mut all = Vec::new();
    for (pid, task) in &mut restore.tasks {
        let Some(live) = lives.get(pid).filter(|live| !live.threads.is_empty()) else {
            continue;
        };
        let mut batch = Batch::new();
        if let Some(action) = live.actions.get(SIGTRAP - 1) {
            put_action(&mut batch, SIGTRAP, action);
        }
        // Leaders that end have done the rest.
        if live.ended_leader.is_none() {
            forget_children(*pid, live, &ended, &mut batch);
        }
        if nothing_to_queue(live) {
            limits::set_last(&mut batch, live);
        }
        // In memory that several have there is one place.
        if live.mm_of.is_some() || owners.contains(pid) {
            settled(*pid, DOING, &mut task.first, &batch)?;
        } else if !batch.is_empty() {
            all.push((*pid, &mut task.first, batch));
        }
    }
    let mut running = Vec::new();
    for (pid, tracee, batch) in all {
        let begun = tracee.begin(&batch, 0);
        let begun = begun.map_err(ResurrectError::tracee(pid, DOING))?;
        running.push((pid, tracee, batch, begun));
    }
    // The last one first, as where batches are run together.
    for (pid, tracee, batch, begun) in running.into_iter().rev() {
        let ended = tracee.end(&batch, &begun);
        ended.map_err(ResurrectError::tracee(pid, DOING))?;
    }
    Ok(())
}

/// Queues SIGSTOP, which nobody can block: whatever call is made after that takes it.
pub(crate) fn queue_stops(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let stops = |all: &[QueuedSignal]| all.iter().any(|one| number(one) == SIGSTOP);
    let failed = |pid| ResurrectError::call(pid, "queueing the signal that stops it");
    for (pid, live) in restore.lives().filter(|(_, live)| live.traced.is_none()) {
        let task = restore.task(pid)?;
        let host = task.host_pid();
        if stops(&live.pending) {
            process::kill(host, SIGSTOP).map_err(failed(pid))?;
        }
        for (tracee, thread) in task.all().zip(super::in_order(&live.threads)) {
            if stops(&thread.pending) {
                process::tgkill(host, tracee.tid(), SIGSTOP).map_err(failed(pid))?;
            }
        }
    }
    Ok(())
}

/// What a thread queues before it goes on to wait in vfork(2), the leader also for its process. Of these signals it sets
/// the actions before: a signal that is ignored from then on is not queued any more.
pub(crate) fn early(pid: Pid, live: &Live, thread: &Thread) -> Vec<Batch> {
    let mut actions = Batch::new();
    for signal in queued_early(pid, live) {
        if let Some(action) = live.actions.get(signal - 1) {
            put_action(&mut actions, signal, action);
        }
    }
    let shared = match thread.tid == pid.leader() {
        true => queues(pid, live),
        false => Vec::new(),
    };
    let own = thread.pending.chunks(AT_ONCE).map(|some| {
        let some: Vec<_> = some.iter().collect();
        for_thread(pid, thread.tid, &some)
    });
    std::iter::once(actions).chain(shared).chain(own).collect()
}

/// Those of a process as a whole, for its leader.
pub(super) fn of_process(pid: Pid, live: &Live, ended: &OfEnded) -> Vec<Batch> {
    let mut forget = Batch::new();
    forget_children(pid, live, ended, &mut forget);
    std::iter::once(forget).chain(queues(pid, live)).collect()
}

/// What queues them.
fn queues(pid: Pid, live: &Live) -> Vec<Batch> {
    let queued = |queued: &&QueuedSignal| is_queued_inside(live, queued);
    let pending: Vec<_> = live.pending.iter().filter(queued).collect();
    let queue = pending.chunks(AT_ONCE).map(|some| {
        let mut batch = Batch::new();
        for queued in some {
            let info = put(&mut batch, queued);
            let args = [pid.0.into(), number(queued).into(), info.into()];
            batch.call("queueing a signal", nr::RT_SIGQUEUEINFO, args);
        }
        batch
    });
    queue.collect()
}

fn for_thread(pid: Pid, tid: Tid, signals: &[&QueuedSignal]) -> Batch {
    let mut batch = Batch::new();
    for queued in signals {
        let info = put(&mut batch, queued);
        let args = [
            pid.0.into(),
            tid.0.into(),
            number(queued).into(),
            info.into(),
        ];
        batch.call("queueing a signal", nr::RT_TGSIGQUEUEINFO, args);
    }
    batch
}

/// Whether a thread of the process queues a signal by itself.
fn is_queued_inside(live: &Live, queued: &QueuedSignal) -> bool {
    !timers::comes_again(live, queued) && number(queued) != SIGSTOP
}

/// Whether no signal waits in a process or its threads.
fn nothing_to_queue(live: &Live) -> bool {
    live.pending.is_empty() && live.threads.iter().all(|thread| thread.pending.is_empty())
}

/// The signals that wait in a process or its threads.
pub(super) fn queued(live: &Live) -> BTreeSet<i32> {
    let threads = live.threads.iter().flat_map(|thread| &thread.pending);
    live.pending.iter().chain(threads).map(number).collect()
}

/// A signal that ends batches and is not queued. The real-time ones come late: they need room in the queue. Last come
/// those that faults raise: when one of them is not blocked the kernel takes whichever was queued first, blocked or not
/// (kernel/signal.c, dequeue_synchronous_signal).
fn marker(queued: &BTreeSet<i32>) -> i32 {
    // Stop signals take a SIGCONT away (kernel/signal.c, prepare_signal).
    let stops = if queued.contains(&SIGCONT) {
        0..0
    } else {
        SIGTSTP..SIGURG
    };
    let plain = (1..REAL_TIME)
        .filter(|signal| !(SIGCONT..=SIGTTOU).contains(signal) && !FAULTS.contains(signal));
    let all = [SIGURG].into_iter().chain(plain).chain(stops);
    all.chain(REAL_TIME..=SIGNALS)
        .chain(FAULTS)
        .find(|signal| *signal != SIGKILL && !queued.contains(signal))
        .unwrap_or(SIGURG)
}

/// Makes a batch in a thread for which signals may be queued: it is ended by its marker.
pub(super) fn settled(
    pid: Pid,
    doing: &'static str,
    tracee: &mut Tracee,
    batch: &Batch,
) -> Result<(), ResurrectError> {
    if batch.is_empty() {
        return Ok(());
    }
    tracee
        .run(batch)
        .map_err(ResurrectError::tracee(pid, doing))
        .map(drop)
}

fn put(batch: &mut Batch, queued: &QueuedSignal) -> Buffer {
    let mut bytes = queued.0.clone();
    bytes.resize(sys::ptrace::SIGINFO_SIZE, 0);
    batch.data(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_not_queued() {
        let marker = |queued: &[i32]| super::marker(&queued.iter().copied().collect());
        assert_eq!(marker(&[]), SIGURG);
        assert_eq!(marker(&[SIGURG]), 1);
        assert_eq!(marker(&[SIGURG, 1, 2, 3]), 6);
        let most: Vec<i32> = (1..32).filter(|s| !(18..=22).contains(s)).collect();
        assert_eq!(marker(&most), SIGTSTP);
        let all: Vec<i32> = (1..33).collect();
        assert_eq!(marker(&all), 33);
    }
}
