//! Signal dispositions.

use crate::ResurrectError;
use crate::calls::nr;
use crate::restore::Restore;
use persist_mem::manifest::{Live, Manifest, SigAction, State};
use std::collections::{BTreeMap, BTreeSet};
use sys::Pid;
use sys::batch::Batch;

const SIGKILL: usize = 9;
const SIGCHLD: usize = 17;
const SIGCONT: usize = 18;
const SIGSTOP: usize = 19;
const SIGNALS: usize = 64;
const SIG_IGN: u64 = 1;
/// What comes of rebuilding to every process that has children or is stopped meanwhile.
const OF_REBUILDING: [usize; 2] = [SIGCHLD, SIGCONT];

/// Sets every disposition but that of SIGCHLD, which comes with the queued signals ([`forget_children`]): children
/// of who ignores it leave nothing behind, and those that have ended before are still to do so.
pub(crate) fn set_actions(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let mut batches = BTreeMap::new();
    let there = there_already(restore);
    for (pid, live) in restore.lives() {
        let early = queued_early(pid, live);
        let mut batch = Batch::new();
        for (index, action) in live.actions.iter().enumerate() {
            let signal = index + 1;
            let set = *action == SigAction::default() && there.contains(&signal);
            if !set && ![SIGKILL, SIGSTOP, SIGCHLD].contains(&signal) && !early.contains(&signal) {
                put_action(&mut batch, signal, action);
            }
        }
        batches.insert((pid, None), batch);
    }
    restore
        .together("setting signal actions", batches)
        .map(drop)
}

/// Signals that have the default action in all processes: they have that of this one, from which they come.
fn there_already(restore: &Restore<'_>) -> BTreeSet<usize> {
    // Who waits in vfork(2) may have set some by then, which its child has, too.
    if restore.lives().any(|(_, live)| !live.vforks.is_empty()) {
        return BTreeSet::new();
    }
    let signals = 1..=SIGNALS;
    signals
        .filter(|signal| i32::try_from(*signal).is_ok_and(sys::process::has_no_action))
        .collect()
}

/// The signals that ended children, which have been made again, were to send to their parents.
pub(crate) struct OfEnded(BTreeMap<Pid, BTreeSet<usize>>);

impl OfEnded {
    pub(crate) fn of(manifest: &Manifest) -> OfEnded {
        let mut all: BTreeMap<Pid, BTreeSet<usize>> = BTreeMap::new();
        for child in &manifest.processes {
            if let (State::Zombie { .. }, Ok(signal)) = (&child.state, child.exit_signal.try_into())
            {
                all.entry(child.ppid).or_default().insert(signal);
            }
        }
        OfEnded(all)
    }
}

/// Ignoring a signal empties its queue (kernel/signal.c, do_sigaction): what came of rebuilding is forgotten.
pub(crate) fn forget_children(pid: Pid, live: &Live, ended: &OfEnded, batch: &mut Batch) {
    let early = queued_early(pid, live);
    let mut came = ended.0.get(&pid).cloned().unwrap_or_default();
    came.extend(OF_REBUILDING);
    for signal in came {
        let Some(action) = live.actions.get(signal.wrapping_sub(1)) else {
            continue;
        };
        if ![SIGKILL, SIGSTOP].contains(&signal) && !early.contains(&signal) {
            put_action(batch, signal, &ignoring());
            put_action(batch, signal, action);
        }
    }
}

/// The same for a process that is to have other actions by then.
pub(crate) fn forget(batch: &mut Batch) {
    for signal in OF_REBUILDING {
        put_action(batch, signal, &ignoring());
    }
}

fn ignoring() -> SigAction {
    SigAction {
        handler: SIG_IGN,
        ..SigAction::default()
    }
}

/// Signals that a thread has queued before it went on to wait in vfork(2), and whose actions it has set.
pub(crate) fn queued_early(pid: Pid, live: &Live) -> BTreeSet<usize> {
    let own = live
        .vforks
        .iter()
        .flat_map(|waiting| &waiting.thread.pending);
    let shared = live.pending.iter();
    let shared = shared.filter(|_| live.waits_in_vfork(pid.leader()));
    let numbers = own.chain(shared).map(crate::thread::signals::number);
    numbers
        .filter_map(|number| usize::try_from(number).ok())
        .collect()
}

/// Sets one of them.
pub(crate) fn put_action(batch: &mut Batch, signal: usize, action: &SigAction) {
    let words = [action.handler, action.flags, action.restorer, action.mask];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let action = batch.data(&bytes);
    let args = [signal.into(), action.into(), 0.into(), 8.into()];
    batch.call("setting a signal action", nr::RT_SIGACTION, args);
}
