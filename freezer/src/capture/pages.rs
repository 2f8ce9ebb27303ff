//! Which pages a process has of its own, and handing them to the store.

use super::mappings;
use crate::objects::Objects;
use crate::proc::{Area, Content, MapCounts, PageState, Pagemap, Run, ZeroPages, pagemap};
use crate::{FreezerError, PageRun, PageSink, PageSource};
use persist_mem::manifest::{AddressSpace, Backing, Extent, Manifest, PageRange, State, Vma};
use std::collections::HashMap;
use sys::vm::ProcMem;
use sys::{PAGE_SIZE_U64, Pid};

/// Pages whose frames are looked at in one go.
const AT_ONCE: u64 = 4096;
/// Bytes and pages of a huge page.
const HUGE: u64 = 2 << 20;
const PER_HUGE: usize = 512;

/// Hands every page that only memory or swap holds to the store: the last thing done with stopped
/// processes, since what is run inside of them changes pages.
///
/// # Errors
/// When pages cannot be found or kept.
pub fn capture_pages(
    manifest: &mut Manifest,
    objects: &Objects,
    sink: &mut dyn PageSink,
) -> Result<(), FreezerError> {
    let zero = ZeroPages::find();
    let mut saver = Saver::new(sink, manifest.processes.len());
    for process in &mut manifest.processes {
        let State::Live(live) = &mut process.state else {
            continue;
        };
        if live.mm_of.is_some() {
            continue;
        }
        let mem = crate::proc::memory(process.pid)
            .map_err(FreezerError::call(process.pid, "opening its memory"))?;
        saver.save_process(process.pid, &mem, &zero, &mut live.mm)?;
    }
    manifest.shared_objects = objects.save(saver.sink)?;
    Ok(())
}

/// Hands over the pages of all processes. A page that several of them have since fork(2), or that
/// KSM has merged, is handed over once: its extents name the same frame of the store.
struct Saver<'a> {
    sink: &'a mut dyn PageSink,
    /// Whether there is more than one process, which alone can share.
    several: bool,
    /// Pages mapped in more than one place, by their page frame number.
    seen: HashMap<u64, Seen>,
    counts: MapCounts,
    /// The page table of another process that was looked into last.
    other: Option<Pagemap>,
}

/// Where a shared page was seen first, and where the store has it.
#[derive(Clone, Copy)]
struct Seen {
    pid: Pid,
    va: u64,
    frame: u64,
}

