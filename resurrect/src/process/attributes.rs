//! Attributes of processes.

use crate::ResurrectError;
use crate::calls::{nr, run};
use crate::restore::Restore;
use nix::fcntl::OFlag;
use std::io::Write;
use sys::batch::Batch;
use sys::{Errno, Pid, procdir};

const PR_SET_THP_DISABLE: i32 = 41;

/// Sets them.
pub(crate) fn set(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    for (pid, live) in restore.lives() {
        let task = restore.task(pid)?;
        let host = task.host_pid();
        if live.mm.thp_disabled {
            let mut batch = Batch::new();
            let args = [
                PR_SET_THP_DISABLE.into(),
                1.into(),
                0.into(),
                0.into(),
                0.into(),
            ];
            batch.call("switching huge pages off", nr::PRCTL, args);
            run(pid, "setting its attributes", &mut task.first, &batch)?;
        }
        let score = live.oom_score_adj.to_string();
        write(pid, host, "oom_score_adj", &score)?;
        write(
            pid,
            host,
            "coredump_filter",
            &format!("{:#x}", live.mm.coredump_filter),
        )?;
    }
    Ok(())
}

/// Writes a file of `/proc/PID` that does not hold this text already.
fn write(pid: Pid, host: Pid, what: &str, text: &str) -> Result<(), ResurrectError> {
    let failed = || ResurrectError::call(pid, format!("setting its {what}"));
    let now = procdir::read(host, what).map_err(failed())?;
    let now = String::from_utf8_lossy(&now);
    if number(now.trim(), what) == number(text, what) {
        return Ok(());
    }
    procdir::open(host, what, OFlag::O_WRONLY)
        .map_err(failed())?
        .write_all(text.as_bytes())
        .map_err(|e| failed()(e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))
}

/// coredump_filter is hexadecimal without a prefix when read.
fn number(text: &str, what: &str) -> Option<i64> {
    let hexadecimal = what == "coredump_filter";
    let digits = text.trim_start_matches("0x");
    i64::from_str_radix(digits, if hexadecimal { 16 } else { 10 }).ok()
}
