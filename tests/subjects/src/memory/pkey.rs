//! Protection keys.

use anyhow::{Result, bail};

use crate::kit::{Area, Kin, PAGE, Setting, Watch, not_here, procfs, same, sys};

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
    give(&area, 0, first)?;
    give(&area, 1, second)?;
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
        free(next)
    })))
}

/// A page whose only key was freed, and a child that has freed the one that its parent has since: whoever asks for a
/// key is given the lowest that is free.
pub(crate) fn freed(setting: &Setting) -> Result<Watch> {
    let key = allocate();
    if key < 0 {
        return not_here("no protection keys");
    }
    let area = Area::anonymous(1)?;
    area.fill(29);
    give(&area, 0, key)?;
    free(key)?;
    same("the key that is free", &key, &allocate())?;
    let mut child = Kin::start(setting, "child", move |_| {
        free(key)?;
        let again = move || {
            same("the key that is free", &key, &allocate())?;
            free(key)
        };
        Ok(Watch::new(again))
    })?;
    let keys = Watch::keep(move || procfs::smaps_kb("self", area.page(0), "ProtectionKey"))?;
    Ok(keys.and(Watch::new(move || {
        area.check(29)?;
        free(key)?;
        same("the key that was not", &key, &allocate())?;
        child.check()
    })))
}

/// Gives a key to a page.
fn give(area: &Area, page: usize, key: i64) -> Result<()> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the page is ours.
    let done = unsafe { libc::syscall(libc::SYS_pkey_mprotect, area.page(page), PAGE, prot, key) };
    sys("pkey_mprotect", done).map(drop)
}

fn allocate() -> i64 {
    // SAFETY: takes numbers only.
    unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 0) }
}

fn free(key: i64) -> Result<()> {
    // SAFETY: takes numbers only.
    let freed = unsafe { libc::syscall(libc::SYS_pkey_free, key) };
    sys("pkey_free", freed).map(drop)
}

fn rdpkru() -> u32 {
    let rights;
    // SAFETY: RDPKRU reads a register; protection keys are there.
    unsafe { std::arch::asm!("rdpkru", in("ecx") 0, out("eax") rights, out("edx") _) };
    rights
}
