//! From phase to phase: the time line, and the places where a signal or a planned fault stops it.

use super::fault;
use crate::signals::Held;
use anyhow::Result;
use persist_mem::manifest::{Phase, Stamp};
use std::time::Instant;

/// An upgrade on its way.
pub(super) struct Course {
    held: Held,
    stamps: Vec<Stamp>,
    start: (u64, Instant),
}

impl Course {
    pub(super) fn begin() -> Result<Course> {
        Ok(Course {
            held: Held::hold()?,
            stamps: Vec::new(),
            start: (sys::clock::tsc(), Instant::now()),
        })
    }

    /// Begins a phase, perhaps once more, unless a signal came in the one before. The jump takes no notice of them.
    pub(super) fn enter(&mut self, phase: Phase) -> Result<()> {
        log::info!(
            "{phase} begins at {:.1} ms",
            self.start.1.elapsed().as_secs_f64() * 1000.0
        );
        fault::signal_at(phase);
        // Before the jump things are taken from the processes that cannot be given back.
        if phase != Phase::Jump {
            self.check()?;
        }
        let earlier = self.stamps.iter().position(|stamp| stamp.phase == phase);
        self.stamps.truncate(earlier.unwrap_or(usize::MAX));
        self.stamps.push(Stamp {
            phase,
            tsc: sys::clock::tsc(),
        });
        Ok(())
    }

    /// Fails when a signal came.
    pub(super) fn check(&self) -> Result<()> {
        self.held.check()
    }

    pub(super) fn stamps(&self) -> Vec<Stamp> {
        self.stamps.clone()
    }

    /// Frequency of the time stamp counter, measured since the beginning.
    pub(super) fn tsc_khz(&self) -> u64 {
        let ticks = sys::clock::tsc().wrapping_sub(self.start.0);
        let micros = self.start.1.elapsed().as_micros().max(1);
        u64::try_from(u128::from(ticks) * 1000 / micros).unwrap_or(u64::MAX)
    }
}
