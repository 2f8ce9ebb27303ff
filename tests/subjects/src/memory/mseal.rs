//! Mappings that cannot be changed any more (Linux 6.10), and those the kernel may drop (6.11).

use anyhow::Result;
use libc::{MAP_ANONYMOUS, PROT_READ, PROT_WRITE};

use crate::kit::{Area, PAGE, Setting, Watch, not_here, procfs, same};

const SYS_MSEAL: i64 = 462;
const MAP_DROPPABLE: i32 = 0x08;

/// Sealed read-only memory.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let area = Area::anonymous(3)?;
    area.fill(30);
    area.protect(PROT_READ)?;
    // SAFETY: the range is a mapping of ours.
    if unsafe { libc::syscall(SYS_MSEAL, area.page(0), 3 * PAGE, 0) } != 0 {
        return not_here("no mseal");
    }
    Ok(Watch::new(move || {
        area.check(30)?;
        same(
            "mprotect is refused",
            &true,
            &area.protect(PROT_READ | PROT_WRITE).is_err(),
        )?;
        same("unmapping is refused", &true, &area.unmap().is_err())
    }))
}

/// Droppable memory stays droppable; its contents may be gone.
pub(crate) fn droppable(_: &Setting) -> Result<Watch> {
    let flags = MAP_DROPPABLE | MAP_ANONYMOUS;
    let Ok(area) = Area::map(4, PROT_READ | PROT_WRITE, flags, -1) else {
        return not_here("no droppable mappings");
    };
    area.put(0, 0, 1);
    Watch::keep(move || procfs::vm_flags(area.page(0)))
}