impl<'a> Saver<'a> {
    fn new(sink: &'a mut dyn PageSink, processes: usize) -> Saver<'a> {
        Saver {
            sink,
            several: processes > 1,
            seen: HashMap::new(),
            counts: MapCounts::open(),
            other: None,
        }
    }

    /// Saves what the process has of its own: anonymous pages, and private copies of file pages.
    /// Read-only mappings are looked at too: relocated read-only data is such a copy.
    fn save_process(
        &mut self,
        pid: Pid,
        mem: &ProcMem,
        zero: &ZeroPages,
        mm: &mut AddressSpace,
    ) -> Result<(), FreezerError> {
        let pagemap = Pagemap::open(pid)?;
        let process = Process { pid, mem, pagemap };
        let areas: Vec<Area> = mm.vmas.iter().filter_map(area).collect();
        let count = || pages_of(pid, &areas);
        for run in process.pagemap.private_runs(&areas, zero, count)? {
            let (va, pages) = (run.start, (run.end - run.start) / PAGE_SIZE_U64);
            match run.content {
                Content::Guard => mm.guards.push(PageRange { va, pages }),
                Content::Private { huge } => {
                    self.save(&process, run, &mut mm.extents)?;
                    if huge {
                        mm.huge.push(PageRange { va, pages });
                    }
                }
            }
        }
        Ok(())
    }

    fn save(
        &mut self,
        process: &Process<'_>,
        run: Run,
        extents: &mut Vec<Extent>,
    ) -> Result<(), FreezerError> {
        let frames = self.sink.wants_frames();
        let mut start = run.start;
        while start < run.end {
            let end = run.end.min(start + AT_ONCE * PAGE_SIZE_U64);
            let mut states = if frames {
                process.present(start, end)?
            } else {
                process.pagemap.states(start, end)?
            };
            if self.several && matches!(run.content, Content::Private { huge: true }) {
                self.counts.correct(&mut states);
            }
            self.save_known(process, start, &states, extents)?;
            start = end;
        }
        Ok(())
    }

    /// Saves pages whose states are known: cut into those of this process, those seen before, and
    /// those that another process may have as well.
    fn save_known(
        &mut self,
        process: &Process<'_>,
        start: u64,
        states: &[PageState],
        extents: &mut Vec<Extent>,
    ) -> Result<(), FreezerError> {
        let place = |index: usize| start + index as u64 * PAGE_SIZE_U64;
        let known = if self.several {
            self.known(process, states)?
        } else {
            vec![None; states.len()]
        };
        let touched = near_shared(start, states);
        let mut at = 0;
        while at < states.len() {
            let class = |i: usize| (known[i].is_some(), touched[i]);
            let first = class(at);
            let len = (at..states.len())
                .take_while(|&i| class(i) == first)
                .count();
            let end = at + len;
            if first.0 {
                for (i, frame) in known[at..end].iter().enumerate() {
                    let va = place(at + i);
                    let frame = frame.unwrap_or(0);
                    push(
                        extents,
                        Extent {
                            va,
                            pages: 1,
                            frame,
                        },
                    );
                }
            } else {
                let frames: Vec<u64> = states[at..end].iter().map(|state| state.pfn()).collect();
                let mut new = Vec::new();
                let run = PageRun {
                    shared: first.1,
                    ..process.run(place(at), place(end), &frames)
                };
                self.hand_over(&run, process, &mut new)?;
                if first.1 && self.several {
                    self.remember(process, &new, &frames);
                }
                for extent in new {
                    push(extents, extent);
                }
            }
            at = end;
        }
        Ok(())
    }

    fn remember(&mut self, process: &Process<'_>, kept: &[Extent], pfns: &[u64]) {
        let pages = kept.iter().flat_map(|extent| {
            (0..extent.pages).map(|i| (extent.va + i * PAGE_SIZE_U64, extent.frame + i))
        });
        for ((va, frame), pfn) in pages.zip(pfns) {
            let pid = process.pid;
            self.seen.insert(*pfn, Seen { pid, va, frame });
        }
    }

    /// For every page the frame of the store that has it already. Pages may be moved to other
    /// frames at any time, so the process where it was seen must still have it in the same one:
    /// then both had it at the time this process's page table was read.
    fn known(
        &mut self,
        process: &Process<'_>,
        states: &[PageState],
    ) -> Result<Vec<Option<u64>>, FreezerError> {
        let mut known = vec![None; states.len()];
        let mut at = 0;
        while at < states.len() {
            let Some(first) = self.lookup(states[at]) else {
                at += 1;
                continue;
            };
            let follows = |i: &usize| {
                let va = first.va + (i - at) as u64 * PAGE_SIZE_U64;
                self.lookup(states[*i])
                    .is_some_and(|seen| seen.pid == first.pid && seen.va == va)
            };
            let end = at + (at..states.len()).take_while(follows).count();
            let there = first.va + (end - at) as u64 * PAGE_SIZE_U64;
            let now = if first.pid == process.pid {
                process.pagemap.states(first.va, there)?
            } else {
                let known = self.other.take().filter(|other| other.pid() == first.pid);
                let other = match known {
                    Some(other) => other,
                    None => Pagemap::open(first.pid)?,
                };
                self.other.insert(other).states(first.va, there)?
            };
            for (i, now) in (at..end).zip(now) {
                if now.pfn() == states[i].pfn() {
                    known[i] = self.lookup(states[i]).map(|seen| seen.frame);
                }
            }
            at = end;
        }
        Ok(known)
    }

    fn lookup(&self, state: PageState) -> Option<Seen> {
        if may_share(state) {
            self.seen.get(&state.pfn()).copied()
        } else {
            None
        }
    }

    fn hand_over(
        &mut self,
        run: &PageRun<'_>,
        process: &Process<'_>,
        extents: &mut Vec<Extent>,
    ) -> Result<(), FreezerError> {
        let pfns = if self.sink.wants_frames() {
            run.pfns
        } else {
            &[]
        };
        let new = self
            .sink
            .save(&PageRun { pfns, ..*run })
            .map_err(process.failed(run.va))?;
        for extent in new {
            push(extents, extent);
        }
        Ok(())
    }
}

/// The process being saved.
struct Process<'a> {
    pid: Pid,
    mem: &'a ProcMem,
    pagemap: Pagemap,
}

