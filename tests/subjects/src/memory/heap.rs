//! The heap of brk(2): its end can be moved on afterwards.

use anyhow::Result;

use crate::kit::{Area, PAGE, Setting, Watch, procfs, same, sys};

const PAGES: usize = 64;

/// Pages behind the allocator's own, then some more at every check.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let start = grow()?;
    let area = Area::at(start, PAGES);
    area.fill(4);
    let mut end = area.page(PAGES);
    Ok(Watch::new(move || {
        area.check(4)?;
        same("the name of the heap", &true, &named(area.page(0))?)?;
        // Whoever lost the kernel's idea of the end gets something else or nothing.
        let more = grow()?;
        same("the break", &end, &more)?;
        let more = Area::at(more, PAGES);
        more.check_zero(0)?;
        more.fill(5);
        end = more.page(PAGES);
        Ok(())
    })
    .spoiled_by(|| grow().map(drop)))
}

fn named(at: *mut libc::c_void) -> Result<bool> {
    Ok(procfs::smaps("self", at)?[0].ends_with("[heap]"))
}

fn grow() -> Result<*mut libc::c_void> {
    // SAFETY: the break moves up only, and the new memory belongs to the caller; the
    // allocator copes with a break that somebody else has moved.
    let old = unsafe { libc::sbrk((PAGES * PAGE) as isize) };
    sys("sbrk", old as i64)?;
    Ok(old)
}
