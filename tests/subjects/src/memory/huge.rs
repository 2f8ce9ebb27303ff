//! Transparent huge pages.

use anyhow::Result;

use crate::kit::{Area, PAGE, Setting, Watch, not_here, procfs};

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
