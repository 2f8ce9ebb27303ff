//! Guard regions (MADV_GUARD_INSTALL, Linux 6.13).

use anyhow::{Result, bail};

use crate::kit::{Area, Setting, Watch, not_here};

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
