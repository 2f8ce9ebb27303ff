//! Address spaces.
//!
//! | module | what it does |
//! |---|---|
//! | [`empty`] | takes a new process's own memory away |
//! | [`map`] | makes the mappings |
//! | [`pages`] | fills in saved pages |
//! | [`protect`] | protections and advice, once the pages are there |
//! | [`layout`] | heap, stack, arguments, executable (`PR_SET_MM_MAP`) |
//! | [`vdso`] | the kernel's code in the process |

pub(crate) mod empty;
mod layout;
mod map;
mod pages;
mod protect;
mod vdso;

use crate::ResurrectError;
use crate::restore::Restore;

/// Builds every process's memory.
pub(crate) fn build(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let parked = vdso::Parked::of_this_kernel(restore.scratch.end())?;
    for (pid, live) in restore.lives() {
        let store = restore.store;
        let task = restore.task(pid)?;
        let host = task.host_pid();
        let leader = &mut task.leader;
        map::make(pid, leader, &live.mm)?;
        pages::fill(pid, host, store, &live.mm.extents)?;
        vdso::place(pid, leader, &live.mm, &parked)?;
        protect::apply(pid, leader, &live.mm)?;
        layout::set(pid, leader, &live.mm)?;
    }
    Ok(())
}

/// Address ranges of a `/proc/PID/maps` file, with their names.
fn named_ranges(maps: &[u8]) -> Vec<(u64, u64, String)> {
    let text = String::from_utf8_lossy(maps);
    let line = |line: &str| {
        let (range, _) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let name = line.rsplit(' ').next().unwrap_or("").to_owned();
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(start)?, number(end)?, name))
    };
    text.lines().filter_map(line).collect()
}

/// Address ranges of a `/proc/PID/maps` file.
pub(crate) fn ranges(maps: &[u8]) -> Vec<(u64, u64)> {
    let named = named_ranges(maps).into_iter();
    named.map(|(start, end, _)| (start, end)).collect()
}

/// Where the vdso is.
pub(crate) fn vdso_range(maps: &[u8]) -> Option<(u64, u64)> {
    let named = named_ranges(maps).into_iter();
    named
        .filter(|(_, _, name)| name == "[vdso]")
        .map(|(start, end, _)| (start, end))
        .next()
}
