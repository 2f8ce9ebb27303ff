//! Thousands of mappings.

use anyhow::Result;
use libc::{PROT_READ, PROT_WRITE};

use crate::kit::{Area, Setting, Watch, procfs};

const PAGES: usize = 4000;

/// Every second page is read-only, so that no two neighbours are one mapping.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let area = Area::anonymous(PAGES)?;
    area.fill(8);
    for page in (0..PAGES).step_by(2) {
        area.part(page, 1).protect(PROT_READ)?;
    }
    let within = move |line: &String| {
        procfs::range(line).is_some_and(|(start, end)| {
            start >= area.page(0) as u64 && end <= area.page(PAGES) as u64
        })
    };
    let lines = Watch::keep(move || {
        let mut lines = procfs::maps()?;
        lines.retain(within);
        Ok(lines)
    })?;
    Ok(lines
        .spoiled_by(move || area.part(0, 1).protect(PROT_READ | PROT_WRITE))
        .and(Watch::new(move || area.check(8))))
}
