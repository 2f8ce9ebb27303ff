//! Names of anonymous mappings (PR_SET_VMA_ANON_NAME).

use anyhow::Result;

use crate::kit::{Area, PAGE, Setting, Watch, not_here, procfs};

const PR_SET_VMA: i32 = 0x5356_4d41;

fn name(area: Area, name: &std::ffi::CStr) -> i32 {
    // SAFETY: prctl(2): the name is a C string, the range a mapping of ours.
    unsafe {
        libc::prctl(
            PR_SET_VMA,
            0,
            area.page(0),
            area.pages() * PAGE,
            name.as_ptr(),
        )
    }
}

/// A name in /proc/PID/maps.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let area = Area::anonymous(3)?;
    area.fill(27);
    if name(area, c"some name") != 0 {
        return not_here("no names of mappings");
    }
    Ok(
        Watch::keep(move || Ok(procfs::smaps("self", area.page(0))?[0].clone()))?
            .spoiled_by(move || {
                name(area, c"other");
                Ok(())
            })
            .and(Watch::new(move || area.check(27))),
    )
}
