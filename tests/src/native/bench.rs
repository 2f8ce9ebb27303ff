//! Checkpoint and restore on one kernel, measured in interleaved rounds beside CRIU.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use super::apart;
use super::measure::Measured;
use crate::setup::Cache;
use crate::{paths, rig, ui};

/// What is measured, and its name for people.
const LOADS: &[(&str, &str)] = &[
    ("load:memory:64", "64 MiB"),
    ("load:memory:512", "512 MiB"),
    ("load:memory:2048", "2 GiB"),
    ("load:huge:64", "64 MiB in huge pages"),
    ("load:huge:512", "512 MiB in huge pages"),
    ("load:huge:2048", "2 GiB in huge pages"),
    ("load:processes:100", "100 processes"),
    ("load:threads:500", "500 threads"),
    ("load:vmas:10000", "10,000 mappings"),
    ("load:descriptors:5000", "5,000 descriptors"),
    ("load:beside:300", "1 beside 300 others"),
];

/// What `cargo lab bench` takes.
#[derive(Args)]
pub(crate) struct BenchmarkArgs {
    /// Only rows whose name or load contains this
    filter: Option<String>,
    /// Times that each program is measured, one after the other; the medians are shown
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Write what was measured to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measure this program instead of the one built from this repository
    #[arg(long)]
    kupgrade: Option<PathBuf>,
}

/// One row as `--json` writes it: every round of both programs.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    load: &'static str,
    kupgrade: Vec<Measured>,
    criu: Vec<Measured>,
    errors: Vec<String>,
}

/// `cargo lab bench`
pub(crate) fn bench(args: &BenchmarkArgs) -> Result<ExitCode> {
    let program = |package| rig::build(package)?.pop().context("no program");
    let subject = program("subjects")?;
    let kupgrade = match &args.kupgrade {
        Some(path) => path.clone(),
        None => program("kupgrade")?,
    };
    let criu = Cache::open()?.criu()?;
    let dir = paths::run_dir("bench")?;
    ui::say(
        "Medians in milliseconds. Frozen: from the moment the first process is seen stopped until it is",
    );
    ui::say("gone, as /proc tells, for both programs. Restore: the whole command.");
    ui::say(&format!(
        "{:<22}{:>10}{:>8}{:>7}{:>10}{:>8}{:>7}   {}",
        "", "frozen", "CRIU", "ratio", "restore", "CRIU", "ratio", "still huge"
    ));
    let wanted = |text: &str| {
        args.filter
            .as_ref()
            .is_none_or(|filter| text.contains(filter))
    };
    let mut rows = Vec::new();
    for (load, name) in LOADS {
        if !wanted(load) && !wanted(name) {
            continue;
        }
        let mut row = Row {
            name,
            load,
            kupgrade: Vec::new(),
            criu: Vec::new(),
            errors: Vec::new(),
        };
        for round in 0..args.rounds {
            // Who comes second finds memory that the first has warmed.
            let mut both = [None, Some(criu.as_path())];
            both.rotate_left(round % 2);
            for other in both {
                row.measure(other, &subject, &kupgrade, &dir.join(round.to_string()));
            }
        }
        ui::say(&row.text());
        for error in &row.errors {
            ui::say(&format!("    {error}"));
        }
        rows.push(row);
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let failed = rows.iter().any(|row| row.kupgrade.len() < args.rounds);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

impl Row {
    fn measure(&mut self, criu: Option<&Path>, subject: &Path, kupgrade: &Path, dir: &Path) {
        let which = if criu.is_some() { "criu" } else { "kupgrade" };
        let dir = dir.join(format!("{}-{which}", self.load.replace(':', "-")));
        match once(self.load, subject, kupgrade, criu, &dir) {
            Ok(measured) if criu.is_some() => self.criu.push(measured),
            Ok(measured) => self.kupgrade.push(measured),
            Err(error) => self.errors.push(format!("{which}: {error:#}")),
        }
        // Images are large.
        let _ = std::fs::remove_dir_all(dir.join("image-bench"));
    }

    fn text(&self) -> String {
        let mut text = format!("{:<22}", self.name);
        for of in [(|m| m.frozen) as fn(&Measured) -> f64, |m| m.restore] {
            let (ours, theirs) = (median(&self.kupgrade, of), median(&self.criu, of));
            let ratio = ours.zip(theirs).map(|(ours, theirs)| ours / theirs);
            text += &(cell(ours, 10, 1) + &cell(theirs, 8, 1) + &cell(ratio, 7, 2));
        }
        let huge = |times: &[Measured]| match times.first() {
            Some(m) if m.huge_before > 0 => format!("{}%", m.huge_after * 100 / m.huge_before),
            _ => "-".into(),
        };
        let (ours, theirs) = (huge(&self.kupgrade), huge(&self.criu));
        if (ours.as_str(), theirs.as_str()) != ("-", "-") {
            text += &format!("   {ours}, CRIU {theirs}");
        }
        text
    }
}

fn cell(value: Option<f64>, width: usize, places: usize) -> String {
    value.map_or(format!("{:>width$}", "-"), |value| {
        format!("{value:>width$.places$}")
    })
}

/// One life of a load.
fn once(
    load: &str,
    subject: &Path,
    kupgrade: &Path,
    criu: Option<&Path>,
    dir: &Path,
) -> Result<Measured> {
    std::fs::create_dir_all(dir)?;
    let mut worker = apart("bench-worker", load, subject, kupgrade, dir)?;
    if let Some(criu) = criu {
        worker = worker.arg("--criu").arg(criu);
    }
    let text = worker.output()?;
    serde_json::from_str(text.trim()).with_context(|| format!("the worker said '{text}'"))
}

fn median(times: &[Measured], of: fn(&Measured) -> f64) -> Option<f64> {
    let mut values: Vec<f64> = times.iter().map(of).collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
