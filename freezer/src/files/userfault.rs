//! userfaultfd(2): which memory it is for, and where in it.
//!
//! Which mappings have their faults told is seen in smaps, which descriptor tells them only in the kernel's memory.
//! What is told is of no concern: who waits for an answer is stopped, faults once more when it goes on, and so is
//! told of again, as after any signal.

use super::{Open, Table, apart};
use crate::kernel::{self, FaultHandler, Unreadable};
use crate::proc::{self, Mapping, Pagemap, ZeroPages};
use crate::{FreezerError, Refusal};
use persist_mem::manifest::{DescriptionId, DescriptionKind, FaultRange, PageRange, Userfault};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use sys::userfault::{UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP};
use sys::{PAGE_SIZE_U64, Pid};

pub(super) const LINK: &[u8] = b"anon_inode:[userfaultfd]";
/// Flags of mappings whose faults are told, as smaps has them, and what they are.
const FLAGS: [(&[u8; 2], u64); 2] = [
    (b"um", UFFDIO_REGISTER_MODE_MISSING),
    (b"uw", UFFDIO_REGISTER_MODE_WP),
];
const NOBODY: &str = "userfaultfd: the process whose faults it tells of is not saved, or has ended";
const ELSEWHERE: &str = "userfaultfd: who is told of its faults is not saved, or is not known";
/// Pages looked at in one go.
const AT_ONCE: u64 = 1 << 16;

/// Memory whose faults are told of, by process.
pub(crate) type Faults = BTreeMap<Pid, Vec<FaultRange>>;

/// Which of the mappings of a process have their faults told.
pub(crate) fn ranges(maps: &[Mapping]) -> Vec<FaultRange> {
    let range = |map: &Mapping| {
        let modes = FLAGS.iter().filter(|(flag, _)| map.has(flag));
        let modes = modes.fold(0, |all, (_, mode)| all | mode);
        (modes != 0).then_some(FaultRange {
            start: map.start,
            end: map.end,
            modes,
        })
    };
    maps.iter().filter_map(range).collect()
}

/// Whether a flag of a mapping only tells that its faults are told.
pub(crate) fn is_flag(flag: &[u8; 2]) -> bool {
    FLAGS.iter().any(|(known, _)| *known == flag)
}

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let handler = handler(open.copy).map_err(|why| {
        open.refuse(format!(
            "userfaultfd: nothing tells which memory it is for: {why}"
        ))
    })?;
    Ok(DescriptionKind::Userfault(Userfault {
        owner: open.pid,
        user_only: handler.user_only,
        features: handler.features,
        ranges: Vec::new(),
        zeros: Vec::new(),
        protected: Vec::new(),
    }))
}

fn handler(copy: &OwnedFd) -> Result<FaultHandler, Unreadable> {
    kernel::look(|kernel| {
        let file = kernel.own_file(copy.as_fd())?;
        kernel.fault_handler(file)
    })
}

/// Whether the process whose faults it tells of is among those that are saved: all of the host, if none are given.
pub(super) fn check(open: &Open<'_>, inside: Option<&[Pid]>) -> Result<(), FreezerError> {
    let handler = handler(open.copy).map_err(|why| open.refuse(why.to_string()))?;
    let found = match inside {
        Some(pids) => owner(handler.memory, pids),
        None => owner(
            handler.memory,
            &super::epoll::everyone().collect::<Vec<_>>(),
        ),
    };
    found.map(drop).ok_or_else(|| open.refuse(NOBODY))
}

/// A process that has this memory.
fn owner(memory: u64, pids: &[Pid]) -> Option<Pid> {
    let has = |pid: &&Pid| {
        let found = proc::representative(**pid).map(|tid| {
            kernel::look(|kernel| match kernel.tasks(&[tid])?[..] {
                [Some(task)] => kernel.memory_of(task),
                _ => Ok(0),
            })
        });
        matches!(found, Some(Ok(found)) if found == memory)
    };
    pids.iter().find(has).copied()
}

/// Where faults of a process are told of, and who tells them.
fn handlers_of(pid: Pid) -> Result<Vec<(u64, u64)>, Unreadable> {
    let thread = proc::representative(pid).map_or_else(Vec::new, |tid| vec![tid]);
    let vmas = kernel::look(|kernel| match kernel.tasks(&thread)?[..] {
        [Some(task)] => kernel.vmas(task),
        _ => Ok(Vec::new()),
    })?;
    let told = vmas.into_iter().filter(|vma| vma.faults != 0);
    Ok(told.map(|vma| (vma.start, vma.faults)).collect())
}

/// Processes of a tree whose faults somebody else is told of.
pub(crate) fn told_outside(inside: &[Pid]) -> Vec<Refusal> {
    let mut inside_of = None;
    let mut found = Vec::new();
    for pid in inside {
        // It runs, and its mappings may change just now.
        let handlers = handlers_of(*pid).unwrap_or_default();
        if handlers.is_empty() {
            continue;
        }
        let held: &BTreeSet<u64> = inside_of.get_or_insert_with(|| held(inside));
        if handlers.iter().any(|(_, handler)| !held.contains(handler)) {
            found.push(Refusal {
                pid: *pid,
                comm: proc::comm(*pid),
                resource: "memory".into(),
                reason: ELSEWHERE.into(),
            });
        }
    }
    found
}

