//! System V shared memory.

use anyhow::Result;
use libc::{IPC_CREAT, IPC_PRIVATE, IPC_RMID, IPC_STAT, SHM_RDONLY};

use crate::kit::procfs::maps;
use crate::kit::{Area, PAGE, Setting, Watch, same, sys};

const PAGES: usize = 8;

fn create(key: i32) -> Result<i32> {
    // SAFETY: shmget takes numbers only.
    unsafe {
        // One that an earlier run has left.
        let old = libc::shmget(key, 0, 0);
        if key != IPC_PRIVATE && old != -1 {
            libc::shmctl(old, IPC_RMID, std::ptr::null_mut());
        }
        let id = libc::shmget(key, PAGES * PAGE, IPC_CREAT | 0o640);
        sys("shmget", id)?;
        Ok(id)
    }
}

fn attach(id: i32, flags: i32) -> Result<Area> {
    // SAFETY: an address of the kernel's choice.
    let at = unsafe { libc::shmat(id, std::ptr::null(), flags) };
    sys("shmat", at as i64)?;
    Ok(Area::at(at, PAGES))
}

/// Key, size, mode, creator, attachments. Nobody can set the change time: another kernel's is that of the upgrade.
fn stat(id: i32) -> Result<(i32, usize, u32, i32, u64)> {
    let mut stat = std::mem::MaybeUninit::<libc::shmid_ds>::zeroed();
    // SAFETY: the kernel fills the structure; zeros are a valid one as well.
    let stat = unsafe {
        sys("shmctl", libc::shmctl(id, IPC_STAT, stat.as_mut_ptr()))?;
        stat.assume_init()
    };
    let perm = stat.shm_perm;
    Ok((
        perm.__key,
        stat.shm_segsz,
        u32::from(perm.mode),
        stat.shm_cpid,
        stat.shm_nattch,
    ))
}

/// Who attached or detached it last, and when it was attached last.
fn times(id: i32) -> Result<(i32, i64)> {
    let mut stat = std::mem::MaybeUninit::<libc::shmid_ds>::zeroed();
    // SAFETY: the kernel fills the structure; zeros are a valid one as well.
    let found = unsafe {
        sys("shmctl", libc::shmctl(id, IPC_STAT, stat.as_mut_ptr()))?;
        stat.assume_init()
    };
    Ok((found.shm_lpid, found.shm_atime))
}

/// Attached twice, once read-only.
pub(crate) fn attached(_: &Setting) -> Result<Watch> {
    let id = create(0x6b75_0001)?;
    let (area, view) = (attach(id, 0)?, attach(id, SHM_RDONLY)?);
    area.fill(18);
    let mut round = 18;
    let state = Watch::keep(move || stat(id))?.spoiled_by(move || attach(id, 0).map(drop));
    Ok(state.and(Watch::new(move || {
        area.check(round)?;
        round += 1;
        area.fill(round);
        view.check(round)?;
        // It can be attached again by its key, as the same memory.
        let third = attach(create_existing(0x6b75_0001)?, 0)?;
        let result = third.check(round);
        // SAFETY: the attachment made above; nobody uses it afterwards.
        sys("shmdt", unsafe { libc::shmdt(third.page(0)) })?;
        result
    })))
}

fn create_existing(key: i32) -> Result<i32> {
    // SAFETY: shmget takes numbers only.
    let id = unsafe { libc::shmget(key, 0, 0) };
    sys("shmget by key", id)?;
    Ok(id)
}

/// The segment lives without anybody.
pub(crate) fn unattached(_: &Setting) -> Result<Watch> {
    let id = create(0x6b75_0002)?;
    let area = attach(id, 0)?;
    area.fill(20);
    // SAFETY: the attachment made above; nobody uses it afterwards.
    sys("shmdt", unsafe { libc::shmdt(area.page(0)) })?;
    let state = Watch::keep(move || stat(id))?.spoiled_by(move || attach(id, 0).map(drop));
    Ok(state.and(Watch::new(move || {
        same("the identifier", &id, &create_existing(0x6b75_0002)?)?;
        let me = std::process::id().cast_signed();
        same("who detached it last", &me, &times(id)?.0)?;
        let area = attach(id, 0)?;
        let result = area.check(20);
        // SAFETY: the attachment made above; nobody uses it afterwards.
        sys("shmdt", unsafe { libc::shmdt(area.page(0)) })?;
        result
    })))
}

/// Nobody has attached it yet, and nobody is told to have.
pub(crate) fn unused(_: &Setting) -> Result<Watch> {
    let id = create(IPC_PRIVATE)?;
    let observe = move || Ok((times(id)?, stat(id)?));
    Ok(Watch::keep(observe)?.spoiled_by(move || attach(id, 0).map(drop)))
}

