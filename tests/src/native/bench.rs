//! Checkpoint and restore on one kernel, measured in interleaved rounds beside CRIU.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::apart;
use super::worker::Measured;
use crate::setup::Cache;
use crate::{paths, rig, ui};

/// What is measured, and its name for people.
const LOADS: &[(&str, &str)] = &[
    ("load:memory:64", "64 MiB"),
    ("load:memory:512", "512 MiB"),
    ("load:memory:2048", "2 GiB"),
    ("load:huge:2048", "2 GiB in huge pages"),
    ("load:processes:100", "100 processes"),
    ("load:threads:500", "500 threads"),
    ("load:vmas:10000", "10,000 mappings"),
    ("load:descriptors:5000", "5,000 descriptors"),
];

const ROUNDS: usize = 3;

/// `cargo lab bench`
pub(crate) fn bench() -> Result<ExitCode> {
    let program = |package| rig::build(package)?.pop().context("no program");
    let (subject, kupgrade) = (program("subjects")?, program("kupgrade")?);
    let criu = Cache::open()?.criu()?;
    let dir = paths::run_dir("bench")?;
    ui::say(
        "medians in milliseconds; the whole command is measured, processes stand still for most of it",
    );
    ui::say(&format!(
        "{:<22}{:>12}{:>8}{:>8}{:>12}{:>8}{:>8}",
        "", "checkpoint", "CRIU", "ratio", "restore", "CRIU", "ratio"
    ));
    for (load, name) in LOADS {
        let mut times: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
        let mut failed = [None, None];
        for round in 0..ROUNDS {
            for (which, times) in times.iter_mut().enumerate() {
                let other = (which == 1).then_some(criu.as_path());
                let place = dir.join(format!("{}-{round}-{which}", load.replace(':', "-")));
                match once(load, &subject, &kupgrade, other, &place) {
                    Ok(measured) => times.push(measured),
                    Err(error) => failed[which] = Some(error),
                }
                // Images are large.
                let _ = std::fs::remove_dir_all(place.join("image-bench"));
            }
        }
        row(name, &times);
        for error in failed.iter().flatten() {
            ui::say(&format!("    {error:#}"));
        }
    }
    Ok(ExitCode::SUCCESS)
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

fn row(name: &str, times: &[Vec<Measured>; 2]) {
    let mut text = format!("{name:<22}");
    for (of, width) in [
        ((|m: &Measured| m.checkpoint) as fn(&Measured) -> f64, 12),
        (|m: &Measured| m.restore, 12),
    ] {
        let [ours, theirs] = times.each_ref().map(|times| median(times, of));
        let cell = |value: Option<f64>, width: usize, places: usize| {
            value.map_or(format!("{:>width$}", "-"), |value| {
                format!("{value:>width$.places$}")
            })
        };
        let ratio = ours.zip(theirs).map(|(ours, theirs)| ours / theirs);
        text += &(cell(ours, width, 0) + &cell(theirs, 8, 0) + &cell(ratio, 8, 2));
    }
    ui::say(&text);
}
