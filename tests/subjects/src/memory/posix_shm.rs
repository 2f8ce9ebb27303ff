//! POSIX shared memory: files of the tmpfs on /dev/shm.

use std::fs;
use std::os::fd::AsRawFd;

use anyhow::{Result, bail};
use libc::{MAP_SHARED, PROT_READ, PROT_WRITE};

use crate::kit::{Area, PAGE, Setting, Watch, not_here, procfs, same};

fn make(name: &str) -> Result<(String, Area)> {
    if !fs::read_to_string("/proc/mounts")?.contains(" /dev/shm tmpfs") {
        return not_here("no tmpfs on /dev/shm");
    }
    let path = format!("/dev/shm/kupgrade-{name}-{}", std::process::id());
    let file = fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    file.set_len(8 * PAGE as u64)?;
    let area = Area::map(8, PROT_READ | PROT_WRITE, MAP_SHARED, file.as_raw_fd())?;
    area.fill(22);
    Ok((path, area))
}

/// By name and by mapping.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let (path, area) = make("shm")?;
    let mut round = 22;
    Ok(Watch::new(move || {
        area.check(round)?;
        round += 1;
        area.fill(round);
        let bytes = fs::read(&path)?;
        same("the size", &(8 * PAGE), &bytes.len())?;
        same("the file", &area.get(0, 0).to_ne_bytes()[..], &bytes[..8])
    })
    .spoiled_by(move || {
        area.put(0, 0, 0);
        Ok(())
    }))
}

/// The name is gone, two mappings are left.
pub(crate) fn unlinked(_: &Setting) -> Result<Watch> {
    let (path, area) = make("gone")?;
    let file = fs::File::open(&path)?;
    let view = Area::map(8, PROT_READ, MAP_SHARED, file.as_raw_fd())?;
    fs::remove_file(&path)?;
    let mut round = 22;
    Ok(Watch::new(move || {
        area.check(round)?;
        round += 1;
        area.fill(round);
        view.check(round)?;
        let record = procfs::smaps("self", area.page(0))?;
        if !record[0].ends_with("(deleted)") || fs::exists(&path)? {
            bail!("the name is back: {}", record[0]);
        }
        same("the size", &(8 * PAGE as u64), &file.metadata()?.len())
    })
    .spoiled_by(move || {
        area.put(0, 0, 0);
        Ok(())
    }))
}
