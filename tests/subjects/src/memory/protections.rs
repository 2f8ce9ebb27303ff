//! One mapping split by protections, as after relocation (RELRO) and around stacks.

use anyhow::{Result, bail};
use libc::{PROT_EXEC, PROT_NONE, PROT_READ, PROT_WRITE};

use crate::kit::{Area, SOON, Setting, Watch, fork, not_here, procfs, same, until};

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

/// PR_SET_MDWE (prctl(2)): what is not executable cannot become so.
pub(crate) fn deny_write_exec(_: &Setting) -> Result<Watch> {
    const PR_SET_MDWE: i32 = 65;
    const PR_GET_MDWE: i32 = 66;
    let area = Area::anonymous(2)?;
    area.fill(3);
    // SAFETY: takes numbers.
    if unsafe { libc::prctl(PR_SET_MDWE, 1, 0, 0, 0) } != 0 {
        return not_here("this kernel has no PR_SET_MDWE");
    }
    // With this, nothing can be mapped any more that can be read and written.
    const READ_IMPLIES_EXEC: u64 = 0x40_0000;
    let child = fork(|| {
        // SAFETY: take numbers.
        unsafe {
            libc::personality(READ_IMPLIES_EXEC);
            loop {
                libc::pause();
            }
        }
    })?;
    let seen = move || -> Result<String> {
        Ok(std::fs::read_to_string(format!(
            "/proc/{child}/personality"
        ))?)
    };
    until("the child's personality", SOON, || {
        seen().is_ok_and(|text: String| text.trim() == "00400000")
    })?;
    let kept = Watch::keep(move || Ok((seen()?, procfs::status(&child.to_string(), "VmSize")?)))?;
    Ok(kept.and(
        Watch::new(move || {
            // SAFETY: takes numbers.
            same("the setting", &1, &unsafe {
                libc::prctl(PR_GET_MDWE, 0, 0, 0, 0)
            })?;
            let made = area.part(1, 1).protect(libc::PROT_READ | libc::PROT_EXEC);
            same("whether it becomes executable", &false, &made.is_ok())?;
            area.check(3)
        })
        .spoiled_by(move || {
            // It cannot be taken back, so the contents are broken.
            area.put(0, 0, 1);
            Ok(())
        }),
    ))
}