/// What descriptors of processes tell faults by.
fn held(pids: &[Pid]) -> BTreeSet<u64> {
    let handlers = files_at(pids, LINK).into_iter();
    let handlers = handlers.map(|file| kernel::look(|kernel| kernel.fault_handler(file)));
    handlers.flatten().map(|one| one.address).collect()
}

/// Where the kernel has the open files of processes that `/proc/PID/fd` shows so.
pub(super) fn files_at(pids: &[Pid], wanted: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    for table in pids.iter().flat_map(|pid| apart::tables_of(*pid)) {
        let (Ok(links), Some(tid)) = (proc::Links::open(table), proc::representative(table)) else {
            continue;
        };
        let is = |fd: &&i32| links.read(**fd).is_ok_and(|link| link == wanted);
        let numbers: Vec<i32> = links.numbers().iter().filter(is).copied().collect();
        if numbers.is_empty() {
            continue;
        }
        let all = kernel::look(|kernel| {
            let files = match kernel.tasks(&[tid])?[..] {
                [Some(task)] => kernel.files(task)?,
                _ => Vec::new(),
            };
            let wanted = files.into_iter().filter(|(fd, _)| numbers.contains(fd));
            Ok(wanted.map(|(_, file)| file).collect::<Vec<u64>>())
        });
        found.extend(all.unwrap_or_default());
    }
    found
}

/// Finds the memory that every one is for, when all descriptions are known.
pub(super) fn resolve(table: &mut Table, inside: &[Pid]) -> Result<(), FreezerError> {
    let mut known = BTreeSet::new();
    let zero = ZeroPages::find();
    for index in 0..table.descriptions.len() {
        let description = &table.descriptions[index];
        let id = description.id;
        let DescriptionKind::Userfault(_) = description.kind else {
            continue;
        };
        let refuse = |why: &str| refuse(table, id, why);
        let copy = table.copies.get(&id).ok_or_else(|| refuse(NOBODY))?;
        let handler = handler(copy).map_err(|why| refuse(&why.to_string()))?;
        let owner = owner(handler.memory, inside).ok_or_else(|| refuse(NOBODY))?;
        let told = handlers_of(owner).map_err(|why| refuse(&why.to_string()))?;
        let is_told = |range: &&FaultRange| told.contains(&(range.start, handler.address));
        let all = table.faults.get(&owner).into_iter().flatten();
        let ranges: Vec<FaultRange> = all.filter(is_told).copied().collect();
        let Pages { zeros, protected } = pages(owner, &ranges, &zero)?;
        known.insert(handler.address);
        if let DescriptionKind::Userfault(found) = &mut table.descriptions[index].kind {
            found.owner = owner;
            (found.ranges, found.zeros, found.protected) = (ranges, zeros, protected);
        }
    }
    for pid in table.faults.keys() {
        let handlers = handlers_of(*pid).unwrap_or_default();
        let all_known = handlers.iter().all(|(_, handler)| known.contains(handler));
        if handlers.is_empty() || !all_known {
            return Err(FreezerError::refuse(*pid, "memory", ELSEWHERE));
        }
    }
    Ok(())
}

fn refuse(table: &Table, id: DescriptionId, why: &str) -> FreezerError {
    let at = table.numbers.iter().find(|(_, held)| **held == id);
    let (pid, fd) = at.map_or((Pid(0), -1), |(at, _)| *at);
    FreezerError::refuse(pid, format!("fd {fd}"), why)
}

#[derive(Default)]
struct Pages {
    zeros: Vec<PageRange>,
    protected: Vec<PageRange>,
}

/// What the pages of ranges are, as far as a page that is not there makes a difference.
fn pages(pid: Pid, ranges: &[FaultRange], zero: &ZeroPages) -> Result<Pages, FreezerError> {
    let mut found = Pages::default();
    if ranges.is_empty() {
        return Ok(found);
    }
    let pagemap = Pagemap::open(pid)?;
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + AT_ONCE * PAGE_SIZE_U64);
            let states = pagemap.states(at, end)?;
            for (va, state) in (at..).step_by(sys::PAGE_SIZE).zip(states) {
                if state.present() && zero.contains(state.pfn()) {
                    push(&mut found.zeros, va);
                }
                if state.writes_told() {
                    push(&mut found.protected, va);
                }
            }
            at = end;
        }
    }
    Ok(found)
}

/// Adds a page, joining it to the last range where that goes on.
fn push(ranges: &mut Vec<PageRange>, va: u64) {
    match ranges.last_mut() {
        Some(last) if last.va + last.pages * PAGE_SIZE_U64 == va => last.pages += 1,
        _ => ranges.push(PageRange { va, pages: 1 }),
    }
}
