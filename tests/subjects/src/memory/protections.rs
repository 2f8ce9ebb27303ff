//! One mapping split by protections, as after relocation (RELRO) and around stacks.

use anyhow::{Result, bail};
use libc::{PROT_EXEC, PROT_NONE, PROT_READ, PROT_WRITE};

use crate::kit::{Area, Setting, Watch, procfs, same};

/// Pages and protection of each part.
const PARTS: [(usize, i32, &str); 5] = [
    (0, PROT_READ | PROT_WRITE, "rw-p"),
    (2, PROT_READ, "r--p"),
    (4, PROT_NONE, "---p"),
    (6, PROT_READ | PROT_EXEC, "r-xp"),
    (8, PROT_READ | PROT_WRITE, "rw-p"),
];

/// Every part must have its protection and its contents, readable or not.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let area = Area::anonymous(10)?;
    area.fill(3);
    for (first, prot, _) in PARTS {
        area.part(first, 2).protect(prot)?;
    }
    Ok(Watch::new(move || {
        for (first, prot, shown) in PARTS {
            let record = procfs::smaps("self", area.page(first))?;
            if !record[0].contains(shown) {
                bail!("page {first} is not {shown}: {}", record[0]);
            }
            same(
                "the end of a part",
                &Some((area.page(first) as u64, area.page(first + 2) as u64)),
                &procfs::range(&record[0]),
            )?;
            if prot == PROT_NONE {
                area.part(first, 2).protect(PROT_READ)?;
            }
        }
        area.check(3)?;
        area.part(4, 2).protect(PROT_NONE)
    })
    .spoiled_by(move || area.part(2, 2).protect(PROT_READ | PROT_WRITE)))
}
