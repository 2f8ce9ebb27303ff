//! Many pages for new anonymous memory. The kernel copies them into frames that it need not clear and look up first, as
//! it must for process_vm_writev(2): two thirds of the time. Setting that up pays for large ranges only, and not every
//! kernel and container allows it, so what is left over is copied as everything else is.

use super::Builder;
use super::pages::{copy_by, split};
use crate::ResurrectError;
use crate::calls::{nr, run};
use persist_mem::manifest::{AddressSpace, Backing, Extent, PageRange, Vma};
use sys::batch::Batch;
use sys::tracee::Tracee;
use sys::userfault::{FLAGS, Userfault};
use sys::{PAGE_SIZE_U64, Pid};

/// Pages from which on a range is worth it.
const MANY: u64 = 256;

/// Puts pages of extents into anonymous memory that has none. Returns those that are still to be copied.
pub(super) fn many(
    builder: &Builder<'_>,
    leader: &mut Tracee,
    mm: &AddressSpace,
    extents: Vec<Extent>,
) -> Result<Vec<Extent>, ResurrectError> {
    let ranges = ranges(&mm.vmas, &extents);
    if ranges.is_empty() {
        return Ok(extents);
    }
    let Some(memory) = open(builder.pid, leader)? else {
        return Ok(extents);
    };
    let (inside, outside) = split(&extents, &ranges);
    let mut registered = ranges
        .iter()
        .map(|range| memory.register(range.va, range.pages * PAGE_SIZE_U64));
    let done = match registered.find(Result::is_err) {
        None => copy_by(builder, &inside, |some| memory.copy(some))?,
        Some(failed) => failed,
    };
    Ok(match done {
        Ok(()) => outside,
        Err(why) => {
            let pid = builder.pid;
            log::debug!("process {pid}: pages are copied by process_vm_writev(2): {why}");
            extents
        }
    })
}

/// Made by the process, whose memory it is for, and left to this one alone. None where that is not allowed.
fn open(pid: Pid, leader: &mut Tracee) -> Result<Option<Userfault>, ResurrectError> {
    let doing = "making a userfaultfd";
    let mut batch = Batch::new();
    let made = batch.try_call(doing, nr::USERFAULTFD, [FLAGS.into()]);
    let made = run(pid, doing, leader, &batch)?.result(made);
    let Some(fd) = made.ok().and_then(|fd| i32::try_from(fd).ok()) else {
        return Ok(None);
    };
    let taken = Userfault::take(leader.pid(), fd);
    let mut batch = Batch::new();
    batch.call("closing a userfaultfd", nr::CLOSE, [fd.into()]);
    run(pid, doing, leader, &batch)?;
    Ok(taken.ok())
}

/// Anonymous mappings that touch each other, as one, where many pages are to come.
fn ranges(vmas: &[Vma], extents: &[Extent]) -> Vec<PageRange> {
    let mut found: Vec<PageRange> = Vec::new();
    for vma in vmas.iter().filter(|vma| is_plain(vma)) {
        let pages = vma.len() / PAGE_SIZE_U64;
        match found.last_mut() {
            Some(last) if last.va + last.pages * PAGE_SIZE_U64 == vma.start => last.pages += pages,
            _ => found.push(PageRange {
                va: vma.start,
                pages,
            }),
        }
    }
    let end = |va: u64, pages: u64| va + pages * PAGE_SIZE_U64;
    let to_come = |range: &PageRange| -> u64 {
        let from = extents.partition_point(|e| end(e.va, e.pages) <= range.va);
        let until = end(range.va, range.pages);
        let inside = extents[from..].iter().take_while(|e| e.va < until);
        let bytes = inside.map(|e| end(e.va, e.pages).min(until) - e.va.max(range.va));
        bytes.sum::<u64>() / PAGE_SIZE_U64
    };
    found.retain(|range| range.pages >= MANY && to_come(range) >= MANY);
    found
}

fn is_plain(vma: &Vma) -> bool {
    matches!(vma.backing, Backing::Anonymous { .. })
        && vma.page_size == PAGE_SIZE_U64
        && !vma.has(b"dp")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vma(start: u64, pages: u64, page_size: u64) -> Vma {
        Vma {
            start,
            end: start + pages * PAGE_SIZE_U64,
            prot: 1,
            flags: Vec::new(),
            protection_key: 0,
            page_size,
            lock_on_fault: false,
            backing: Backing::Anonymous { name: Vec::new() },
        }
    }

    #[test]
    fn neighbours_are_one_range_and_few_pages_none() {
        let vmas = [
            vma(0x10_0000, 128, PAGE_SIZE_U64),
            vma(0x18_0000, 512, PAGE_SIZE_U64),
            vma(0x100_0000, MANY, PAGE_SIZE_U64),
            vma(0x800_0000, 512, 2 << 20),
        ];
        let extent = |va, pages| Extent {
            va,
            pages,
            frame: 0,
        };
        let extents = [
            extent(0x10_0000, 2),
            extent(0x18_0000, MANY - 2),
            extent(0x100_0000, MANY - 1),
            extent(0x800_0000, 512),
        ];
        let expected = [PageRange {
            va: 0x10_0000,
            pages: 640,
        }];
        assert_eq!(ranges(&vmas, &extents), expected);
    }
}
