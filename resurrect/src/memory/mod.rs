//! Address spaces.
//!
//! | module | what it does |
//! |---|---|
//! | [`empty`] | takes a new process's own memory away |
//! | [`inherit`] | what a process takes over from the one that forked it |
//! | [`grow`] | what of that has grown since |
//! | [`holes`] | what its parent has unmapped since |
//! | [`late`] | what its parent has mapped instead |
//! | [`map`] | makes the mappings |
//! | [`apart`] | keeps neighbours apart that the kernel would make one mapping of |
//! | [`segments`] | attaches System V shared memory |
//! | [`pages`] | fills in saved pages |
//! | [`place`] | puts many pages into new memory at once |
//! | [`protect`] | protections, advice and locks, once the pages are there |
//! | [`guards`] | which mappings have had guard pages |
//! | [`layout`] | heap, stack, arguments, executable (`PR_SET_MM_MAP`) |
//! | [`vdso`] | the kernel's code in the process |
//! | [`cpu_clocks`] | clocks of processor time that go on |
//! | [`numa`] | on which nodes memory is to be |
//! | [`ldt`] | segments of its own |
//! | [`policy`] | what holds for mappings to come |
//! | [`uring`] | mappings of rings of io_uring |
//! | [`packet_rings`] | mappings of rings of packet sockets |
//! | [`moved_rings`] | where their fields are, when this kernel has them elsewhere |

pub(crate) mod aio;
mod apart;
pub(crate) mod cpu_clocks;
pub(crate) mod empty;
mod grow;
mod guards;
mod holes;
mod inherit;
mod late;
mod layout;
mod ldt;
mod map;
pub(crate) mod moved_rings;
pub(crate) mod numa;
pub(crate) mod packet_rings;
mod pages;
mod place;
pub(crate) mod policy;
mod protect;
mod removed_name;
mod segments;
pub(crate) mod uring;
mod vdso;

use crate::ResurrectError;
use crate::calls::{Calls, nr};
use crate::objects::Objects;
use crate::processor::OneProcessor;
use crate::restore::Restore;
use crate::task::{Memory, Task};
pub(crate) use holes::Families;
use pages::HugePages;
use persist_mem::manifest::{Live, SharedObject};
use persist_mem::store::PageStore;
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use sys::batch::Batch;
use sys::{PAGE_SIZE_U64, Pid};

const MLOCK_ONFAULT: i32 = 1;

/// Lets who restores look at the pages.
pub(crate) fn look(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let Some(filled) = restore.options.filled else {
        return Ok(());
    };
    let tasks = restore.tasks.iter();
    let ids = tasks.map(|(pid, task)| (*pid, task.host_pid())).collect();
    OneProcessor::without(restore.processor.as_ref(), || {
        filled(restore.manifest, &ids)
    })
    .map_err(ResurrectError::Pages)
}

/// What building one process's memory needs.
struct Builder<'a> {
    pid: Pid,
    store: &'a dyn PageStore,
    objects: &'a Objects,
    saved_objects: &'a [SharedObject],
    /// The number under which the process has a pidfd of this one.
    pidfd: i32,
    kernel: Rc<Kernel>,
    processor: Option<&'a OneProcessor>,
    /// Where mappings begin that hold a lock of their file, and whether for writing.
    locks: BTreeMap<u64, bool>,
    /// The range for batches with the parking behind it.
    scratch: (u64, u64),
}

/// What matters of the kernel that runs, found once.
pub(crate) struct Kernel {
    parked: vdso::Parked,
    huge_pages: HugePages,
}

