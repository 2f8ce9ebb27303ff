//! Address spaces.
//!
//! | module | what it does |
//! |---|---|
//! | [`empty`] | takes a new process's own memory away |
//! | [`map`] | makes the mappings |
//! | [`segments`] | attaches System V shared memory |
//! | [`pages`] | fills in saved pages |
//! | [`protect`] | protections, advice and locks, once the pages are there |
//! | [`layout`] | heap, stack, arguments, executable (`PR_SET_MM_MAP`) |
//! | [`vdso`] | the kernel's code in the process |
//! | [`policy`] | what holds for mappings to come |

pub(crate) mod empty;
mod layout;
mod map;
mod pages;
pub(crate) mod policy;
mod protect;
mod segments;
mod vdso;

use crate::ResurrectError;
use crate::objects::Objects;
use crate::restore::Restore;
use pages::HugePages;
use persist_mem::manifest::SharedObject;
use persist_mem::store::PageStore;
use std::os::fd::AsRawFd;
use sys::{PAGE_SIZE_U64, Pid};

/// What building one process's memory needs.
struct Builder<'a> {
    pid: Pid,
    store: &'a dyn PageStore,
    objects: &'a Objects,
    saved_objects: &'a [SharedObject],
    /// The number under which the process has a pidfd of this one.
    pidfd: i32,
    huge_pages: HugePages,
}

impl Builder<'_> {
    /// Bytes that a System V segment maps.
    fn segment_len(&self, id: i32) -> u64 {
        let mut objects = self.saved_objects.iter();
        let found = objects.find(|object| self.objects.segment(object.id) == Some(id));
        found.map_or(0, |object| {
            object
                .size
                .next_multiple_of(object.page_size.max(PAGE_SIZE_U64))
        })
    }
}

/// Builds every process's memory.
pub(crate) fn build(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let parked = vdso::Parked::of_this_kernel(restore.scratch.end())?;
    let huge_pages = HugePages::of_this_kernel();
    for (pid, live) in restore.lives() {
        let builder = Builder {
            pid,
            store: restore.store,
            objects: &restore.objects,
            saved_objects: &restore.manifest.shared_objects,
            pidfd: restore.self_pidfd.as_raw_fd(),
            huge_pages,
        };
        let task = restore.tasks.get_mut(&pid);
        let task = task.ok_or_else(|| ResurrectError::Impossible {
            pid,
            why: "it was not made".into(),
        })?;
        let leader = &mut task.leader;
        map::make(&builder, leader, &live.mm)?;
        pages::fill(&builder, leader, &live.mm)?;
        vdso::place(pid, leader, &live.mm, &parked)?;
        protect::apply(&builder, leader, &live.mm)?;
        layout::set(&builder, leader, &live.mm)?;
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
