//! Who waits, since when, and for what.

use crate::ResurrectError;
use crate::processor;
use crate::restore::Restore;
use nix::time::ClockId;
use persist_mem::manifest::{DescriptionId, Live, Thread};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use sys::asleep::{self, Line};
use sys::regs::Regs;
use sys::tracee::Tracee;
use sys::{Pid, Tid, ptrace};

/// Whose time is over so soon does not wait.
const SOON: Duration = Duration::from_millis(1);

/// A thread that waits in a call.
#[derive(Debug)]
pub(super) struct Turn {
    host: Pid,
    tid: Tid,
    /// It acts for its process.
    is_first: bool,
    line: Option<(Line, Whose)>,
    since: Option<u64>,
    processors: Vec<u8>,
}

/// What tells lines of one kind apart that have nothing to do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    /// Those of whoever has this memory.
    Memory(Pid),
    /// Those at an open file.
    File(DescriptionId),
    /// Not known, or everybody's.
    Everybody,
}

impl Whose {
    fn of(pid: Pid, live: &Live, thread: &Thread, line: Line, regs: &Regs) -> Whose {
        match line {
            Line::Futex(_) if line.is_private(regs) => Whose::Memory(live.mm_of.unwrap_or(pid)),
            // Tables that are another process's are known there.
            Line::File(_) if thread.files.is_none() && live.files_of.is_none() => {
                let number = i32::try_from(regs.rdi).ok();
                let mut files = live.files.iter();
                let file = files.find(|file| Some(file.fd) == number);
                file.map_or(Whose::Everybody, |file| Whose::File(file.description))
            }
            Line::Futex(_) | Line::SystemV(..) | Line::File(_) => Whose::Everybody,
        }
    }
}

impl Turn {
    pub(super) fn host(&self) -> Pid {
        self.host
    }

    pub(super) fn tid(&self) -> Tid {
        self.tid
    }

    /// Whether it is known where it may run.
    pub(super) fn may_move(&self) -> bool {
        !self.processors.is_empty()
    }

    /// Lets it run where it may again.
    pub(super) fn give_processors(&self) {
        if let Err(errno) = processor::allow(self.tid, &self.processors) {
            log::debug!("thread {} stays on one processor: {errno}", self.tid);
        }
    }
}

/// Those that wait when they go on.
pub(super) fn find(restore: &mut Restore<'_>) -> Result<Vec<Turn>, ResurrectError> {
    let elapsed = restore.elapsed();
    let now = Now::of(restore, elapsed);
    let mut found = Vec::new();
    let lives: BTreeMap<Pid, &Live> = restore.lives().collect();
    for (pid, task) in &mut restore.tasks {
        let Some(live) = lives.get(pid).filter(|live| live.stopped.is_none()) else {
            continue;
        };
        // What comes for a process that runs is its leader's.
        let mut of_leader = 0;
        let first = task.first.tid();
        for (tracee, thread) in task.all().zip(crate::thread::in_order(&live.threads)) {
            let is_first = tracee.tid() == first;
            let regs = ptrace::get_regs(tracee.tid());
            let regs = regs.map_err(ResurrectError::call(*pid, "reading its registers"))?;
            let waits = now.waits(tracee, thread, &regs);
            if is_first && !waits {
                of_leader = soon_told(live) & !thread.sigmask;
            }
            if !waits || of_leader & !thread.sigmask != 0 {
                continue;
            }
            found.push(Turn {
                host: tracee.pid(),
                tid: tracee.tid(),
                is_first,
                line: Line::of(&regs)
                    .map(|line| (line, Whose::of(*pid, live, thread, line, &regs))),
                since: thread.waits_since,
                processors: processor::wanted(&thread.scheduling).into_owned(),
            });
        }
    }
    Ok(found)
}

/// The signals of a process's timers, a bit each: one may come at any moment.
fn soon_told(live: &Live) -> u64 {
    // SIGALRM, SIGVTALRM, SIGPROF
    let intervals = live.itimers.iter().zip([14, 26, 27]);
    let intervals = intervals.filter(|(timer, _)| timer.value_us > 0 || timer.interval_us > 0);
    let others = live.timers.iter();
    let others = others.filter(|timer| timer.notifies() && !timer.signals_thread());
    let signals = intervals
        .map(|(_, signal)| signal)
        .chain(others.map(|timer| timer.signal));
    signals.fold(0, |all, signal| {
        all | 1u64.checked_shl((signal - 1).cast_unsigned()).unwrap_or(0)
    })
}

/// What the clocks of the restored ones show.
struct Now {
    passed: u64,
    monotonic: i64,
    boottime: i64,
}

impl Now {
    fn of(restore: &Restore<'_>, elapsed: Duration) -> Now {
        let clocks = restore.manifest.host.clocks;
        let passed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        Now {
            passed,
            monotonic: clocks.monotonic.saturating_add_unsigned(passed),
            boottime: clocks.boottime.saturating_add_unsigned(passed),
        }
    }

    /// Whether a thread is in a call that it makes again, and its time is not over yet.
    fn waits(&self, tracee: &Tracee, thread: &Thread, regs: &Regs) -> bool {
        let sleep = thread.sleep.filter(|sleep| !sleep.counts_cpu);
        let left = [
            sleep.map(|sleep| sleep.remaining),
            thread.limit.map(|limit| limit.remaining),
        ];
        let lasts = |left: u64| u128::from(left.saturating_sub(self.passed)) > SOON.as_nanos();
        asleep::is_made_again(regs)
            && left.into_iter().flatten().all(lasts)
            && asleep::ends_at(regs, || Some(tracee.mem())).is_none_or(|end| self.is_ahead(end))
    }

    fn is_ahead(&self, (clock, end): (ClockId, i64)) -> bool {
        let now = match clock {
            ClockId::CLOCK_MONOTONIC => Some(self.monotonic),
            ClockId::CLOCK_BOOTTIME => Some(self.boottime),
            ClockId::CLOCK_REALTIME => sys::clock::read_ns(clock).ok(),
            _ => None,
        };
        now.is_none_or(|now| i128::from(end) - i128::from(now) > SOON.as_nanos().cast_signed())
    }
}

/// Puts those that wait in line behind the others, in the order in which they began. Returns them, but for those that
/// wait alone.
pub(super) fn sort(turns: &mut [Turn]) -> BTreeSet<Tid> {
    let in_line = asleep::in_line(turns.iter().map(|turn| (turn.tid, turn.line)));
    turns.sort_by_key(|turn| asleep::place(in_line.contains(&turn.tid), turn.is_first, turn.since));
    in_line
}
