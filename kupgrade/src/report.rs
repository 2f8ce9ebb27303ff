//! `kupgrade report`.

use crate::say;
use anyhow::{Context, Result};
use resurrect::supervisor::report::{REPORT, Report};
use std::path::Path;

/// Prints the last upgrade's report.
pub(crate) fn run(json: bool) -> Result<()> {
    let report = Report::read(Path::new(REPORT))
        .context("there is no report; was this kernel started by kupgrade?")?;
    let text = if json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.table()
    };
    Ok(say::result(&text)?)
}
