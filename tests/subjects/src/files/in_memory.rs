//! What is on tmpfs, which another kernel has only as it is put there again.

use std::fs;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use libc::{MAP_SHARED, PROT_READ};

use crate::kit::{Area, PAGE, Setting, Watch, not_here, procfs, same};

/// A name on `/dev/shm` that nobody has.
pub(super) fn fresh(name: &str) -> Result<PathBuf> {
    if !fs::read_to_string("/proc/mounts")?.contains(" /dev/shm tmpfs") {
        return not_here("no tmpfs on /dev/shm");
    }
    let path = format!("/dev/shm/kupgrade-{name}-{}", std::process::id());
    // Most often nothing is there.
    let _ = fs::remove_dir_all(&path);
    Ok(path.into())
}

/// Inode and links. The device's number stays only where the new kernel does not use it for itself.
fn identity(path: &Path) -> Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.ino(), found.nlink()))
}

fn listed(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Inode numbers by name, by descriptor and of a mapping, and the order of a directory.
pub(super) fn numbers(_: &Setting) -> Result<Watch> {
    let top = fresh("numbers")?;
    fs::create_dir(&top)?;
    // Some numbers are nobody's any more, and a directory is younger than what is in it.
    for number in 0..60 {
        fs::write(top.join(number.to_string()), number.to_string())?;
    }
    for number in (0..60).step_by(3) {
        fs::remove_file(top.join(number.to_string()))?;
    }
    fs::create_dir(top.join("young"))?;
    fs::rename(top.join("1"), top.join("young/old"))?;
    fs::hard_link(top.join("2"), top.join("young/link"))?;
    std::os::unix::fs::symlink("young/old", top.join("symbolic"))?;
    let mapped = top.join("4");
    let file = fs::File::options().read(true).write(true).open(&mapped)?;
    file.set_len(PAGE as u64)?;
    let file = file.into_raw_fd();
    let area = Area::map(1, PROT_READ, MAP_SHARED, file)?;
    let (all, mapping) = (top.clone(), area.page(0));
    let watch = Watch::keep(move || {
        let names = [listed(&all)?, listed(&all.join("young"))?];
        let found = names.iter().flatten().map(|path| identity(path));
        let found: Vec<_> = found.collect::<Result<_>>()?;
        let line = procfs::smaps("self", mapping)?.swap_remove(0);
        let inode = line.split_whitespace().nth(4).map(str::to_owned);
        Ok((names, found, identity(&all)?, inode))
    })?;
    let watch = watch.and(Watch::new(move || {
        let (by_name, open) = (
            identity(&mapped)?,
            fs::metadata(format!("/proc/self/fd/{file}"))?,
        );
        same("the open file", &by_name.0, &open.ino())
    }));
    Ok(watch.spoiled_by(move || {
        let file = top.join("5");
        fs::remove_file(&file)?;
        Ok(fs::write(&file, "5")?)
    }))
}
