//! Ended processes that have left a core dump.
//!
//! That they have is said again by dumping again (`resurrect/src/tree/core.rs`), which takes that cores go to files in
//! current directories (core(5)). On a host that is carried as a whole they do for that moment.

use crate::proc::{self, Stat};
use crate::{FreezerError, Refusal};
use sys::{Pid, core_pattern};

/// Field of `/proc/PID/stat`: the wait status.
const EXIT_CODE: usize = 52;
/// Bit of it: a core was dumped.
const DUMPED: i64 = 0x80;

/// Why an ended process is not carried on one kernel.
pub(crate) fn refusal(pid: Pid) -> Result<Option<Refusal>, FreezerError> {
    let stat = Stat::read(pid, "stat")?;
    let dumped = stat.state() == 'Z' && stat.field(EXIT_CODE) & DUMPED != 0;
    let pattern = core_pattern::read().unwrap_or_default();
    Ok(
        (dumped && !core_pattern::is_file(&pattern)).then(|| Refusal {
            pid,
            comm: proc::comm(pid),
            resource: "core dump".into(),
            reason: format!(
                "it has ended with a core dump, which cannot be told again while cores go to {}",
                pattern.trim_end()
            ),
        }),
    )
}
