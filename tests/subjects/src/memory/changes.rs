//! A restored address space can be changed like any other.

use anyhow::{Result, bail};

use crate::kit::{Area, PAGE, Setting, Watch};

/// Maps, moves, shrinks and unmaps at every check; the mapping that stays holds its contents.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let mut area = Area::anonymous(16)?;
    area.fill(9);
    Ok(Watch::new(move || {
        area.check(9)?;
        let target = Area::anonymous(16)?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both areas are ours, and only the new one is used afterwards.
        let moved =
            unsafe { libc::mremap(area.page(0), 16 * PAGE, 16 * PAGE, flags, target.page(0)) };
        if moved != target.page(0) {
            bail!("mremap: {}", std::io::Error::last_os_error());
        }
        area = target;
        let other = Area::anonymous(64)?;
        other.fill(10);
        other.part(8, 8).unmap()?;
        other.part(16, 48).check_zero(0).err();
        other.part(16, 48).unmap()?;
        other.part(0, 8).unmap()?;
        area.check(9)
    }))
}
