//! Private mappings of a file: some pages copied, the others still the file's.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use libc::{MAP_PRIVATE, PROT_READ, PROT_WRITE};

use crate::kit::{Area, PAGE, Setting, Watch, procfs, same};

const PAGES: usize = 32;

/// Pages 0, 3, 6... are copies with values of their own.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("one\\012 of\ntwo lines");
    fs::write(&path, vec![b'f'; PAGES * PAGE])?;
    let file = fs::File::options().read(true).write(true).open(&path)?;
    let area = Area::map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.as_raw_fd())?;
    for page in (0..PAGES).step_by(3) {
        area.fill_page(page, 11);
    }
    let (mut round, mut letter) = (0, b'f');
    Ok(Watch::new(move || {
        same(
            "copied pages (kB)",
            &44,
            &procfs::smaps_kb("self", area.page(0), "Anonymous")?,
        )?;
        for page in 0..PAGES {
            let word = u64::from_ne_bytes([letter; 8]);
            match page % 3 {
                0 => area.check_page(page, 11)?,
                _ => same("a page of the file", &word, &area.get(page, 511))?,
            }
        }
        // Pages that were not copied show what is written to the file now.
        round += 1;
        letter = b'f' + round % 16;
        file.write_all_at(&vec![letter; PAGES * PAGE], 0)
            .context("file")
    })
    .spoiled_by(move || {
        area.put(1, 0, 0);
        Ok(())
    }))
}
