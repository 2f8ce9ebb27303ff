//! What the kernel tells of this process.

use std::fs;

use anyhow::{Context, Result};
use libc::c_void;

/// A field of /proc/self/status, or of another task by its path.
pub(crate) fn status(task: &str, field: &str) -> Result<String> {
    let path = format!("/proc/{task}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
        .with_context(|| format!("{path} has no {field}"))
}

/// Field `number` of /proc/PID/stat (proc(5)), from 3 on.
pub(crate) fn stat(pid: libc::pid_t, number: usize) -> Result<String> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name before may hold anything.
    let behind = text.rsplit(')').next().unwrap_or_default();
    let field = behind.split_ascii_whitespace().nth(number - 3);
    let field = field.with_context(|| format!("{path} has no field {number}"))?;
    Ok(field.to_owned())
}

/// The record of the mapping at an address in /proc/PID/smaps: its first line and its fields.
pub(crate) fn smaps(pid: &str, at: *mut c_void) -> Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut record = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some((start, end)) = range(line) {
            inside = (start..end).contains(&(at as u64));
        }
        if inside {
            record.push(line.to_owned());
        }
    }
    (!record.is_empty())
        .then_some(record)
        .with_context(|| format!("no mapping at {at:?}"))
}

/// A number (kB) of that record.
pub(crate) fn smaps_kb(pid: &str, at: *mut c_void, field: &str) -> Result<u64> {
    smaps(pid, at)?
        .iter()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("smaps has no {field}"))
}

/// The `VmFlags` of that record, without the soft-dirty bit.
pub(crate) fn vm_flags(at: *mut c_void) -> Result<Vec<String>> {
    let record = smaps("self", at)?;
    let line = record
        .iter()
        .find_map(|line| line.strip_prefix("VmFlags:"))
        .context("smaps has no VmFlags")?;
    Ok(line
        .split_whitespace()
        // "??" is what a kernel has no name for; from 6.4 on MLOCK_ONFAULT has one.
        .filter(|flag| !["sd", "??", "lf"].contains(flag))
        .map(str::to_owned)
        .collect())
}

/// Addresses in the first line of a record.
pub(crate) fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?))
}

/// /proc/self/maps as (addresses, permissions and offset, name), without the kernel's own.
pub(crate) fn maps() -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/self/maps")?;
    Ok(text
        .lines()
        .filter(|line| !line.contains("[v"))
        .map(str::to_owned)
        .collect())
}
