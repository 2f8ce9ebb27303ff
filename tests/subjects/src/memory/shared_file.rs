//! A shared mapping of a file: what is written on either side is seen on the other.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::Result;
use libc::{MAP_SHARED, PROT_READ, PROT_WRITE};

use crate::kit::{Area, PAGE, Setting, Watch, same};

const PAGES: usize = 16;

/// The file has half a page less than the mapping, and is not held open.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("data");
    fs::write(&path, vec![0; PAGES * PAGE - PAGE / 2])?;
    let open = || fs::File::options().read(true).write(true).open(&path);
    let area = Area::map(
        PAGES,
        PROT_READ | PROT_WRITE,
        MAP_SHARED,
        open()?.as_raw_fd(),
    )?;
    // A second mapping of a part of it, read-only.
    let view = Area::map_at(
        std::ptr::null_mut(),
        4,
        PROT_READ,
        MAP_SHARED,
        open()?.as_raw_fd(),
        4,
    )?;
    area.part(0, 8).fill(12);
    let path = path.clone();
    let mut round = 12;
    Ok(Watch::new(move || {
        area.part(0, 8).check(round)?;
        same("the second mapping", &area.get(5, 3), &view.get(1, 3))?;
        round += 1;
        area.part(0, 8).fill(round);
        let file = fs::File::options().read(true).write(true).open(&path)?;
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 7 * PAGE as u64)?;
        same("the file", &area.get(7, 0), &u64::from_ne_bytes(bytes))?;
        file.write_all_at(&round.to_ne_bytes(), 9 * PAGE as u64)?;
        same("the mapping", &round, &area.get(9, 0))
    })
    .spoiled_by(move || {
        area.put(7, 511, 0);
        Ok(())
    }))
}
