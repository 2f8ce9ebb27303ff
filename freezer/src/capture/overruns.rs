//! When a timer expires next, and how often a periodic one has expired since its signal was queued
//! (`struct k_itimer`, kernel/time/posix-timers.c). The kernel keeps the count until the signal is taken, and
//! shows it to nobody before; how long a timer still lasts is past when it is told.

use crate::freeze::monotonic_ns;
use crate::kernel::{self, Unreadable, half, word};
use nix::time::ClockId;
use persist_mem::manifest::counts_maker;
use std::collections::BTreeMap;
use sys::Tid;

const WRONG: Unreadable = Unreadable::Inconsistent("a list of timers");
const CLOCK_REALTIME: i32 = 0;
const CLOCK_MONOTONIC: i32 = 1;
const CLOCK_BOOTTIME: i32 = 7;
const CLOCK_TAI: i32 = 11;
/// More timers than anybody has.
const MOST: usize = 1 << 20;

/// What is kept of a timer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// Periods counted by now, those that timer_gettime(2) has just counted among them.
    pub(super) periods: u64,
    /// Of a clock of processor time the thread or process that it is about.
    pub(super) counts: Option<Tid>,
    /// Nanoseconds, where it can be told.
    pub(super) interval: Option<u64>,
    /// Whether the kernel waits for it, of clocks other than those of processor time.
    pub(super) armed: Option<bool>,
    /// On the clock of the first time namespace.
    expires: Option<i64>,
    /// What to add to this process's reading of CLOCK_MONOTONIC and CLOCK_BOOTTIME to have that.
    offsets: [i64; 2],
}

/// How long a timer still lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lasts {
    /// Nanoseconds.
    pub(super) remaining: u64,
    /// By CLOCK_REALTIME, so that it follows when that is set.
    pub(super) absolute: bool,
}

impl Kept {
    /// How long it lasts, seen from the moment when CLOCK_MONOTONIC showed `then`; timer_gettime(2) has told about
    /// `told` since. None for clocks that count otherwise, and when it should have expired by now.
    pub(super) fn lasts(&self, clock: i32, then: u64, told: u64) -> Option<Lasts> {
        let by = |clock, offset| self.remaining(clock, offset, then);
        let monotonic = || by(ClockId::CLOCK_MONOTONIC, self.offsets[0]);
        let (left, absolute) = match clock {
            // A relative one is kept by CLOCK_MONOTONIC (kernel/time/posix-timers.c, common_hrtimer_arm).
            CLOCK_REALTIME => {
                let (real, even) = (by(ClockId::CLOCK_REALTIME, 0)?, monotonic()?);
                let off = |left: i64| told.cast_signed().saturating_sub(left).unsigned_abs();
                match off(real) < off(even) {
                    true => (real, true),
                    false => (even, false),
                }
            }
            CLOCK_MONOTONIC => (monotonic()?, false),
            CLOCK_BOOTTIME => (by(ClockId::CLOCK_BOOTTIME, self.offsets[1])?, false),
            CLOCK_TAI => (by(ClockId::from_raw(CLOCK_TAI), 0)?, false),
            _ => return None,
        };
        let remaining = u64::try_from(left).ok().filter(|left| *left > 0)?;
        Some(Lasts {
            remaining,
            absolute,
        })
    }

