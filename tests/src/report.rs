//! The summary of upgrades, for people and for machines.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::jump::{Jump, Lost};
use crate::ui;

/// Carried bytes from which on 95 % of them must stay in place. What lies in the first memory block and in those at
/// the ends of RAM does not count: they are RAM of the new kernel on every host.
const JUDGED_FROM: u64 = 400 << 20;
/// What may be copied out of these: there are up to three, of 128 MiB each, and no machine of the lab fills them with
/// what is carried alone.
const NO_CHOICE: u64 = 256 << 20;

/// One upgrade, as `--json` writes it. Memory is in bytes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    from: String,
    to: String,
    processes: u64,
    threads: u64,
    bytes_in_place: u64,
    bytes_moved: u64,
    mem_total_before: u64,
    mem_total_after: u64,
    blackout_ms: f64,
    bare_kexec_ms: Option<f64>,
    ratio: Option<f64>,
    /// What did not verify; empty when all is well.
    pub(crate) errors: Vec<String>,
    #[serde(skip)]
    phases: Vec<(String, f64, f64)>,
    #[serde(skip)]
    command_ms: f64,
}

impl Summary {
    /// Puts together what is known of one upgrade and judges the memory.
    pub(crate) fn new(jump: &Jump, mem_after: u64, mut errors: Vec<String>) -> Self {
        let report = &jump.report;
        let carried = report.bytes_in_place + report.bytes_moved;
        let share = percent(report.bytes_in_place, carried);
        let rest = report.moved.first_block + report.moved.last_blocks;
        let chosen = report.bytes_moved.saturating_sub(rest);
        if carried == 0 {
            errors.push("the report names no carried bytes".into());
        } else if share < 95.0
            && carried >= JUDGED_FROM
            && (chosen > carried / 20 || rest > NO_CHOICE)
        {
            errors.push(format!(
                "only {share:.1} % of the carried bytes stayed in place, not 95 %"
            ));
        }
        for Lost { pid, comm, why } in &report.lost {
            errors.push(format!("process {pid} ({comm}) was lost: {why}"));
        }
        if mem_after.abs_diff(jump.mem_before) > jump.mem_before / 100 {
            errors.push(format!(
                "MemTotal was {} and is {}: more than 1 % away",
                ui::bytes(jump.mem_before),
                ui::bytes(mem_after)
            ));
        }
        Self {
            from: jump.from.clone(),
            to: jump.to.clone(),
            processes: report.processes,
            threads: report.threads,
            bytes_in_place: report.bytes_in_place,
            bytes_moved: report.bytes_moved,
            mem_total_before: jump.mem_before,
            mem_total_after: mem_after,
            blackout_ms: report.blackout_ms,
            bare_kexec_ms: None,
            ratio: None,
            errors,
            phases: report
                .phases
                .iter()
                .map(|p| (p.name.clone(), p.start_ms, p.end_ms))
                .collect(),
            command_ms: jump.command.as_secs_f64() * 1000.0,
        }
    }

    /// An upgrade that did not come to its end.
    pub(crate) fn failed(from: &str, to: &str, error: String) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
            processes: 0,
            threads: 0,
            bytes_in_place: 0,
            bytes_moved: 0,
            mem_total_before: 0,
            mem_total_after: 0,
            blackout_ms: 0.0,
            bare_kexec_ms: None,
            ratio: None,
            errors: vec![error],
            phases: Vec::new(),
            command_ms: 0.0,
        }
    }

    /// Adds the bare kexec of the same kernels.
    pub(crate) fn compare(&mut self, bare_ms: f64) {
        self.bare_kexec_ms = Some(bare_ms);
        if bare_ms > 0.0 && self.blackout_ms > 0.0 {
            self.ratio = Some(self.blackout_ms / bare_ms);
        }
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}

