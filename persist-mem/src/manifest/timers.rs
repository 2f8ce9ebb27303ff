//! Timers of processes.

use super::QueuedSignal;
use serde::{Deserialize, Serialize};
use sys::{Pid, Tid};

/// `struct itimerval` in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Itimer {
    /// Time to the next expiry, 0 when disarmed.
    pub value_us: u64,
    /// Period.
    pub interval_us: u64,
}

/// A timer made by timer_create(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// Its id.
    pub id: i32,
    /// Its clock.
    pub clock: i32,
    /// `SIGEV_*`.
    pub notify: i32,
    /// Its signal.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// Thread for `SIGEV_THREAD_ID`, else 0.
    pub tid: Tid,
    /// Of CLOCK_THREAD_CPUTIME_ID the thread that made it, whose time it counts; else 0, and where nobody knows.
    pub made_by: Tid,
    /// Nanoseconds to the next expiry, 0 when disarmed.
    pub remaining: u64,
    /// Period in nanoseconds.
    pub interval: u64,
    /// Periods that have passed since it expired, while its signal waits; 0 when none does.
    pub missed: u64,
    /// For CLOCK_REALTIME: it follows when that is set (`TIMER_ABSTIME`).
    pub absolute: bool,
}

/// Whether a clock is that of the thread that makes a timer of it: CLOCK_THREAD_CPUTIME_ID, or the same for thread 0.
#[must_use]
pub fn counts_maker(clock: i32) -> bool {
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    const OF_THREAD_0: i32 = -2;
    clock == CLOCK_THREAD_CPUTIME_ID || clock == OF_THREAD_0
}

/// Whose time on the processor a timer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerOwner {
    /// A thread of its process.
    Thread(Tid),
    /// A process.
    Process(Pid),
}

impl PosixTimer {
    /// Whether its clock stands still with its process: CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, and those of
    /// other tasks (negative).
    #[must_use]
    pub fn counts_cpu(&self) -> bool {
        self.clock < 0 || self.clock == 2 || self.clock == 3
    }

    /// The thread that has to make it, None when any may.
    #[must_use]
    pub fn maker(&self) -> Option<Tid> {
        (counts_maker(self.clock) && self.made_by.0 != 0).then_some(self.made_by)
    }

    /// Whose time on the processor it counts, None for its own process's and for other clocks.
    #[must_use]
    pub fn owner(&self) -> Option<TimerOwner> {
        // include/linux/posix-timers_types.h, CPUCLOCK_*.
        const KIND: i32 = 3;
        const OF_A_THREAD: i32 = 4;
        const OF_A_FILE: i32 = 3;
        let id = !(self.clock >> 3);
        if self.clock >= 0 || self.clock & KIND == OF_A_FILE || id == 0 {
            return self.maker().map(TimerOwner::Thread);
        }
        Some(match self.clock & OF_A_THREAD {
            0 => TimerOwner::Process(Pid(id)),
            _ => TimerOwner::Thread(Tid(id)),
        })
    }

    /// Whether it signals one thread (`SIGEV_THREAD_ID`).
    #[must_use]
    pub fn signals_thread(&self) -> bool {
        const SIGEV_THREAD_ID: i32 = 4;
        self.notify & SIGEV_THREAD_ID != 0
    }

    /// Whether it sends a signal (all but `SIGEV_NONE`).
    #[must_use]
    pub fn notifies(&self) -> bool {
        const SIGEV_NONE: i32 = 1;
        self.notify & SIGEV_NONE == 0
    }

    /// Whether a queued signal is its.
    #[must_use]
    pub fn has_queued(&self, queued: &QueuedSignal) -> bool {
        const SI_TIMER: i32 = -2;
        let number = |at: usize| {
            let bytes = queued.0.get(at..at + 4)?;
            Some(i32::from_le_bytes(bytes.try_into().ok()?))
        };
        // si_signo, si_code, si_timerid.
        [number(0), number(8), number(16)] == [self.signal, SI_TIMER, self.id].map(Some)
    }
}
