//! Mappings side by side that could be one and are not.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use libc::{
    MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, MREMAP_FIXED, MREMAP_MAYMOVE,
    PROT_NONE, PROT_READ, PROT_WRITE, c_int,
};

use crate::kit::{Area, PAGE, Setting, Watch, procfs, sys};

/// Pages of the range that all of them lie in.
const PAGES: usize = 512;
const BOTH: c_int = PROT_READ | PROT_WRITE;
const OWN: c_int = MAP_PRIVATE | MAP_ANONYMOUS;

/// Moved side by side; filled before what was between them came; writable once; of one file through two
/// descriptions.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let area = Area::map(PAGES, PROT_NONE, OWN, -1)?;
    moved(&area)?;
    closed_gap(&area)?;
    once_writable(&area)?;
    files(&area, setting)?;
    let within = move |line: &str| {
        procfs::range(line)
            .filter(|(start, end)| *start >= area.page(0) as u64 && *end <= area.page(PAGES) as u64)
    };
    let lines = Watch::keep(move || {
        let maps = procfs::maps()?;
        let mut lines = Vec::new();
        for (line, (start, _)) in maps.iter().filter_map(|line| Some((line, within(line)?))) {
            let accounted = procfs::vm_flags(start as *mut _)?.contains(&"ac".to_owned());
            // Removed objects get inodes anew.
            let line = line.split_whitespace().take(3).collect::<Vec<_>>();
            lines.push((line.join(" "), accounted));
        }
        Ok(lines)
    })?;
    Ok(lines
        .spoiled_by(move || area.part(3, 1).protect(PROT_READ))
        .and(Watch::new(move || {
            (0..3).try_for_each(|n| area.part(4 * n, 2).check(n as u64 + 1))
        })))
}

/// Three that were elsewhere, from page 0 on, and two that nothing may touch, from 20 on.
fn moved(area: &Area) -> Result<()> {
    for n in 0..3 {
        let part = Area::anonymous(4)?;
        part.part(0, 2).fill(n as u64 + 1);
        move_to(&part, area, 4 * n)?;
    }
    for n in 0..2 {
        let part = Area::anonymous(4)?;
        part.fill_page(1, 9);
        part.protect(PROT_NONE)?;
        move_to(&part, area, 20 + 4 * n)?;
    }
    Ok(())
}

fn move_to(part: &Area, area: &Area, page: usize) -> Result<()> {
    let len = part.pages() * PAGE;
    let how = MREMAP_MAYMOVE | MREMAP_FIXED;
    // SAFETY: both are mappings of this subject, and nobody holds references into them.
    let at = unsafe { libc::mremap(part.page(0), len, len, how, area.page(page)) };
    sys("mremap", if at == libc::MAP_FAILED { -1 } else { 0 }).map(drop)
}

/// Page 101 comes when 100 and 102 have had contents.
fn closed_gap(area: &Area) -> Result<()> {
    area.part(100, 3).unmap()?;
    let page = |n| Area::map_at(area.page(n), 1, BOTH, OWN | MAP_FIXED, -1, 0);
    page(100)?.fill(1);
    page(102)?.fill(2);
    page(101).map(drop)
}

/// Memory that counts because it has been writable, and is not now: with contents, emptied, never touched.
fn once_writable(area: &Area) -> Result<()> {
    for (first, emptied) in [(200, false), (204, true)] {
        let part = area.part(first, 4);
        part.protect(BOTH)?;
        part.fill_page(1, 3);
        if emptied {
            part.advise(MADV_DONTNEED)?;
        }
        part.protect(if emptied { PROT_READ } else { PROT_NONE })?;
    }
    let untouched = area.part(216, 4);
    untouched.protect(BOTH)?;
    untouched.protect(PROT_READ)
}

/// A file and a memfd, each mapped through two descriptions, one page behind the other.
fn files(area: &Area, setting: &Setting) -> Result<()> {
    let path = setting.fresh("neighbours");
    fs::write(&path, vec![b'n'; 4 * PAGE])?;
    for n in 0..2 {
        let file = File::open(&path)?;
        let how = MAP_PRIVATE | MAP_FIXED;
        Area::map_at(area.page(300 + n), 1, BOTH, how, file.as_raw_fd(), n as i64)?;
    }
    // SAFETY: the name is a string.
    let fd = unsafe { libc::memfd_create(c"neighbours".as_ptr(), 0) };
    sys("memfd_create", fd)?;
    // SAFETY: it has just been made.
    let mut memfd = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    memfd.write_all(&[b'm'; 4 * PAGE])?;
    let own = format!("/proc/self/fd/{fd}");
    for n in 0..2 {
        let file = File::options().read(true).write(true).open(&own);
        let file = file.with_context(|| own.clone())?;
        let how = MAP_SHARED | MAP_FIXED;
        Area::map_at(area.page(310 + n), 1, BOTH, how, file.as_raw_fd(), n as i64)?;
    }
    Ok(())
}
