//! Transparent huge pages.

use anyhow::{Result, bail};

use crate::kit::{Area, Kin, PAGE, Setting, Watch, not_here, procfs};

/// 2 MiB
const HUGE: usize = 512;

/// 8 MiB of huge pages: contents and size.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let space = Area::anonymous(5 * HUGE)?;
    let skip = (space.page(0) as usize).wrapping_neg() / PAGE % HUGE;
    let area = space.part(skip, 4 * HUGE);
    area.advise(libc::MADV_HUGEPAGE)?;
    area.fill(23);
    let huge = move || procfs::smaps_kb("self", area.page(0), "AnonHugePages");
    if huge()? < 4 * 2048 {
        return not_here("no transparent huge pages to be had");
    }
    Ok(Watch::keep(huge)?
        .spoiled_by(move || area.part(3, 1).protect(libc::PROT_READ))
        .and(Watch::new(move || area.check(23))))
}

/// The first page of each is the parent's alone, since the child has given it up: what the kernel tells of
/// the others is what it would tell of that one. Nobody's pages may become copies.
pub(crate) fn family(setting: &Setting) -> Result<Watch> {
    const PAGES: usize = 4 * HUGE;
    let space = Area::anonymous(5 * HUGE)?;
    let skip = (space.page(0) as usize).wrapping_neg() / PAGE % HUGE;
    let area = space.part(skip, PAGES);
    area.advise(libc::MADV_HUGEPAGE)?;
    area.fill(29);
    let huge = move || procfs::smaps_kb("self", area.page(0), "AnonHugePages");
    if huge()? < 4 * 2048 {
        return not_here("no transparent huge pages to be had");
    }
    let mut child = Kin::start(setting, "child", |_| {
        for part in 0..4 {
            area.part(part * HUGE, 1).advise(libc::MADV_DONTNEED)?;
        }
        Ok(Watch::new(move || {
            (0..PAGES).try_for_each(|page| match page % HUGE {
                0 => area.check_zero(page),
                _ => area.check_page(page, 29),
            })
        }))
    })?;
    Ok(Watch::keep(huge)?
        .spoiled_by(move || area.part(3, 1).protect(libc::PROT_READ))
        .and(Watch::new(move || {
            area.check(29)?;
            child.check()?;
            let theirs = procfs::smaps_kb(&child.pid.to_string(), area.page(0), "Pss")?;
            let sum = procfs::smaps_kb("self", area.page(0), "Pss")? + theirs;
            let once = PAGES as u64 * 4;
            if sum > once + once / 8 {
                bail!("the family of two holds {sum} kB, not {once}");
            }
            Ok(())
        })))
}
