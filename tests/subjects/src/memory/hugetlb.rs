//! Huge pages of hugetlbfs.

use std::fs;

use anyhow::Result;
use libc::{MAP_ANONYMOUS, MAP_HUGETLB, MAP_PRIVATE, PROT_READ, PROT_WRITE};

use crate::kit::{Area, Setting, Watch, not_here, procfs};

const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Two pages of 2 MiB.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let free: u64 = fs::read_to_string(POOL)
        .unwrap_or_default()
        .trim()
        .parse()
        .unwrap_or(0);
    if free < 4 && fs::write(POOL, "4").is_err() {
        return not_here("no pool of huge pages");
    }
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    let Ok(area) = Area::map(1024, PROT_READ | PROT_WRITE, flags, -1) else {
        return not_here("no huge pages to be had");
    };
    area.fill(24);
    Ok(Watch::keep(move || {
        let size = procfs::smaps_kb("self", area.page(0), "KernelPageSize")?;
        Ok((size, procfs::vm_flags(area.page(0))?))
    })?
    .and(Watch::new(move || area.check(24)).spoiled_by(move || {
        area.put(1, 1, 1);
        Ok(())
    })))
}
