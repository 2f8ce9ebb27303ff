//! Memory that is locked.

use anyhow::Result;

use crate::kit::{Area, PAGE, Setting, Watch, procfs, same, sys};

fn locked(area: Area, flags: u32) -> Result<()> {
    // SAFETY: the area is a mapping of ours.
    sys("mlock2", unsafe {
        libc::mlock2(area.page(0), area.pages() * PAGE, flags)
    })
    .map(drop)
}

/// The flag, the kernel's count and the contents.
fn watch(area: Area) -> Result<Watch> {
    Ok(Watch::keep(move || {
        let count = procfs::status("self", "VmLck")?;
        Ok((procfs::vm_flags(area.page(0))?, count))
    })?
    .spoiled_by(move || {
        // SAFETY: the area is a mapping of ours.
        sys("munlock", unsafe { libc::munlock(area.page(0), PAGE) }).map(drop)
    })
    .and(Watch::new(move || area.check_page(2, 25))))
}

/// mlock
pub(crate) fn mlock(_: &Setting) -> Result<Watch> {
    let area = Area::anonymous(16)?;
    locked(area, 0)?;
    area.fill_page(2, 25);
    watch(area)
}

/// Locked as it is touched: what was not touched is not there.
pub(crate) fn onfault(_: &Setting) -> Result<Watch> {
    let area = Area::anonymous(16)?;
    locked(area, libc::MLOCK_ONFAULT)?;
    area.fill_page(2, 25);
    Ok(watch(area)?.and(Watch::keep(move || {
        procfs::smaps_kb("self", area.page(0), "Rss")
    })?))
}

/// What is mapped later is locked as well.
pub(crate) fn future(_: &Setting) -> Result<Watch> {
    // SAFETY: mlockall takes flags only.
    sys("mlockall", unsafe { libc::mlockall(libc::MCL_FUTURE) })?;
    Ok(Watch::new(|| {
        let area = Area::anonymous(4)?;
        let flags = procfs::vm_flags(area.page(0))?;
        area.unmap()?;
        same(
            "a new mapping is locked",
            &true,
            &flags.contains(&"lo".to_owned()),
        )
    })
    .spoiled_by(|| {
        // SAFETY: munlockall takes nothing.
        sys("munlockall", unsafe { libc::munlockall() }).map(drop)
    }))
}
