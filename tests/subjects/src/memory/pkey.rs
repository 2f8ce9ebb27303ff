//! Protection keys.

use anyhow::{Result, bail};

use crate::kit::{Area, PAGE, Setting, Watch, not_here, procfs, same, sys};

/// Two keys with different rights, on two mappings; a third stays free.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    // SAFETY: pkey_alloc takes numbers only.
    let alloc = |rights: u32| unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, rights) };
    let (first, second) = (alloc(1), alloc(2));
    if first < 0 || second < 0 {
        return not_here("no protection keys");
    }
    let area = Area::anonymous(2)?;
    area.fill(28);
    for (page, key) in [(0, first), (1, second)] {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the page is ours.
        let done =
            unsafe { libc::syscall(libc::SYS_pkey_mprotect, area.page(page), PAGE, prot, key) };
        sys("pkey_mprotect", done)?;
    }
    let rights = rdpkru();
    let keys = Watch::keep(move || {
        Ok((
            procfs::smaps_kb("self", area.page(0), "ProtectionKey")?,
            procfs::smaps_kb("self", area.page(1), "ProtectionKey")?,
        ))
    })?;
    Ok(keys.and(Watch::new(move || {
        same("PKRU", &rights, &rdpkru())?;
        area.check_page(1, 28)?;
        // The keys in use are known as such: the next one is another. Its rights are what they are without it.
        let next = alloc(1);
        if next == first || next == second {
            bail!("key {next} is given twice");
        }
        // SAFETY: takes numbers only.
        sys("pkey_free", unsafe {
            libc::syscall(libc::SYS_pkey_free, next)
        })
        .map(drop)
    })))
}

fn rdpkru() -> u32 {
    let rights;
    // SAFETY: RDPKRU reads a register; protection keys are there.
    unsafe { std::arch::asm!("rdpkru", in("ecx") 0, out("eax") rights, out("edx") _) };
    rights
}
