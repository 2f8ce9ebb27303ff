//! Huge pages of hugetlbfs.

use std::fs;

use anyhow::Result;
use libc::{MAP_ANONYMOUS, MAP_HUGETLB, MAP_PRIVATE, PROT_READ, PROT_WRITE};

use crate::kit::{Area, Kin, Setting, Watch, not_here, procfs, same};

const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Two pages of 2 MiB that are left out of cores.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let area = pages(2)?;
    area.fill(24);
    area.advise(libc::MADV_DONTDUMP)?;
    Ok(Watch::keep(move || {
        let size = procfs::smaps_kb("self", area.page(0), "KernelPageSize")?;
        Ok((size, procfs::vm_flags(area.page(0))?))
    })?
    .and(Watch::new(move || area.check(24)).spoiled_by(move || {
        area.put(1, 1, 1);
        Ok(())
    })))
}

/// One page of 2 MiB that a child has from its parent.
pub(crate) fn family(setting: &Setting) -> Result<Watch> {
    let area = pages(1)?;
    area.fill(25);
    let shared = move || -> Result<Watch> {
        let kept = Watch::keep(move || procfs::smaps_kb("self", area.page(0), "Shared_Hugetlb"))?;
        Ok(kept.and(Watch::new(move || area.check(25))))
    };
    let mut kin = Kin::start(setting, "child", |_| shared())?;
    let both = procfs::smaps_kb("self", area.page(0), "Shared_Hugetlb")?;
    same("what is shared (kB)", &2048, &both)?;
    Ok(shared()?
        .spoiled_by(move || area.unmap())
        .and(Watch::new(move || kin.check())))
}

/// Private huge pages.
fn pages(huge: usize) -> Result<Area> {
    let free: u64 = fs::read_to_string(POOL)
        .unwrap_or_default()
        .trim()
        .parse()
        .unwrap_or(0);
    if free < 4 && fs::write(POOL, "4").is_err() {
        return not_here("no pool of huge pages");
    }
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    match Area::map(512 * huge, PROT_READ | PROT_WRITE, flags, -1) {
        Ok(area) => Ok(area),
        Err(_) => not_here("no huge pages to be had"),
    }
}