/// Writes all summaries as a JSON list.
pub(crate) fn write_json(path: &Path, summaries: &[Summary]) -> Result<()> {
    let text = serde_json::to_string_pretty(summaries)?;
    fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// The tables at the end.
pub(crate) fn tables(summaries: &[Summary]) -> String {
    summaries.iter().map(table).collect::<Vec<_>>().join("\n")
}

fn table(s: &Summary) -> String {
    let mut rows = vec![("kernel".to_owned(), format!("{} -> {}", s.from, s.to))];
    rows.extend(carried_rows(s));
    for (name, start, end) in &s.phases {
        rows.push((
            format!("  {name}"),
            format!("{start:9.0} ms  +{:.0} ms", end - start),
        ));
    }
    rows.extend(time_rows(s));
    let verdict = match s.errors.len() {
        0 => "all programs verified".to_owned(),
        count => format!("{count} errors"),
    };
    rows.push(("verified".to_owned(), verdict));
    for error in &s.errors {
        rows.push((
            "  error".to_owned(),
            error.lines().next().unwrap_or_default().to_owned(),
        ));
    }
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    let line = "-".repeat(72);
    let body: String = rows
        .iter()
        .map(|(name, text)| format!("{name:<width$}  {text}\n"))
        .collect();
    format!("{line}\n{body}{line}")
}

/// What was carried, and the machine's memory.
fn carried_rows(s: &Summary) -> Vec<(String, String)> {
    let carried = s.bytes_in_place + s.bytes_moved;
    let in_place = percent(s.bytes_in_place, carried);
    vec![
        (
            "carried".to_owned(),
            format!(
                "{} processes, {} threads, {}",
                s.processes,
                s.threads,
                ui::bytes(carried)
            ),
        ),
        (
            "  in place".to_owned(),
            format!("{} ({in_place:.2} %)", ui::bytes(s.bytes_in_place)),
        ),
        ("  copied".to_owned(), ui::bytes(s.bytes_moved)),
        (
            "memory".to_owned(),
            format!(
                "{} before, {} after",
                ui::bytes(s.mem_total_before),
                ui::bytes(s.mem_total_after)
            ),
        ),
    ]
}

/// The blackout and what it is compared with.
fn time_rows(s: &Summary) -> Vec<(String, String)> {
    let mut rows = vec![(
        "blackout".to_owned(),
        format!(
            "{:.0} ms (the command took {:.0} ms)",
            s.blackout_ms, s.command_ms
        ),
    )];
    if let Some(bare) = s.bare_kexec_ms {
        let ratio = s
            .ratio
            .map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        rows.push((
            "bare kexec".to_owned(),
            format!("{bare:.0} ms; blackout / bare kexec = {ratio}"),
        ));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jump::Report;
    use std::time::Duration;

    /// A hundredth of enough to be judged.
    const MANY: u64 = JUDGED_FROM / 100;

    fn jump(in_place: u64, moved: u64) -> Jump {
        Jump {
            from: "6.1".into(),
            to: "6.12".into(),
            report: Report {
                bytes_in_place: in_place,
                bytes_moved: moved,
                blackout_ms: 10.0,
                ..Report::default()
            },
            command: Duration::from_secs(1),
            mem_before: 1000,
        }
    }

    #[test]
    fn too_much_copied_is_an_error() {
        assert!(
            Summary::new(&jump(96 * MANY, 4 * MANY), 1000, Vec::new())
                .errors
                .is_empty()
        );
        assert_eq!(
            Summary::new(&jump(90 * MANY, 10 * MANY), 1000, Vec::new())
                .errors
                .len(),
            1
        );
        let mut no_choice = jump(90 * MANY, 10 * MANY);
        no_choice.report.moved.last_blocks = 8 * MANY;
        assert!(Summary::new(&no_choice, 1000, Vec::new()).errors.is_empty());
        no_choice.report.moved.last_blocks = 4 * MANY;
        assert_eq!(Summary::new(&no_choice, 1000, Vec::new()).errors.len(), 1);
        assert!(
            Summary::new(&jump(50, 50), 1000, Vec::new())
                .errors
                .is_empty()
        );
        assert_eq!(Summary::new(&jump(0, 0), 1000, Vec::new()).errors.len(), 1);
    }

    #[test]
    fn lost_memory_is_an_error() {
        assert_eq!(Summary::new(&jump(100, 0), 980, Vec::new()).errors.len(), 1);
    }

    #[test]
    fn machines_get_the_agreed_keys() {
        let mut summary = Summary::new(&jump(100, 0), 1000, Vec::new());
        summary.compare(5.0);
        let value = serde_json::to_value(&summary).expect("json");
        let mut keys: Vec<&str> = value
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "bare_kexec_ms",
                "blackout_ms",
                "bytes_in_place",
                "bytes_moved",
                "errors",
                "from",
                "mem_total_after",
                "mem_total_before",
                "processes",
                "ratio",
                "threads",
                "to"
            ]
        );
        assert_eq!(value["ratio"], 2.0);
    }
}
