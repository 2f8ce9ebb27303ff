//! `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst).

use super::ZeroPages;
use crate::FreezerError;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use sys::pagemap::{Region, category};
use sys::{Errno, PAGE_SIZE_U64, Pid};

/// What the page table holds for one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageState(u64);

/// How often pages are asked for that are in no frame at the moment: in swap, or on their way to another frame.
pub(crate) const TRIES: u32 = 8;

/// Bytes that a huge page maps.
const HUGE: u64 = 2 << 20;

impl PageState {
    fn bit(self, n: u32) -> bool {
        self.0 >> n & 1 == 1
    }
    /// In memory.
    #[must_use]
    pub fn present(self) -> bool {
        self.bit(63)
    }
    /// In swap.
    #[must_use]
    pub fn swapped(self) -> bool {
        self.bit(62) && !self.guard()
    }
    /// A page of a file, or shared memory.
    #[must_use]
    pub fn file_or_shared(self) -> bool {
        self.bit(61)
    }
    /// A guard page (`MADV_GUARD_INSTALL`, since 6.13). Has a bit of its own since 6.15; before,
    /// and beside it, it is the marker it is made of: a swap entry of the last type (31) with
    /// offset 4 (`PTE_MARKER_GUARD`, include/linux/swapops.h).
    #[must_use]
    pub fn guard(self) -> bool {
        const MARKER: u64 = 31 | 4 << 5;
        !self.present() && (self.bit(58) || (self.bit(62) && self.0 & ((1 << 55) - 1) == MARKER))
    }
    /// Writes to it are told of (userfaultfd(2)).
    #[must_use]
    pub(crate) fn writes_told(self) -> bool {
        self.bit(57)
    }
    /// Mapped in one place only, as far as the kernel knows.
    #[must_use]
    pub fn exclusive(self) -> bool {
        self.bit(56)
    }
    /// The same page, known to be mapped elsewhere, too.
    pub(super) fn not_exclusive(self) -> PageState {
        PageState(self.0 & !(1 << 56))
    }
    /// Page frame number; 0 without CAP_SYS_ADMIN or when not present.
    #[must_use]
    pub fn pfn(self) -> u64 {
        if self.present() {
            self.0 & ((1 << 55) - 1)
        } else {
            0
        }
    }
}

/// What lies in a run of pages of one mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Data that only memory or swap holds.
    Private {
        /// Mapped by huge pages.
        huge: bool,
    },
    /// Guard pages.
    Guard,
}

/// A run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What they are.
    pub content: Content,
}

/// A part of an address space whose pages are asked for: a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `MAP_SHARED`: its pages are those of an object or file, only guard pages are its own.
    pub shared: bool,
    /// Bytes of one of its pages.
    pub page_size: u64,
}

/// An open pagemap.
#[derive(Debug)]
pub struct Pagemap {
    pid: Pid,
    file: File,
}

/// Words read in one go.
const AT_ONCE: u64 = 8192;

impl Pagemap {
    /// Opens it.
    ///
    /// # Errors
    /// [`FreezerError::Proc`].
    pub fn open(pid: Pid) -> Result<Pagemap, FreezerError> {
        // That of an ended leader can be opened, and is empty, on older kernels.
        let opened = File::open(super::path(pid, "pagemap"));
        opened
            .map(|file| Pagemap { pid, file })
            .map_err(|cause| FreezerError::Proc {
                pid,
                what: "pagemap".into(),
                cause,
            })
    }

    /// The process it is of.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The state of every page of a range. Costs eight bytes of copying a page, also where nothing
    /// is mapped.
    ///
    /// # Errors
    /// [`FreezerError::Proc`].
    pub fn states(&self, start: u64, end: u64) -> Result<Vec<PageState>, FreezerError> {
        let pages = usize::try_from((end - start) / PAGE_SIZE_U64).unwrap_or(0);
        let mut words = vec![0; pages * 8];
        self.file
            .read_exact_at(&mut words, start / PAGE_SIZE_U64 * 8)
            .map_err(|cause| failed(self.pid, cause))?;
        let words = words.as_chunks::<8>().0.iter();
        Ok(words
            .map(|word| PageState(u64::from_le_bytes(*word)))
            .collect())
    }

