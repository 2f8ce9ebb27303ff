//! Guard regions (MADV_GUARD_INSTALL, Linux 6.13).

use anyhow::{Result, bail};

use crate::kit::{Area, Setting, Watch, not_here, procfs};

const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

/// A guard page between pages with contents; process_vm_readv sees what a touch would do.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let area = Area::anonymous(5)?;
    area.fill(29);
    if area.part(2, 1).advise(MADV_GUARD_INSTALL).is_err() {
        return not_here("no guard regions");
    }
    Ok(Watch::new(move || {
        for page in [0, 1, 3, 4] {
            area.check_page(page, 29)?;
        }
        if touch(area, 2) {
            bail!("the guard page can be read");
        }
        match touch(area, 1) {
            true => Ok(()),
            false => bail!("the page beside it cannot be read"),
        }
    })
    .spoiled_by(move || area.part(2, 1).advise(MADV_GUARD_REMOVE)))
}

/// Private and shared memory that had a guard page once, which newer kernels remember (`gu` of smaps).
pub(crate) fn removed(_: &Setting) -> Result<Watch> {
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let areas = [Area::anonymous(5)?, Area::map(5, writable, shared, -1)?];
    for area in &areas {
        area.part(0, 4).fill(30);
        let guard = area.part(4, 1);
        if guard.advise(MADV_GUARD_INSTALL).is_err() {
            return not_here("no guard regions");
        }
        guard.advise(MADV_GUARD_REMOVE)?;
        area.fill_page(4, 30);
    }
    let flags = move || {
        let of = |area: &Area| procfs::vm_flags(area.page(0));
        areas.iter().map(of).collect::<Result<Vec<_>>>()
    };
    if !flags()?
        .iter()
        .all(|flags| flags.iter().any(|flag| flag == "gu"))
    {
        return not_here("the kernel does not tell of guard regions that were removed");
    }
    Ok(Watch::keep(flags)?
        .and(Watch::new(move || {
            areas.iter().try_for_each(|area| {
                area.part(0, 4).check(30)?;
                area.check_page(4, 30)
            })
        }))
        .spoiled_by(move || areas[1].advise(libc::MADV_DONTDUMP)))
}

/// Can a word of the page be read? Asked of the kernel.
fn touch(area: Area, page: usize) -> bool {
    let mut word = 0_u64;
    let local = libc::iovec {
        iov_base: (&raw mut word).cast(),
        iov_len: 8,
    };
    let remote = libc::iovec {
        iov_base: area.page(page),
        iov_len: 8,
    };
    // SAFETY: the local buffer is a word; the kernel checks the remote one.
    unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) == 8 }
}
