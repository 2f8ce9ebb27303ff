//! Mappings of a file that was removed since.

use std::fs;
use std::os::fd::AsRawFd;

use anyhow::{Result, bail};
use libc::{MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};

use crate::kit::{Area, PAGE, Setting, Watch, procfs, same};

/// Two shared mappings and a private one of one removed file.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("removed");
    fs::write(&path, vec![b'r'; 8 * PAGE])?;
    let file = fs::File::options().read(true).write(true).open(&path)?;
    let map = |prot, flags| Area::map(8, prot, flags, file.as_raw_fd());
    let area = map(PROT_READ | PROT_WRITE, MAP_SHARED)?;
    let view = map(PROT_READ, MAP_SHARED)?;
    let private = map(PROT_READ | PROT_WRITE, MAP_PRIVATE)?;
    drop(file);
    fs::remove_file(&path)?;
    private.fill_page(2, 13);
    area.part(4, 4).fill(13);
    let mut round = 13;
    Ok(Watch::new(move || {
        area.part(4, 4).check(round)?;
        private.check_page(2, 13)?;
        same(
            "an untouched page",
            &u64::from_ne_bytes([b'r'; 8]),
            &private.get(1, 0),
        )?;
        round += 1;
        area.part(4, 4).fill(round);
        view.part(4, 4).check(round)?;
        let record = procfs::smaps("self", area.page(0))?;
        if !record[0].ends_with("(deleted)") {
            bail!("it is not removed any more: {}", record[0]);
        }
        Ok(())
    })
    .spoiled_by(move || {
        area.put(4, 0, 0);
        Ok(())
    }))
}

/// Mappings, one of them private, of a file that has lost the name by which it was mapped, and has another one.
pub(crate) fn other_name(setting: &Setting) -> Result<Watch> {
    let [path, other] = ["renamed", "renamed-other"].map(|name| setting.fresh(name));
    fs::write(&path, vec![b'r'; 2 * PAGE])?;
    fs::hard_link(&path, &other)?;
    let file = fs::File::options().read(true).write(true).open(&path)?;
    let map = |prot| Area::map(2, prot, MAP_SHARED, file.as_raw_fd());
    let areas = [map(PROT_READ | PROT_WRITE)?, map(PROT_READ)?];
    let private = Area::map(2, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.as_raw_fd())?;
    private.fill_page(0, 14);
    drop(file);
    fs::remove_file(&path)?;
    let mut round = 0;
    let [area, view] = areas;
    let gone = format!("{} (deleted)", path.display());
    let left = other.clone();
    Ok(Watch::new(move || {
        round += 1;
        area.put(1, 0, round);
        same("the other mapping", &round, &view.get(1, 0))?;
        same("the private mapping", &round, &private.get(1, 0))?;
        private.check_page(0, 14)?;
        let written = fs::read(&other)?;
        let found = written.get(PAGE..PAGE + 8).map(<[u8]>::to_vec);
        same("the file", &Some(round.to_ne_bytes().to_vec()), &found)?;
        same("its first name", &false, &path.exists())?;
        for area in [&area, &view, &private] {
            let record = procfs::smaps("self", area.page(0))?;
            let named = record[0].ends_with(&gone);
            same("the name of the mapping", &true, &named)?;
        }
        Ok(())
    })
    .spoiled_by(move || Ok(fs::remove_file(&left)?)))
}
