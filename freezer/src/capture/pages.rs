//! Which pages a process has, and handing them to the store.

use super::PageSink;
use crate::FreezerError;
use crate::proc::Pagemap;
use persist_mem::manifest::{Backing, Extent, Vma};
use sys::vm::ProcMem;
use sys::{PAGE_SIZE_U64, Pid};

/// Pages handed over in one go.
const RUN: u64 = 1024;

/// Saves every page that only memory or swap holds: anonymous ones, and private copies of file pages.
/// Read-only mappings are looked at too: relocated read-only data is such a copy.
pub(super) fn capture(
    pid: Pid,
    vmas: &[Vma],
    mem: &ProcMem,
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
        let mut runs: Vec<(u64, u64)> = Vec::new();
        pagemap.scan(vma.start, vma.end, |va, state| {
            if !state.private_data() {
                return;
            }
            match runs.last_mut() {
                Some((start, pages)) if *start + *pages * PAGE_SIZE_U64 == va && *pages < RUN => {
                    *pages += 1;
                }
                _ => runs.push((va, 1)),
            }
        })?;
        for (va, pages) in runs {
            let frame = sink
                .save(mem, va, pages)
                .map_err(|cause| FreezerError::Pages { pid, va, cause })?;
            push(&mut extents, Extent { va, pages, frame });
        }
    }
    Ok(extents)
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
        push(
            &mut extents,
            Extent {
                va: 0x1000,
                pages: 2,
                frame: 10,
            },
        );
        push(
            &mut extents,
            Extent {
                va: 0x3000,
                pages: 1,
                frame: 12,
            },
        );
        push(
            &mut extents,
            Extent {
                va: 0x4000,
                pages: 1,
                frame: 20,
            },
        );
        push(
            &mut extents,
            Extent {
                va: 0x6000,
                pages: 1,
                frame: 21,
            },
        );
        assert_eq!(extents.len(), 3);
        assert_eq!(extents[0].pages, 3);
    }
}