impl Kernel {
    fn of(restore: &mut Restore<'_>) -> Result<Rc<Kernel>, ResurrectError> {
        if let Some(known) = &restore.kernel {
            return Ok(Rc::clone(known));
        }
        let found = Rc::new(Kernel {
            parked: vdso::Parked::of_this_kernel(restore.scratch.end())?,
            huge_pages: HugePages::of_this_kernel(),
        });
        restore.kernel = Some(Rc::clone(&found));
        Ok(found)
    }
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

/// Builds every process's memory, where that has not been done before its children were made.
pub(crate) fn build(restore: &mut Restore<'_>) -> Result<(), ResurrectError> {
    let mut memories = restore.tasks.values().map(|task| &task.memory);
    let forked =
        |memory: &Memory| matches!(memory, Memory::Of(_) | Memory::Own { inherited: true });
    let family = memories.any(forked);
    let mut last = BTreeMap::new();
    for (pid, live) in restore.lives().filter(|(_, live)| live.mm_of.is_none()) {
        let (inherited, rest) = contents(restore, pid, live)?;
        let families = families(restore);
        let (builder, task) = builder(restore, pid)?;
        let leader = &mut task.first;
        holes::make(&builder, leader, &live.mm, &families)?;
        segments::attach(&builder, leader, &live.mm)?;
        guards::remember(&builder, leader, &live.mm)?;
        let kin = protect::Kinship { inherited, family };
        let mut calls = Calls::with(pid, "finishing its memory", leader, rest);
        protect::apply(&builder, &mut calls, &live.mm, kin)?;
        layout::set(&builder, calls.batch(), &live.mm)?;
        last.insert((pid, None), calls.rest());
    }
    restore.together("finishing memory", last).map(drop)
}

/// Called before `by` forks `pid`: builds the memory of `by` when the new process shall share pages
/// with it, or a thread of `by` is to wait for it. Returns what is to be given to [`after_fork`].
pub(crate) fn before_fork(
    restore: &mut Restore<'_>,
    by: Pid,
    pid: Pid,
) -> Result<Vec<(u64, u64)>, ResurrectError> {
    let live = |wanted| restore.lives().find(|(pid, _)| *pid == wanted);
    let (Some((_, parent)), Some((_, child))) = (live(by), live(pid)) else {
        return Ok(Vec::new());
    };
    let whole = parent.mm_of.and_then(live);
    let owner = whole.unwrap_or((by, parent));
    let objects = &restore.manifest.shared_objects;
    let own = child.mm_of.is_none();
    let waits = parent.vforks.iter().any(|waiting| waiting.child == pid);
    if own && !waits && !inherit::related(&owner.1.mm, &child.mm, objects) {
        return Ok(Vec::new());
    }
    let (_, rest) = contents(restore, owner.0, owner.1)?;
    Calls::with(
        owner.0,
        "finishing its memory",
        &mut restore.task(owner.0)?.first,
        rest,
    )
    .flush()?;
    if !own {
        return Ok(Vec::new());
    }
    let whole = holes::filled(&owner.1.mm, &families(restore), objects);
    let inherit::Split { locked, empty } = inherit::to_be_split(&whole, &child.mm, objects);
    let (builder, task) = builder(restore, by)?;
    apart::touch(&builder, &mut task.first, &empty)?;
    let mut calls = Calls::new(by, "splitting mappings", &mut task.first);
    for (start, end) in &locked {
        let args = [(*start).into(), (end - start).into(), MLOCK_ONFAULT.into()];
        calls.batch().call("locking memory", nr::MLOCK2, args);
        calls.breathe()?;
    }
    calls.flush()?;
    Ok(locked)
}

/// Called when it has done so.
pub(crate) fn after_fork(
    restore: &mut Restore<'_>,
    by: Pid,
    locked: &[(u64, u64)],
) -> Result<(), ResurrectError> {
    let mut calls = Calls::new(by, "splitting mappings", &mut restore.task(by)?.first);
    for (start, end) in locked {
        let args = [(*start).into(), (end - start).into()];
        calls.batch().call("unlocking memory", nr::MUNLOCK, args);
        calls.breathe()?;
    }
    calls.flush()
}

/// Mappings and pages, unless they are there. True when they are in part those of the process that
/// forked it; and calls that are still to be made.
fn contents(
    restore: &mut Restore<'_>,
    pid: Pid,
    live: &Live,
) -> Result<(bool, Batch), ResurrectError> {
    let scratch = (restore.scratch.place().address, restore.scratch.end());
    let origin = match restore.task(pid)?.memory {
        Memory::Own { inherited } => return Ok((inherited, Batch::new())),
        Memory::Empty => None,
        Memory::Of(origin) => Some(origin),
    };
    let theirs = origin.and_then(|origin| restore.lives().find(|(pid, _)| *pid == origin));
    let objects = &restore.manifest.shared_objects;
    let theirs = theirs.filter(|(_, theirs)| inherit::related(&theirs.mm, &live.mm, objects));
    let families = families(restore);
    let mm = holes::filled(&live.mm, &families, objects);
    let (builder, task) = builder(restore, pid)?;
    let leader = &mut task.first;
    let mut rest = Batch::new();
    if let Some((_, theirs)) = theirs {
        let theirs = holes::filled(&theirs.mm, &families, objects);
        inherit::adapt(&builder, leader, &theirs, &mm)?;
        vdso::adapt(pid, leader, &theirs, &mm)?;
    } else {
        if origin.is_some() {
            empty::again(pid, leader, scratch)?;
        }
        map::make(&builder, leader, &mm.vmas, &mm)?;
        pages::fill_new(&builder, leader, &mm)?;
        rest = vdso::place(pid, leader, &mm, &builder.kernel.parked)?;
    }
    let inherited = theirs.is_some();
    task.memory = Memory::Own { inherited };
    Ok((inherited, rest))
}

/// The processes' families, found once.
fn families<'a>(restore: &mut Restore<'a>) -> Rc<Families<'a>> {
    if let Some(known) = &restore.families {
        return Rc::clone(known);
    }
    let own = restore.lives().filter(|(_, live)| live.mm_of.is_none());
    let found = Rc::new(Families::of(own.map(|(_, live)| &live.mm)));
    restore.families = Some(Rc::clone(&found));
    found
}

fn builder<'a>(
    restore: &'a mut Restore<'_>,
    pid: Pid,
) -> Result<(Builder<'a>, &'a mut Task), ResurrectError> {
    let kernel = Kernel::of(restore)?;
    let task = restore.tasks.get_mut(&pid);
    let task = task.ok_or_else(|| ResurrectError::Impossible {
        pid,
        why: "it was not made".into(),
    })?;
    let builder = Builder {
        pid,
        store: restore.store,
        objects: &restore.objects,
        saved_objects: &restore.manifest.shared_objects,
        pidfd: restore.self_pidfd.as_raw_fd(),
        kernel,
        processor: restore.processor.as_ref(),
        locks: map::locks(restore.manifest, pid),
        scratch: (
            restore.scratch.place().address,
            restore.scratch.end() + crate::scratch::PARKING_LEN,
        ),
    };
    Ok((builder, task))
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
