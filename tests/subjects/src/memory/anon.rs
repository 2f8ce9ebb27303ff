//! Private anonymous memory.

use anyhow::{Result, bail};

use crate::kit::{Area, Setting, Watch, procfs};

const PAGES: usize = 2048;

/// Every page is written; the check writes new values, so that it sees pages shared wrongly.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let area = Area::anonymous(PAGES)?;
    let mut seed = 1;
    area.fill(seed);
    Ok(Watch::new(move || {
        area.check(seed)?;
        seed += 1;
        area.fill(seed);
        area.check(seed)
    })
    .spoiled_by(move || {
        area.put(PAGES - 1, 511, 0);
        Ok(())
    }))
}

/// One page of three is written.
pub(crate) fn holes(_: &Setting) -> Result<Watch> {
    let area = Area::anonymous(PAGES)?;
    // A huge page has no holes.
    area.advise(libc::MADV_NOHUGEPAGE)?;
    let written = |page: usize| page.is_multiple_of(3);
    (0..PAGES)
        .filter(|page| written(*page))
        .for_each(|page| area.fill_page(page, 2));
    let resident = move || procfs::smaps_kb("self", area.page(0), "Anonymous");
    let before = resident()?;
    Ok(Watch::new(move || {
        // Before the holes are read: that makes zero pages of them.
        let now = resident()?;
        if now > before {
            bail!("{now} kB are present, not {before}");
        }
        (0..PAGES).try_for_each(|page| match written(page) {
            true => area.check_page(page, 2),
            false => area.check_zero(page),
        })
    })
    .spoiled_by(move || {
        area.put(1, 0, 0);
        Ok(())
    }))
}
