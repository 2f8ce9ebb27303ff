//! As many mappings as a process may have.

use anyhow::{Result, ensure};
use libc::{MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE};

use crate::kit::{Area, Setting, Watch, same};

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
    let before = count()?;
    let number = Watch::new(move || same("mappings", &count()?, &before));
    Ok(number
        .spoiled_by(move || area.part(last, 1).protect(PROT_NONE))
        .and(contents))
}

/// How many there are. No memory is asked for: there is no room for a mapping.
fn count() -> Result<usize> {
    use std::io::Read;
    let mut file = std::fs::File::open("/proc/self/maps")?;
    let (mut bytes, mut lines) = ([0; 4096], 0);
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(lines),
            len => lines += bytes[..len].iter().filter(|byte| **byte == b'\n').count(),
        }
    }
}
