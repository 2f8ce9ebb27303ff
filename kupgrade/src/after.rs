//! The command's last part, on the new kernel: it was carried like every other process, and its
//! worker, which made the jump, is not there any more.

use crate::say;
use anyhow::{Result, bail};
use resurrect::Lost;
use resurrect::supervisor::report::{REPORT, Report};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long handing the memory back may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Exit status when some processes could not be rebuilt.
const SOME_LOST: u8 = 4;

/// Waits until the upgrade is complete and prints what it did.
///
/// # Errors
/// The supervisor did not complete it; the processes run on in any case.
pub(crate) fn finish() -> Result<ExitCode> {
    let end = Instant::now() + LIMIT;
    loop {
        // Until the supervisor has written it there is none: it removes that of an earlier upgrade.
        let report = Report::read(Path::new(REPORT)).ok();
        if let Some(report) = report.as_ref().filter(|report| report.complete) {
            say::result(&report.table())?;
            return Ok(status(&report.lost));
        }
        if Instant::now() >= end {
            bail!(
                "the processes were carried, but the upgrade was not complete after {} s",
                LIMIT.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What to end with.
pub(crate) fn status(lost: &[Lost]) -> ExitCode {
    match lost {
        [] => ExitCode::SUCCESS,
        _ => ExitCode::from(SOME_LOST),
    }
}