impl Process<'_> {
    fn run<'b>(&'b self, start: u64, end: u64, pfns: &'b [u64]) -> PageRun<'b> {
        PageRun {
            from: PageSource::Process(self.pid, self.mem),
            va: start,
            pages: (end - start) / PAGE_SIZE_U64,
            pfns,
            shared: false,
        }
    }

    /// The states of pages that all shall be in memory: reading a page brings it in from swap, and waits until
    /// it has been moved.
    fn present(&self, start: u64, end: u64) -> Result<Vec<PageState>, FreezerError> {
        let mut states = self.pagemap.states(start, end)?;
        for _ in 0..pagemap::TRIES {
            let pages = states.iter().zip((start..).step_by(sys::PAGE_SIZE));
            let out: Vec<u64> = pages
                .filter(|(state, _)| !state.present())
                .map(|(_, va)| va)
                .collect();
            if out.is_empty() {
                break;
            }
            for va in out {
                self.mem
                    .read(va, &mut [0])
                    .map_err(FreezerError::call(self.pid, "reading a swapped page"))?;
            }
            states = self.pagemap.states(start, end)?;
        }
        Ok(states)
    }

    fn failed(&self, va: u64) -> impl Fn(std::io::Error) -> FreezerError + use<> {
        let pid = self.pid;
        move |cause| FreezerError::Pages { pid, va, cause }
    }
}

/// Whether another process may have the page as well.
fn may_share(state: PageState) -> bool {
    state.present() && !state.exclusive() && state.pfn() != 0
}

/// For every page from `start` on whether it, or another that a huge page would map with it, may be shared:
/// in a huge page that was given up elsewhere in parts, some pages are this process's alone while the mapping
/// of all of them is not.
fn near_shared(start: u64, states: &[PageState]) -> Vec<bool> {
    let mut near = vec![false; states.len()];
    let first = usize::try_from(start % HUGE / PAGE_SIZE_U64).unwrap_or(0);
    let mut at = 0;
    while at < states.len() {
        let end = states.len().min(at + PER_HUGE - (first + at) % PER_HUGE);
        let any = states[at..end].iter().any(|state| may_share(*state));
        near[at..end].fill(any);
        at = end;
    }
    near
}

/// The part of an address space that a mapping is, None for the kernel's own mappings.
fn area(vma: &Vma) -> Option<Area> {
    let shared = match vma.backing {
        Backing::Vdso | Backing::Vvar => return None,
        Backing::File { shared, .. } | Backing::Object { shared, .. } => shared,
        Backing::Anonymous { .. } | Backing::Zero { .. } => false,
    };
    Some(Area {
        start: vma.start,
        end: vma.end,
        shared,
        page_size: vma.page_size,
    })
}

/// How many pages each area has in memory or swap, as smaps counts them.
fn pages_of(pid: Pid, areas: &[Area]) -> Result<Vec<u64>, FreezerError> {
    let counted: HashMap<u64, u64> = mappings::of(pid)?
        .iter()
        .map(|map| (map.start, (map.resident + map.swapped) / PAGE_SIZE_U64))
        .collect();
    let pages = |area: &Area| counted.get(&area.start).copied().unwrap_or(u64::MAX);
    Ok(areas.iter().map(pages).collect())
}

/// Adds an extent, joining it to the last one where both run on.
fn push(extents: &mut Vec<Extent>, new: Extent) {
    if let Some(last) = extents.last_mut() {
        let follows = last.va + last.pages * PAGE_SIZE_U64 == new.va;
        if follows && last.frame + last.pages == new.frame {
            last.pages += new.pages;
            return;
        }
    }
    extents.push(new);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_join_only_where_both_sides_run_on() {
        let extent = |va, pages, frame| Extent { va, pages, frame };
        let mut extents = Vec::new();
        push(&mut extents, extent(0x1000, 2, 10));
        push(&mut extents, extent(0x3000, 1, 12));
        push(&mut extents, extent(0x4000, 1, 20));
        push(&mut extents, extent(0x6000, 1, 21));
        assert_eq!(extents.len(), 3);
        assert_eq!(extents[0].pages, 3);
    }
}
