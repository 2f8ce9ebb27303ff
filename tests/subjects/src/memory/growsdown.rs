//! A mapping that grows down when it is touched below its start.

use anyhow::{Context, Result, bail};
use libc::{
    MAP_ANONYMOUS, MAP_FIXED, MAP_GROWSDOWN, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ,
    PROT_WRITE,
};

use crate::kit::{Area, PAGE, Setting, Watch, procfs};

/// Far more than the guard gap below a stack (1 MiB).
const SPACE: usize = 4096;
const PAGES_BELOW: usize = 8;

/// The area's last pages; every check makes it grow by one more.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let space = Area::map(
        SPACE,
        PROT_NONE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
        -1,
    )?;
    space.unmap()?;
    let first = SPACE - 4;
    Area::map_at(
        space.page(first),
        4,
        PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN,
        -1,
        0,
    )?;
    let mut lowest = first;
    (lowest..SPACE).for_each(|page| space.fill_page(page, 6));
    Ok(Watch::new(move || {
        (lowest..SPACE).try_for_each(|page| space.check_page(page, 6))?;
        if !procfs::vm_flags(space.page(lowest))?.contains(&"gd".to_owned()) {
            bail!("it does not grow down any more");
        }
        lowest -= 1;
        space.fill_page(lowest, 6);
        Ok(())
    }))
}

/// Memory that ends where the stack begins, so that this one cannot grow: as a part of it to which mprotect(2) gives
/// other protections.
pub(crate) fn below_stack(_: &Setting) -> Result<Watch> {
    let maps = procfs::maps()?;
    let stack = maps.iter().find(|line| line.ends_with("[stack]"));
    let (start, _) = stack
        .and_then(|line| procfs::range(line))
        .context("no stack")?;
    let at = start as usize - PAGES_BELOW * PAGE;
    let below = Area::map_at(
        at as *mut libc::c_void,
        PAGES_BELOW,
        PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
        -1,
        0,
    )?;
    (0..PAGES_BELOW).for_each(|page| below.fill_page(page, 9));
    Ok(
        Watch::new(move || (0..PAGES_BELOW).try_for_each(|page| below.check_page(page, 9)))
            .spoiled_by(move || {
                below.fill_page(PAGES_BELOW - 1, 8);
                Ok(())
            }),
    )
}
