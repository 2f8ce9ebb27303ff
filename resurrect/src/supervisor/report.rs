//! What an upgrade did and how long each part took, on one clock across the jump.

use super::clock::between;
use super::{Result, SupervisorError};
use crate::Lost;
use persist_mem::manifest::Moved;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::Path;

/// Where the last report lies.
pub const REPORT: &str = "/run/kupgrade/report.json";

/// A part of the upgrade, as time stamp counter readings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// What it is called.
    pub name: String,
    /// Counter at its start.
    pub start: u64,
    /// Counter at its end.
    pub end: u64,
}

/// Collects spans that follow one another.
#[derive(Debug)]
pub struct TimeLine {
    spans: Vec<Span>,
    began: u64,
    last: u64,
}

impl TimeLine {
    /// Begins at a counter reading.
    #[must_use]
    pub fn begin(tsc: u64) -> TimeLine {
        TimeLine {
            spans: Vec::new(),
            began: tsc,
            last: tsc,
        }
    }

    /// Ends a part now.
    pub fn done(&mut self, name: &str) {
        self.done_at(name, sys::clock::tsc());
    }

    /// Ends a part at a counter reading.
    pub fn done_at(&mut self, name: &str, tsc: u64) {
        self.spans.push(Span {
            name: name.to_owned(),
            start: self.last,
            end: tsc,
        });
        self.last = tsc;
    }

    /// The counter at its begin.
    #[must_use]
    pub fn began(&self) -> u64 {
        self.began
    }

    /// The parts so far.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }
}

/// A part of the upgrade in milliseconds from the start of its first part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// What it is called.
    pub name: String,
    /// Start.
    pub start_ms: f64,
    /// End.
    pub end_ms: f64,
}

/// The report of one upgrade. Bytes and milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Kernel release before.
    pub from: String,
    /// Kernel release after.
    pub to: String,
    /// Processes carried.
    pub processes: u64,
    /// Threads carried.
    pub threads: u64,
    /// Bytes whose page stayed where it was.
    pub bytes_in_place: u64,
    /// Bytes that were copied before the jump.
    pub bytes_moved: u64,
    /// Where these had been.
    pub moved: Moved,
    /// From the freeze to the thaw.
    pub blackout_ms: f64,
    /// The time line.
    pub phases: Vec<Phase>,
    /// Pages whose checksum was compared, 0 without `--verify`.
    pub pages_verified: u64,
    /// MemTotal before.
    pub mem_total_before: u64,
    /// MemTotal now.
    pub mem_total_after: u64,
    /// Whether the memory was handed back; nothing more is to come then.
    pub complete: bool,
    /// Processes that could not be rebuilt.
    pub lost: Vec<Lost>,
    /// What is not as before and no failure: mounts, settings, memory that stayed out.
    pub warnings: Vec<String>,
}

impl Report {
    /// Sets the time line from spans; the blackout is from the start of the span named `freeze`
    /// to the end of the one named `thaw`.
    pub fn set_phases(&mut self, spans: &[Span], hz: u64) {
        let Some(zero) = spans.iter().map(|s| s.start).min() else {
            return;
        };
        let ms = |tsc: u64| between(zero, tsc, hz) as f64 / 1e6;
        self.phases = spans
            .iter()
            .map(|s| Phase {
                name: s.name.clone(),
                start_ms: ms(s.start),
                end_ms: ms(s.end),
            })
            .collect();
        let find = |name: &str| self.phases.iter().find(|p| p.name == name);
        if let (Some(freeze), Some(thaw)) = (find("freeze"), find("thaw")) {
            self.blackout_ms = thaw.end_ms - freeze.start_ms;
        }
    }

    /// Reads a stored report.
    ///
    /// # Errors
    /// There is none, or it is none.
    pub fn read(path: &Path) -> Result<Report> {
        let fail = |source| SupervisorError::File {
            path: path.to_owned(),
            source,
        };
        let bytes = std::fs::read(path).map_err(fail)?;
        serde_json::from_slice(&bytes).map_err(|e| fail(e.into()))
    }

    /// Stores it in one step.
    ///
    /// # Errors
    /// The directory or file cannot be written.
    pub fn store(&self, path: &Path) -> Result<()> {
        let fail = |source| SupervisorError::File {
            path: path.to_owned(),
            source,
        };
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| fail(e.into()))?;
        text.push(b'\n');
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(fail)?;
        }
        let scratch = path.with_extension("new");
        std::fs::write(&scratch, text).map_err(fail)?;
        std::fs::rename(&scratch, path).map_err(fail)
    }

    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        const MIB: f64 = 1024.0 * 1024.0;
        let mib = |bytes: u64| bytes as f64 / MIB;
        let mut text = String::new();
        let carried = self.bytes_in_place + self.bytes_moved;
        let share = self.bytes_in_place as f64 * 100.0 / carried.max(1) as f64;
        let mut row = |name: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:<12} {value}");
        };
        row("kernel", format!("{} -> {}", self.from, self.to));
        row(
            "carried",
            format!("{} processes, {} threads", self.processes, self.threads),
        );
        row(
            "memory",
            format!(
                "{:.1} MiB in place ({share:.2} %), {:.1} MiB moved, {} pages verified",
                mib(self.bytes_in_place),
                mib(self.bytes_moved),
                self.pages_verified
            ),
        );
        let places = [
            ("out of the boot window", self.moved.window),
            ("out of the first memory block", self.moved.first_block),
            ("out of the last memory blocks", self.moved.last_blocks),
        ];
        for (place, bytes) in places.iter().filter(|(_, bytes)| *bytes > 0) {
            row("  moved", format!("{:.1} MiB {place}", mib(*bytes)));
        }
        row(
            "MemTotal",
            format!(
                "{:.0} MiB before, {:.0} MiB after{}",
                mib(self.mem_total_before),
                mib(self.mem_total_after),
                if self.complete {
                    ""
                } else {
                    " (not all handed back yet)"
                }
            ),
        );
        row("blackout", format!("{:.1} ms", self.blackout_ms));
        for phase in &self.phases {
            row(
                &format!("  {}", phase.name),
                format!(
                    "{:>10.1} ms  +{:.1} ms",
                    phase.start_ms,
                    phase.end_ms - phase.start_ms
                ),
            );
        }
        for lost in &self.lost {
            row("LOST", lost.to_string());
        }
        for warning in &self.warnings {
            row("note", warning.clone());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blackout_spans_both_kernels() {
        let mut line = TimeLine::begin(1_000);
        for (name, at) in [
            ("plan", 2_000),
            ("freeze", 3_000),
            ("kernel", 8_000),
            ("thaw", 9_000),
            ("drain", 99_000),
        ] {
            line.done_at(name, at);
        }
        let mut report = Report::default();
        report.set_phases(line.spans(), 1_000_000);
        assert_eq!(report.phases.len(), 5);
        assert!((report.blackout_ms - 7.0).abs() < 1e-9);
        assert!((report.phases[1].start_ms - 1.0).abs() < 1e-9);
        assert!(report.table().contains("blackout     7.0 ms"));
    }

    #[test]
    fn a_report_is_stored_and_read() {
        let dir = std::env::temp_dir().join(format!("kup-report-{}", std::process::id()));
        let path = dir.join("a/report.json");
        let report = Report {
            processes: 3,
            ..Report::default()
        };
        report.store(&path).unwrap();
        assert_eq!(Report::read(&path).unwrap(), report);
        assert!(Report::read(&dir).is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
