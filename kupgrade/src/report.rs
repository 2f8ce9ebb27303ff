//! `kupgrade report`.

use anyhow::{Context, Result};
use resurrect::supervisor::report::{REPORT, Report};
use std::path::Path;

/// Prints the last upgrade's report.
pub(crate) fn run(json: bool) -> Result<()> {
    let report = Report::read(Path::new(REPORT))
        .context("there is no report; was this kernel started by kupgrade?")?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(())
}
