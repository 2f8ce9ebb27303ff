//! What madvise(2) sets for good.

use anyhow::Result;
use libc::c_int;

use crate::kit::{Area, Kin, Setting, Watch, args, not_here, procfs, raw};

/// Four pages with advice between four without, as the kernel tells of them.
fn advised(advice: c_int, opposite: c_int) -> Result<(Area, Watch)> {
    let area = Area::anonymous(8)?;
    area.fill(26);
    let part = area.part(4, 4);
    let plain = procfs::vm_flags(part.page(0))?;
    if part.advise(advice).is_err() {
        return not_here("this kernel does not know the advice");
    }
    if plain == procfs::vm_flags(part.page(0))? {
        return not_here("the advice leaves no trace");
    }
    let flags = Watch::keep(move || {
        Ok((
            procfs::vm_flags(area.page(0))?,
            procfs::vm_flags(part.page(0))?,
        ))
    })?;
    let watch = flags
        .spoiled_by(move || part.advise(opposite))
        .and(Watch::new(move || area.check(26)));
    Ok((part, watch))
}

/// Children do not have it.
pub(crate) fn dontfork(setting: &Setting) -> Result<Watch> {
    let (part, watch) = advised(libc::MADV_DONTFORK, libc::MADV_DOFORK)?;
    let mut child = Kin::start(setting, "child", move |_| {
        Ok(Watch::new(move || {
            match procfs::smaps("self", part.page(0)) {
                Ok(record) => anyhow::bail!("the child has it: {}", record[0]),
                Err(_) => Ok(()),
            }
        }))
    })?;
    Ok(watch.and(Watch::new(move || child.check())))
}

/// Children have zeros there.
pub(crate) fn wipeonfork(setting: &Setting) -> Result<Watch> {
    let (part, watch) = advised(libc::MADV_WIPEONFORK, libc::MADV_KEEPONFORK)?;
    let mut child = Kin::start(setting, "child", move |_| {
        Ok(Watch::new(move || {
            (0..4).try_for_each(|page| part.check_zero(page))
        }))
    })?;
    Ok(watch.and(Watch::new(move || child.check())))
}

/// Not part of a core.
pub(crate) fn dontdump(_: &Setting) -> Result<Watch> {
    advised(libc::MADV_DONTDUMP, libc::MADV_DODUMP).map(|(_, watch)| watch)
}

/// Huge pages wanted.
pub(crate) fn hugepage(_: &Setting) -> Result<Watch> {
    advised(libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE).map(|(_, watch)| watch)
}

/// Huge pages not wanted.
pub(crate) fn nohugepage(_: &Setting) -> Result<Watch> {
    advised(libc::MADV_NOHUGEPAGE, libc::MADV_HUGEPAGE).map(|(_, watch)| watch)
}

/// Equal pages may be merged.
pub(crate) fn mergeable(_: &Setting) -> Result<Watch> {
    advised(libc::MADV_MERGEABLE, libc::MADV_UNMERGEABLE).map(|(_, watch)| watch)
}

/// All that is there and that is to come may be merged (PR_SET_MEMORY_MERGE), but for a part.
pub(crate) fn all_mergeable(_: &Setting) -> Result<Watch> {
    const PR_SET_MEMORY_MERGE: u64 = 67;
    let area = Area::anonymous(8)?;
    area.fill(26);
    let part = area.part(4, 4);
    let all = args([PR_SET_MEMORY_MERGE, 1]);
    if raw(libc::SYS_prctl, all) != 0 || part.advise(libc::MADV_UNMERGEABLE).is_err() {
        return not_here("PR_SET_MEMORY_MERGE");
    }
    let observe = move || {
        let later = Area::anonymous(1)?;
        let flags = [area.page(0), part.page(0), later.page(0)].map(procfs::vm_flags);
        later.unmap()?;
        flags.into_iter().collect::<Result<Vec<_>>>()
    };
    let watch = Watch::keep(observe)?.spoiled_by(move || part.advise(libc::MADV_MERGEABLE));
    Ok(watch.and(Watch::new(move || area.check(26))))
}

/// How a file is read ahead.
pub(crate) fn read_ahead(_: &Setting) -> Result<Watch> {
    let (_, sequential) = advised(libc::MADV_SEQUENTIAL, libc::MADV_NORMAL)?;
    let (_, random) = advised(libc::MADV_RANDOM, libc::MADV_NORMAL)?;
    Ok(sequential.and(random))
}
