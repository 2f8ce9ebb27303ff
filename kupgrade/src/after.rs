//! The command's last part, on the new kernel: it was carried like every other process, and its
//! worker, which made the jump, is not there any more.

use crate::say;
use anyhow::{Result, bail};
use resurrect::supervisor::report::{REPORT, Report};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long handing the memory back may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Waits until the upgrade is complete and prints what it did.
///
/// # Errors
/// The supervisor did not complete it; the processes run on in any case.
pub(crate) fn finish() -> Result<()> {
    let end = Instant::now() + LIMIT;
    loop {
        // Until the supervisor has written it there is none: it removes that of an earlier upgrade.
        let report = Report::read(Path::new(REPORT)).ok();
        if let Some(report) = report.as_ref().filter(|report| report.complete) {
            return Ok(say::result(&report.table())?);
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