/// Marked for removal, alive because a family has it attached.
pub(crate) fn removed(_: &Setting) -> Result<Watch> {
    let id = create(IPC_PRIVATE)?;
    let (area, view) = (attach(id, 0)?, attach(id, 0)?);
    area.fill(21);
    // SAFETY: removal takes no structure.
    sys("removal", unsafe {
        libc::shmctl(id, IPC_RMID, std::ptr::null_mut())
    })?;
    let mut round = 21;
    let state = Watch::keep(move || stat(id))?.spoiled_by(move || {
        // SAFETY: nobody uses the second attachment afterwards.
        sys("shmdt", unsafe { libc::shmdt(view.page(0)) }).map(drop)
    });
    Ok(state.and(Watch::new(move || {
        area.check(round)?;
        round += 1;
        area.fill(round);
        view.check(round)
    })))
}

/// Attached three times: without its first page, without its last, without one in the middle.
pub(crate) fn parts(_: &Setting) -> Result<Watch> {
    let id = create(IPC_PRIVATE)?;
    let whole = attach(id, 0)?;
    whole.fill(22);
    let holes = [0, PAGES - 1, 3];
    let views = holes.map(|_| attach(id, 0));
    let [first, last, middle] = views;
    let views = [first?, last?, middle?];
    for (view, hole) in views.iter().zip(holes) {
        view.part(hole, 1).unmap()?;
    }
    let observe = move || {
        let lines = maps()?.into_iter();
        let lines = lines.filter(|line| line.contains("/SYSV00000000"));
        Ok((stat(id)?, lines.collect::<Vec<_>>()))
    };
    let again = views[2].part(4, 1);
    let kept = Watch::keep(observe)?.spoiled_by(move || again.unmap());
    let mut round = 22;
    Ok(kept.and(Watch::new(move || {
        for (view, hole) in views.iter().zip(holes) {
            (0..PAGES)
                .filter(|page| *page != hole)
                .try_for_each(|page| view.check_page(page, round))?;
        }
        round += 1;
        whole.fill(round);
        Ok(())
    })))
}

/// Attached as three mappings of one kind, which were different for a while, and one that is longer than the segment.
pub(crate) fn split(_: &Setting) -> Result<Watch> {
    let id = create(IPC_PRIVATE)?;
    let whole = attach(id, 0)?;
    whole.fill(31);
    let middle = whole.part(3, 2);
    middle.protect(libc::PROT_READ)?;
    middle.protect(libc::PROT_READ | libc::PROT_WRITE)?;
    let long = attach(id, 0)?;
    let (old, new) = (PAGES * PAGE, (PAGES + 4) * PAGE);
    // SAFETY: a mapping of ours that nobody else has the address of.
    let long = unsafe { libc::mremap(long.page(0), old, new, libc::MREMAP_MAYMOVE) };
    sys("mremap", long as i64)?;
    let long = Area::at(long, PAGES + 4);
    // Of one that is longer only what lies behind the end is left.
    let behind = attach(id, 0)?;
    // SAFETY: as above.
    let behind = unsafe { libc::mremap(behind.page(0), old, new, libc::MREMAP_MAYMOVE) };
    sys("mremap", behind as i64)?;
    Area::at(behind, PAGES + 4).part(0, PAGES + 1).unmap()?;
    let observe = move || {
        let lines = maps()?.into_iter();
        let lines = lines.filter(|line| line.contains("/SYSV00000000"));
        Ok((stat(id)?, lines.collect::<Vec<_>>()))
    };
    let kept = Watch::keep(observe)?.spoiled_by(move || middle.unmap());
    let mut round = 31;
    Ok(kept.and(Watch::new(move || {
        for page in 0..PAGES {
            long.check_page(page, round)?;
        }
        round += 1;
        whole.fill(round);
        Ok(())
    })))
}

/// Marked for removal, twice, each time with a successor that has its key.
pub(crate) fn succeeded(_: &Setting) -> Result<Watch> {
    const KEY: i32 = 0x6b75_0003;
    let mut areas = Vec::new();
    for round in 41..44 {
        // It removes the one before, which is attached.
        let id = create(KEY)?;
        let area = attach(id, 0)?;
        area.fill(round);
        areas.push((id, area, round));
    }
    let ids: Vec<i32> = areas.iter().map(|(id, ..)| *id).collect();
    let last = areas[2].0;
    let observe = move || {
        let lines = maps()?.into_iter().filter(|line| line.contains("/SYSV"));
        // The name has the key that it was made with, unless on one kernel another one has that.
        let lines = lines.map(|line| line.split("/SYSV").next().map(str::to_owned));
        let stats = ids.iter().map(|id| stat(*id)).collect::<Result<Vec<_>>>()?;
        Ok((stats, lines.collect::<Vec<_>>(), create_existing(KEY)?))
    };
    let kept = Watch::keep(observe)?.spoiled_by(move || attach(last, 0).map(drop));
    Ok(kept.and(Watch::new(move || {
        for (_, area, round) in &mut areas {
            area.check(*round)?;
            *round += 3;
            area.fill(*round);
        }
        Ok(())
    })))
}
