//! As many mappings as a process may have.

use std::fs::File;
use std::io::{BufRead, BufReader};

use anyhow::{Result, ensure};
use libc::{MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE};

use crate::kit::{Area, Setting, Watch, procfs, same};

/// More than `vm.max_map_count` is by default.
const PAGES: usize = 140_000;
/// Every how many mappings one has contents.
const APART: usize = 1000;

/// Every second page may be written, up to the limit.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    let area = Area::map(PAGES, PROT_NONE, flags, -1)?;
    let open = |page: &usize| {
        let part = area.part(*page, 1);
        part.protect(PROT_READ | PROT_WRITE).is_ok()
    };
    let last = (1..PAGES).step_by(2).take_while(open).last();
    let last = last.unwrap_or(0);
    ensure!(last + 2 < PAGES, "the limit is higher than was thought");
    let some = (1..=last).step_by(2 * APART);
    some.clone().for_each(|page| area.part(page, 1).fill(8));
    let contents = Watch::new(move || {
        some.clone()
            .try_for_each(|page| area.part(page, 1).check(8))
    });
    let before = count(area)?;
    let number = Watch::new(move || same("mappings", &before, &count(area)?));
    Ok(number
        .spoiled_by(move || area.part(last, 1).protect(PROT_NONE))
        .and(contents))
}

/// How many there are in it. The whole text finds no room any more.
fn count(area: Area) -> Result<usize> {
    let (first, end) = (area.page(0) as u64, area.page(PAGES) as u64);
    let mut file = BufReader::new(File::open("/proc/self/maps")?);
    let (mut line, mut within) = (String::new(), 0);
    while file.read_line(&mut line)? > 0 {
        let range = procfs::range(&line);
        within += usize::from(range.is_some_and(|(from, to)| from >= first && to <= end));
        line.clear();
    }
    Ok(within)
}
