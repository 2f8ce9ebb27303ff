//! Pages that a family shares since fork(2).

use anyhow::{Context, Result, bail};
use libc::{MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE};

use crate::kit::{Area, Kin, PAGE, Setting, Watch, procfs};

/// 8 MiB.
const PAGES: usize = 2048;

/// Three children share all but a page that each has written. They must not come back with
/// copies of their own, and one that writes must not be seen by the others.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let area = Area::anonymous(PAGES)?;
    area.fill(15);
    let mut kin = Vec::new();
    for child in 1..=3 {
        kin.push(Kin::start(setting, &format!("child{child}"), move |_| {
            area.fill_page(child, 15 + child as u64);
            Ok(Watch::new(move || {
                area.check_page(child, 15 + child as u64)?;
                (4..PAGES).try_for_each(|page| area.check_page(page, 15))
            })
            .spoiled_by(move || {
                area.part(4, PAGES - 4).fill(15);
                Ok(())
            }))
        })?);
    }
    let kin = std::rc::Rc::new(std::cell::RefCell::new(kin));
    let other = kin.clone();
    Ok(Watch::new(move || {
        area.check(15)?;
        let mut kin = kin.borrow_mut();
        let mut sum = procfs::smaps_kb("self", area.page(0), "Pss")?;
        for child in kin.iter_mut() {
            child.check()?;
            let pid = child.pid.to_string();
            sum += procfs::smaps_kb(&pid, area.page(0), "Pss").context("a child")?;
        }
        let once = PAGES as u64 * 4;
        if sum > once + once / 8 {
            bail!("the family of four holds {sum} kB, not {once}");
        }
        Ok(())
    })
    .spoiled_by(move || other.borrow()[2].spoil()))
}

