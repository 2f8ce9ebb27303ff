//! Which pages a process has, and handing them to the store.

use crate::FreezerError;
use crate::proc::{Pagemap, ZeroPages};
use persist_mem::manifest::{Backing, Extent, Manifest, State, Vma};
use sys::vm::ProcMem;
use sys::{PAGE_SIZE, PAGE_SIZE_U64, Pid};

/// Pages handed over in one go.
const RUN: usize = 1024;

/// Consecutive pages of one process, all present.
#[derive(Debug)]
pub struct PageRun<'a> {
    /// The memory they are in.
    pub mem: &'a ProcMem,
    /// Address of the first.
    pub va: u64,
    /// Their page frame numbers; 0 without CAP_SYS_ADMIN.
    pub pfns: &'a [u64],
}

impl PageRun<'_> {
    /// What the pages hold.
    ///
    /// # Errors
    /// As [`ProcMem::read`].
    pub fn read(&self) -> std::io::Result<Vec<u8>> {
        self.mem
            .read_vec(self.va, self.pfns.len() * PAGE_SIZE)
            .map_err(std::io::Error::from)
    }
}

/// Where the contents of pages go, or stay.
pub trait PageSink {
    /// Keeps the pages of a run and says where in the store they are, in ascending order of address.
    ///
    /// # Errors
    /// Whatever reading or writing them meets.
    fn save(&mut self, run: &PageRun<'_>) -> std::io::Result<Vec<Extent>>;
}

/// Hands every page that only memory or swap holds to the store: the last thing done with stopped
/// processes, since what is run inside of them changes pages.
///
/// # Errors
/// When pages cannot be found or kept.
pub fn capture_pages(manifest: &mut Manifest, sink: &mut dyn PageSink) -> Result<(), FreezerError> {
    let zero = ZeroPages::find();
    for process in &mut manifest.processes {
        let State::Live(live) = &mut process.state else {
            continue;
        };
        let mem = ProcMem::open(process.pid)
            .map_err(FreezerError::call(process.pid, "opening its memory"))?;
        live.mm.extents = capture(process.pid, &live.mm.vmas, &mem, &zero, sink)?;
    }
    Ok(())
}

/// Anonymous pages and private copies of file pages. Read-only mappings are looked at too: relocated
/// read-only data is such a copy.
fn capture(
    pid: Pid,
    vmas: &[Vma],
    mem: &ProcMem,
    zero: &ZeroPages,
    sink: &mut dyn PageSink,
) -> Result<Vec<Extent>, FreezerError> {
    let pagemap = Pagemap::open(pid)?;
    let mut extents: Vec<Extent> = Vec::new();
    for vma in vmas {
        if matches!(
            vma.backing,
            Backing::Vdso | Backing::Vvar | Backing::File { shared: true, .. }
        ) {
            continue;
        }
        bring_in(pid, &pagemap, vma, mem)?;
        let mut found: Vec<(u64, u64)> = Vec::new();
        pagemap.scan(vma.start, vma.end, |va, state| {
            if state.present() && state.private_data() && !zero.contains(state.pfn()) {
                found.push((va, state.pfn()));
            }
        })?;
        let follows = |a: &(u64, u64), b: &(u64, u64)| a.0 + PAGE_SIZE_U64 == b.0;
        for run in found.chunk_by(follows).flat_map(|run| run.chunks(RUN)) {
            let va = run[0].0;
            let pfns: Vec<u64> = run.iter().map(|(_, pfn)| *pfn).collect();
            let saved = sink
                .save(&PageRun {
                    mem,
                    va,
                    pfns: &pfns,
                })
                .map_err(|cause| FreezerError::Pages { pid, va, cause })?;
            saved
                .into_iter()
                .for_each(|extent| push(&mut extents, extent));
        }
    }
    Ok(extents)
}

/// Reads swapped pages of a mapping, which brings them into memory.
fn bring_in(pid: Pid, pagemap: &Pagemap, vma: &Vma, mem: &ProcMem) -> Result<(), FreezerError> {
    let mut swapped = Vec::new();
    pagemap.scan(vma.start, vma.end, |va, state| {
        if state.swapped() && state.private_data() {
            swapped.push(va);
        }
    })?;
    for va in swapped {
        mem.read(va, &mut [0])
            .map_err(FreezerError::call(pid, "reading a swapped page"))?;
    }
    Ok(())
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
        let mut extents = Vec::new();
        for (va, pages, frame) in [
            (0x1000, 2, 10),
            (0x3000, 1, 12),
            (0x4000, 1, 20),
            (0x6000, 1, 21),
        ] {
            push(&mut extents, Extent { va, pages, frame });
        }
        assert_eq!(extents.len(), 3);
        assert_eq!(extents[0].pages, 3);
    }
}