    /// Of a timer that waits for its signal to be taken: what [`Kept::lasts`] tells of its next expiry, and how many
    /// periods are over until then.
    pub(super) fn next(&self, clock: i32, then: u64) -> Option<(Lasts, u64)> {
        let interval = self.interval.filter(|interval| *interval > 0)?;
        let by = |clock, offset| self.remaining(clock, offset, then);
        let monotonic = by(ClockId::CLOCK_MONOTONIC, self.offsets[0]);
        let (left, absolute) = match clock {
            CLOCK_REALTIME => {
                let (real, even) = (by(ClockId::CLOCK_REALTIME, 0)?, monotonic?);
                match real.unsigned_abs() < even.unsigned_abs() {
                    true => (real, true),
                    false => (even, false),
                }
            }
            CLOCK_MONOTONIC => (monotonic?, false),
            CLOCK_BOOTTIME => (by(ClockId::CLOCK_BOOTTIME, self.offsets[1])?, false),
            CLOCK_TAI => (by(ClockId::from_raw(CLOCK_TAI), 0)?, false),
            _ => return None,
        };
        let (remaining, periods) = match u64::try_from(left) {
            Ok(left) if left > 0 => (left, 0),
            _ => {
                let late = left.unsigned_abs();
                (interval - late % interval, late / interval + 1)
            }
        };
        let lasts = Lasts {
            remaining,
            absolute,
        };
        Some((lasts, periods))
    }

    /// Nanoseconds from `then` until it expires when it is kept by a clock.
    fn remaining(&self, clock: ClockId, offset: i64, then: u64) -> Option<i64> {
        let here = sys::clock::read_ns(clock).ok()?;
        let passed = monotonic_ns().checked_sub(then)?;
        let left = self.expires?.checked_sub(here.checked_add(offset)?)?;
        left.checked_add(passed.cast_signed())
    }
}

/// By timer id.
pub(super) fn kept(tid: Tid) -> Result<BTreeMap<i32, Kept>, Unreadable> {
    const WHAT: &str = "the timers of a process";
    kernel::look(|kernel| {
        let btf = kernel.btf();
        let field = |structure, path| Ok(btf.field(structure, path)?.offset);
        let signal = field("task_struct", "signal")?;
        let timers = field("signal_struct", "posix_timers")?;
        let link = field("k_itimer", "list")?;
        let (id, count) = (
            field("k_itimer", "it_id")?,
            field("k_itimer", "it_overrun")?,
        );
        let expires = field("k_itimer", "it.real.timer.node.expires").ok();
        let interval = field("k_itimer", "it_interval").ok();
        let armed = field("k_itimer", "it.real.timer.state")
            .or_else(|_| field("k_itimer", "it.real.timer.is_queued"));
        let armed = armed.ok().and_then(|at| usize::try_from(at).ok());
        let whose = field("k_itimer", "it.cpu.pid")?;
        let clock = field("k_itimer", "it_clock")?;
        let size = btf.size_of("k_itimer")?;
        let offsets = kernel.clock_offsets()?;
        let task = kernel.tasks(&[tid])?.pop().flatten().ok_or(WRONG)?;
        let signal = kernel.word(task.wrapping_add(signal), WHAT)?;
        let head = signal.wrapping_add(timers);
        // A list that ends where it begins, or one that just ends (since Linux 6.11).
        let mut at = kernel.word(head, WHAT)?;
        let mut found = BTreeMap::new();
        while at != 0 && at != head {
            let place = (at.wrapping_sub(link), size as usize);
            let bytes = kernel.read(&[place])?.pop().flatten().ok_or(WRONG)?;
            let id = half(&bytes, id).ok_or(WRONG)?.cast_signed();
            // -1 when nothing is counted: the first expiry is no overrun.
            let count = word(&bytes, count).ok_or(WRONG)?.cast_signed();
            // Of other clocks something else is there.
            let clock = half(&bytes, clock).map(u32::cast_signed);
            let whose = word(&bytes, whose).filter(|_| clock.is_some_and(counts_maker));
            let kept = Kept {
                interval: interval.and_then(|at| word(&bytes, at)),
                armed: armed.and_then(|at| bytes.get(at).map(|state| *state != 0)),
                counts: whose.map(|pid| kernel.number(pid)).transpose()?,
                periods: u64::try_from(count.saturating_add(1)).unwrap_or(0),
                expires: expires.and_then(|at| word(&bytes, at).map(u64::cast_signed)),
                offsets,
            };
            found.insert(id, kept);
            at = word(&bytes, link).ok_or(WRONG)?;
            if found.len() > MOST {
                return Err(WRONG);
            }
        }
        Ok(found)
    })
}