/// A child has one mapping where its parent has three others: it is one afterwards.
pub(crate) fn mapped_anew(setting: &Setting) -> Result<Watch> {
    let shared = Area::anonymous(PAGES)?;
    shared.fill(16);
    let place = Area::map(48, 0, MAP_PRIVATE | MAP_ANONYMOUS, -1)?;
    let fixed = |first: usize, pages: usize| {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        Area::map_at(
            place.page(first),
            pages,
            PROT_READ | PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    let child = Kin::start(setting, "child", move |_| {
        let own = fixed(1, 46)?;
        own.fill(17);
        let lines = move || procfs::smaps("self", own.page(0)).map(|record| record[0].clone());
        let whole = format!("{:x}-{:x} ", own.page(0) as u64, own.page(46) as u64);
        if !lines()?.starts_with(&whole) {
            bail!(
                "the kernel merges other mappings than thought: {}",
                lines()?
            );
        }
        let watch = Watch::keep(lines)?.and(Watch::new(move || {
            shared.check(16)?;
            own.check(17)
        }));
        Ok(watch.spoiled_by(move || own.part(20, 1).protect(PROT_READ)))
    })?;
    for (first, seed) in [(4, 18), (20, 19), (40, 20)] {
        fixed(first, 4)?.fill(seed);
    }
    let child = std::rc::Rc::new(std::cell::RefCell::new(child));
    let other = child.clone();
    Ok(Watch::new(move || {
        for (first, seed) in [(4, 18), (20, 19), (40, 20)] {
            place.part(first, 4).check(seed)?;
        }
        child.borrow_mut().check()
    })
    .spoiled_by(move || other.borrow().spoil()))
}

/// A child has whole what its parent has unmapped and protected in the middle since the fork, and can make it longer.
pub(crate) fn parent_changed(setting: &Setting) -> Result<Watch> {
    const SMALL: usize = 64;
    let [holed, guarded, private] = {
        let file = memfd(SMALL)?;
        let private = Area::map(SMALL, PROT_READ | PROT_WRITE, MAP_PRIVATE, file)?;
        crate::kit::files::close(file);
        [Area::anonymous(SMALL)?, Area::anonymous(SMALL)?, private]
    };
    let all = [holed, guarded, private];
    for area in &all {
        area.part(0, SMALL - 2).fill(18);
    }
    let lines = move || {
        let lines = procfs::maps()?.into_iter();
        let within = move |line: &String| {
            let (start, _) = procfs::range(line).unwrap_or_default();
            all.iter().any(|area| {
                let first = area.page(0) as u64;
                (first..first + (SMALL * PAGE) as u64).contains(&start)
            })
        };
        // Without inodes: memfds get others.
        let short = |line: String| line.split(' ').take(3).collect::<Vec<_>>().join(" ");
        anyhow::Ok(lines.filter(within).map(short).collect::<Vec<_>>())
    };
    let child = Kin::start(setting, "child", move |_| {
        let watch = Watch::keep(lines)?.and(Watch::new(move || {
            all.iter()
                .try_for_each(|area| area.part(0, SMALL - 2).check(18))
        }));
        Ok(watch.spoiled_by(move || all[0].part(9, 1).protect(PROT_READ)))
    })?;
    holed.part(20, 8).unmap()?;
    holed.part(40, 1).unmap()?;
    holed.part(0, 3).unmap()?;
    guarded.part(20, 8).protect(0)?;
    private.part(20, 8).unmap()?;
    let kept = Watch::keep(lines)?;
    let child = std::rc::Rc::new(std::cell::RefCell::new(child));
    let other = child.clone();
    Ok(kept
        .and(Watch::new(move || child.borrow_mut().check()))
        .spoiled_by(move || other.borrow().spoil()))
}

/// A child has whole what its parent has replaced in the middle since the fork: by memory that was never written, by
/// such as reserves nothing, by a file, and by memory of its own; and what has other protections and policies there.
pub(crate) fn parent_replaced(setting: &Setting) -> Result<Watch> {
    const PAGES: usize = 64;
    let writable = PROT_READ | PROT_WRITE;
    let spare = MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let reserved = Area::map(PAGES, writable, spare, -1)?;
    let all = [Area::anonymous(PAGES)?, reserved, Area::anonymous(PAGES)?];
    for area in &all {
        area.part(0, 40).fill(21);
    }
    let lines = move || {
        let within = |line: &String| {
            let (start, _) = procfs::range(line).unwrap_or_default();
            all.iter().any(|area| {
                let first = area.page(0) as u64;
                (first..first + (PAGES * PAGE) as u64).contains(&start)
            })
        };
        let short = |line: String| line.split(' ').take(3).collect::<Vec<_>>().join(" ");
        let lines = procfs::maps()?.into_iter();
        anyhow::Ok(lines.filter(within).map(short).collect::<Vec<_>>())
    };
    let child = Kin::start(setting, "child", move |_| {
        let watch = Watch::keep(lines)?.and(Watch::new(move || {
            all.iter().try_for_each(|area| area.part(0, 40).check(21))
        }));
        Ok(watch.spoiled_by(move || all[0].part(9, 1).protect(PROT_READ)))
    })?;
    let [replaced, reserved, told] = all;
    let anonymous = MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let over = |first, pages, prot, flags, fd| {
        Area::map_at(
            replaced.page(first),
            pages,
            prot,
            flags | libc::MAP_FIXED,
            fd,
            0,
        )
    };
    over(8, 4, PROT_READ, anonymous, -1)?;
    let spare = over(16, 4, writable, spare, -1)?;
    spare.fill(22);
    let file = memfd(4)?;
    let mapped = over(24, 4, writable, libc::MAP_SHARED, file)?;
    crate::kit::files::close(file);
    mapped.fill(23);
    reserved.part(44, 4).protect(PROT_READ | libc::PROT_EXEC)?;
    super::numa::interleave(told.page(44), 4 * PAGE)?;
    let kept = Watch::keep(lines)?;
    let child = std::rc::Rc::new(std::cell::RefCell::new(child));
    let other = child.clone();
    Ok(kept
        .and(Watch::new(move || {
            replaced.part(0, 8).check(21)?;
            spare.check(22)?;
            mapped.check(23)?;
            child.borrow_mut().check()
        }))
        .spoiled_by(move || other.borrow().spoil()))
}

/// A child has two mappings each, because its parent has locked a half of each: of memory without pages, and of shared
/// memory, in which nothing may change for that.
pub(crate) fn parent_locked(setting: &Setting) -> Result<Watch> {
    const MLOCK_ONFAULT: u64 = 1;
    let common = Area::anonymous(64)?;
    common.fill(24);
    let empty = Area::anonymous(16)?;
    empty.advise(libc::MADV_NOHUGEPAGE)?;
    let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let shared = Area::map(16, PROT_READ | PROT_WRITE, shared, -1)?;
    shared.fill(25);
    shared.put(8, 0, u64::MAX);
    let areas = [empty, shared];
    for area in areas {
        let half = [area.page(8) as u64, 8 * PAGE as u64, MLOCK_ONFAULT];
        let locked = crate::kit::raw(libc::SYS_mlock2, crate::kit::args(half));
        crate::kit::sys("mlock2", locked)?;
    }
    let child = Kin::start(setting, "child", move |_| {
        let line = |at| procfs::smaps("self", at).map(|record| record[0].clone());
        let lines = move || {
            let short = |line: String| line.split(' ').next().unwrap_or_default().to_owned();
            let places = areas.iter().flat_map(|area| [area.page(0), area.page(8)]);
            places
                .map(|at| line(at).map(short))
                .collect::<Result<Vec<_>>>()
        };
        let watch = Watch::keep(lines)?.and(Watch::new(move || {
            common.check(24)?;
            shared.part(0, 8).check(25)?;
            crate::kit::same("the first word", &u64::MAX, &shared.get(8, 0))
        }));
        Ok(watch.spoiled_by(move || empty.part(3, 1).protect(PROT_READ)))
    })?;
    let child = std::rc::Rc::new(std::cell::RefCell::new(child));
    let other = child.clone();
    Ok(Watch::new(move || child.borrow_mut().check()).spoiled_by(move || other.borrow().spoil()))
}

/// Memory with a descriptor.
fn memfd(pages: usize) -> Result<i32> {
    // SAFETY: the name is a C string.
    let file = unsafe { libc::memfd_create(c"private".as_ptr(), 0) };
    crate::kit::fd("memfd_create", file)?;
    // SAFETY: a call on a descriptor of ours.
    crate::kit::sys("ftruncate", unsafe {
        libc::ftruncate(file, (pages * PAGE) as i64)
    })?;
    Ok(file)
}
