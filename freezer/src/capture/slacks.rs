//! What timer slack threads began with (`default_timer_slack_ns`), which no interface shows without setting it.

use crate::{Frozen, kernel};
use persist_mem::manifest::{Process, State};
use std::collections::BTreeMap;
use sys::Tid;

/// That of nearly everybody, in nanoseconds.
const USUAL: u64 = 50_000;

/// Those of threads that began with another one.
#[derive(Debug, Default)]
pub(super) struct Slacks(BTreeMap<Tid, u64>);

impl Slacks {
    /// Of everybody who is stopped. All are usual where the kernel's memory cannot be read.
    pub(super) fn find(frozen: &Frozen) -> Slacks {
        let mut found = kernel::words_of(&frozen.tids(), "default_timer_slack_ns");
        found.retain(|_, slack| *slack != USUAL);
        Slacks(found)
    }

    /// Tells the threads of a process.
    pub(super) fn tell(&self, process: &mut Process) {
        let State::Live(live) = &mut process.state else {
            return;
        };
        let waiting = live.vforks.iter_mut().map(|waiting| &mut waiting.thread);
        for thread in live.threads.iter_mut().chain(waiting) {
            thread.scheduling.first_slack = self.0.get(&thread.tid).copied();
        }
    }
}