    /// What the process has of its own in each of the areas, which are in ascending order: runs in
    /// ascending order. The shared zero page counts as nothing. Before 6.7 `count` is asked how many
    /// pages an area has, so that the search ends with the last of them.
    ///
    /// # Errors
    /// [`FreezerError::Proc`].
    pub(crate) fn private_runs(
        &self,
        areas: &[Area],
        zero: &ZeroPages,
        count: impl FnOnce() -> Result<Vec<u64>, FreezerError>,
    ) -> Result<Vec<Run>, FreezerError> {
        match self.regions(areas) {
            Ok(regions) => self.split(areas, &regions, zero),
            Err(Errno::ENOTTY) => {
                let mut runs = Vec::new();
                for (area, pages) in areas.iter().zip(count()?) {
                    self.walk(*area, pages, zero, &mut runs)?;
                }
                Ok(runs)
            }
            Err(errno) => Err(failed(self.pid, errno.into())),
        }
    }

    /// Everything by `PAGEMAP_SCAN`. `ENOTTY` where the kernel lacks it.
    fn regions(&self, maps: &[Area]) -> sys::Result<Vec<Region>> {
        let (Some(first), Some(last)) = (maps.first(), maps.last()) else {
            return Ok(Vec::new());
        };
        let any = category::PRESENT | category::SWAPPED;
        let tell = any | category::FILE | category::ZERO | category::HUGE;
        let scan = |more| {
            let (any, tell) = (any | more, tell | more);
            sys::pagemap::scan(self.file.as_fd(), first.start, last.end, any, tell)
        };
        match scan(category::GUARD) {
            // Before 6.15 guard pages are swapped ones here; `split` tells them apart.
            Err(Errno::EINVAL) => scan(0),
            found => found,
        }
    }

    /// Cuts regions at the borders of areas and drops what is not the process's own.
    fn split(
        &self,
        areas: &[Area],
        regions: &[Region],
        zero: &ZeroPages,
    ) -> Result<Vec<Run>, FreezerError> {
        let mut runs = Vec::new();
        let mut rest = regions;
        for area in areas {
            while let Some((region, more)) = rest.split_first() {
                if region.start >= area.end {
                    break;
                }
                let (start, end) = (region.start.max(area.start), region.end.min(area.end));
                if start < end {
                    let piece = Region {
                        start,
                        end,
                        ..*region
                    };
                    self.add(*area, piece, zero, &mut runs)?;
                }
                if region.end > area.end {
                    break;
                }
                rest = more;
            }
        }
        Ok(runs)
    }

    fn add(
        &self,
        area: Area,
        region: Region,
        zero: &ZeroPages,
        runs: &mut Vec<Run>,
    ) -> Result<(), FreezerError> {
        let has = |bit| region.categories & bit != 0;
        let Region { start, end, .. } = region;
        let left_out = category::ZERO | category::FILE;
        if has(category::GUARD) {
            push(runs, start, end, Content::Guard);
        } else if has(category::SWAPPED) && !has(category::PRESENT) {
            self.tell_guards(area, start, end, runs)?;
        } else if !has(left_out) && !area.shared {
            if has(category::HUGE) && area.page_size == PAGE_SIZE_U64 {
                self.add_huge(start, end, zero, runs)?;
            } else {
                push(runs, start, end, Content::Private { huge: false });
            }
        }
        Ok(())
    }

    /// The huge page of zeros is not always told as such.
    fn add_huge(
        &self,
        start: u64,
        end: u64,
        zero: &ZeroPages,
        runs: &mut Vec<Run>,
    ) -> Result<(), FreezerError> {
        let mut at = start;
        while at < end {
            let stop = end.min((at + 1).next_multiple_of(HUGE));
            let first = self.states(at, at + PAGE_SIZE_U64)?;
            if !first.first().is_some_and(|page| zero.contains(page.pfn())) {
                push(runs, at, stop, Content::Private { huge: true });
            }
            at = stop;
        }
        Ok(())
    }

    /// Pages that are not present: guard pages, or data in swap.
    fn tell_guards(
        &self,
        area: Area,
        start: u64,
        end: u64,
        runs: &mut Vec<Run>,
    ) -> Result<(), FreezerError> {
        let mut at = start;
        while at < end {
            let stop = end.min(at + AT_ONCE * PAGE_SIZE_U64);
            for state in self.states(at, stop)? {
                let next = at + PAGE_SIZE_U64;
                if state.guard() {
                    push(runs, at, next, Content::Guard);
                } else if state.swapped() && !area.shared {
                    push(runs, at, next, Content::Private { huge: false });
                }
                at = next;
            }
        }
        Ok(())
    }

