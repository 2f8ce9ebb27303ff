//! Address space that is only reserved, as by the JVM, Go and sanitizers.

use anyhow::{Result, bail};
use libc::{MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE};

use crate::kit::{Area, PAGE, Setting, Watch, procfs};

const PAGES: usize = (1 << 40) / PAGE;

/// A terabyte with two pages in use in its middle.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let area = Area::map(
        PAGES,
        PROT_NONE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
        -1,
    )?;
    let middle = PAGES / 2;
    let used = area.part(middle, 2);
    used.protect(PROT_READ | PROT_WRITE)?;
    used.fill(7);
    Ok(Watch::new(move || {
        used.check(7)?;
        for (page, first, end) in [(0, 0, middle), (middle + 2, middle + 2, PAGES)] {
            let record = procfs::smaps("self", area.page(page))?;
            let range = Some((area.page(first) as u64, area.page(end) as u64));
            if procfs::range(&record[0]) != range || !record[0].contains("---p") {
                bail!("the reservation is {}", record[0]);
            }
            if !procfs::vm_flags(area.page(page))?.contains(&"nr".to_owned()) {
                bail!("the reservation is accounted now");
            }
        }
        Ok(())
    })
    .spoiled_by(move || area.part(PAGES - 1, 1).unmap()))
}
