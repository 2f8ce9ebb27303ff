//! A mapping that grows down when it is touched below its start.

use anyhow::{Result, bail};
use libc::{
    MAP_ANONYMOUS, MAP_FIXED, MAP_GROWSDOWN, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ,
    PROT_WRITE,
};

use crate::kit::{Area, Setting, Watch, procfs};

/// Far more than the guard gap below a stack (1 MiB).
const SPACE: usize = 4096;

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
