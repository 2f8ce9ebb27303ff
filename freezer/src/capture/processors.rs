//! Who may run on all processors of its control group, since nobody has asked for some of them (sched_setaffinity(2)):
//! it follows when the group gets others.

use crate::{Frozen, kernel};
use nix::sys::utsname::uname;
use persist_mem::manifest::{Process, State};
use std::collections::BTreeSet;
use sys::Tid;

/// The first release that keeps what was asked for (`user_cpus_ptr`; before that a group makes threads forget it).
const KEPT_SINCE: (u32, u32) = (6, 2);

/// Threads that nobody has asked for.
#[derive(Debug, Default)]
pub(super) struct Anywhere(BTreeSet<Tid>);

impl Anywhere {
    /// Of everybody who is stopped. None are known where the kernel's memory cannot be read.
    pub(super) fn find(frozen: &Frozen) -> Anywhere {
        if !is_kept() {
            return Anywhere::default();
        }
        let found = kernel::words_of(&frozen.tids(), "user_cpus_ptr").into_iter();
        let nothing = found.filter(|(_, asked)| *asked == 0);
        Anywhere(nothing.map(|(tid, _)| tid).collect())
    }

    /// Tells the threads of a process.
    pub(super) fn tell(&self, process: &mut Process) {
        let State::Live(live) = &mut process.state else {
            return;
        };
        let waiting = live.vforks.iter_mut().map(|waiting| &mut waiting.thread);
        for thread in live.threads.iter_mut().chain(waiting) {
            thread.scheduling.anywhere = self.0.contains(&thread.tid);
        }
    }
}

fn is_kept() -> bool {
    let Ok(names) = uname() else { return false };
    let release = names.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|digits| digits.parse().ok());
    let version: Option<(u32, u32)> = number().zip(number());
    version.is_some_and(|version| version >= KEPT_SINCE)
}