    /// Without `PAGEMAP_SCAN`: a word for every page, until all pages it has are seen. hugetlb pages
    /// are not counted.
    fn walk(
        &self,
        area: Area,
        pages: u64,
        zero: &ZeroPages,
        runs: &mut Vec<Run>,
    ) -> Result<(), FreezerError> {
        let mut left = if area.page_size > PAGE_SIZE_U64 {
            u64::MAX
        } else {
            pages
        };
        let mut found = Vec::new();
        let mut at = area.start;
        while at < area.end && left > 0 && !area.shared {
            let stop = area.end.min(at + AT_ONCE * PAGE_SIZE_U64);
            let states = self.states(at, stop)?;
            for (state, va) in states.iter().zip((at..).step_by(sys::PAGE_SIZE)) {
                let there = state.present() || state.swapped();
                left = left.saturating_sub(u64::from(there));
                if there && !state.file_or_shared() && !zero.contains(state.pfn()) {
                    push(
                        &mut found,
                        va,
                        va + PAGE_SIZE_U64,
                        Content::Private { huge: false },
                    );
                }
            }
            at = stop;
        }
        if area.page_size > PAGE_SIZE_U64 {
            runs.extend(found);
            return Ok(());
        }
        self.mark_huge(&found, runs)
    }

    /// Tells huge pages by their frames: aligned in both address spaces and running on.
    fn mark_huge(&self, found: &[Run], runs: &mut Vec<Run>) -> Result<(), FreezerError> {
        for run in found {
            let mut at = run.start;
            while at < run.end {
                let end = run.end.min((at + 1).next_multiple_of(HUGE));
                let huge = end - at == HUGE && is_huge(&self.states(at, end)?);
                push(runs, at, end, Content::Private { huge });
                at = end;
            }
        }
        Ok(())
    }

    /// Calls `visit` with address and state of every page of a range that is not empty.
    ///
    /// # Errors
    /// [`FreezerError::Proc`].
    pub(crate) fn scan(
        &self,
        start: u64,
        end: u64,
        mut visit: impl FnMut(u64, PageState),
    ) -> Result<(), FreezerError> {
        let states = self.states(start, end)?;
        for (state, va) in states.iter().zip((start..).step_by(sys::PAGE_SIZE)) {
            if state.present() || state.swapped() {
                visit(va, *state);
            }
        }
        Ok(())
    }
}

fn failed(pid: Pid, cause: std::io::Error) -> FreezerError {
    FreezerError::Proc {
        pid,
        what: "pagemap".into(),
        cause,
    }
}

fn is_huge(states: &[PageState]) -> bool {
    let Some(first) = states.first().map(|state| state.pfn()) else {
        return false;
    };
    first != 0
        && first.is_multiple_of(HUGE / PAGE_SIZE_U64)
        && states.iter().zip(first..).all(|(s, pfn)| s.pfn() == pfn)
}

/// Adds a run, joining it to the last one where it goes on.
fn push(runs: &mut Vec<Run>, start: u64, end: u64, content: Content) {
    match runs.last_mut() {
        Some(last) if last.end == start && last.content == content => last.end = end,
        _ => runs.push(Run {
            start,
            end,
            content,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_pages_are_not_swapped_ones() {
        let by_bit = PageState(1 << 58);
        let by_marker = PageState(1 << 62 | 4 << 5 | 31);
        let swapped = PageState(1 << 62 | 4 << 5 | 1);
        assert!(by_bit.guard() && by_marker.guard() && !swapped.guard());
        assert!(swapped.swapped() && !by_marker.swapped());
    }

    #[test]
    fn regions_are_cut_at_mappings_and_shared_pages_left_out() {
        let area = |start, end, shared| Area {
            start,
            end,
            shared,
            page_size: PAGE_SIZE_U64,
        };
        let areas = [
            area(0x1000, 0x3000, false),
            area(0x3000, 0x5000, true),
            area(0x6000, 0x9000, false),
        ];
        let region = |start, end, categories| Region {
            start,
            end,
            categories,
        };
        let regions = [
            region(0x2000, 0x7000, category::PRESENT),
            region(0x7000, 0x8000, category::PRESENT | category::ZERO),
            region(0x8000, 0x9000, category::GUARD),
        ];
        let me = Pagemap::open(Pid(nix::unistd::getpid().as_raw())).unwrap();
        let runs = me.split(&areas, &regions, &ZeroPages::find()).unwrap();
        let data = Content::Private { huge: false };
        let run = |start, end, content| Run {
            start,
            end,
            content,
        };
        assert_eq!(
            runs,
            [
                run(0x2000, 0x3000, data),
                run(0x6000, 0x7000, data),
                run(0x8000, 0x9000, Content::Guard)
            ]
        );
    }
}
