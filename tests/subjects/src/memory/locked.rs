//! Memory that is locked.

use anyhow::{Result, bail};
use libc::{MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};

use crate::kit::{Area, Kin, PAGE, Setting, Watch, fd, procfs, same, sys};

fn locked(area: Area, flags: u32) -> Result<()> {
    // SAFETY: the area is a mapping of ours.
    sys("mlock2", unsafe {
        libc::mlock2(area.page(0), area.pages() * PAGE, flags)
    })
    .map(drop)
}

/// The flag, the kernel's count and the contents.
fn watch(area: Area) -> Result<Watch> {
    Ok(Watch::keep(move || {
        let count = procfs::status("self", "VmLck")?;
        Ok((procfs::vm_flags(area.page(0))?, count))
    })?
    .spoiled_by(move || {
        // SAFETY: the area is a mapping of ours.
        sys("munlock", unsafe { libc::munlock(area.page(0), PAGE) }).map(drop)
    })
    .and(Watch::new(move || area.check_page(2, 25))))
}

/// mlock
pub(crate) fn mlock(_: &Setting) -> Result<Watch> {
    let area = Area::anonymous(16)?;
    locked(area, 0)?;
    area.fill_page(2, 25);
    watch(area)
}

/// Whether memory is locked as it is touched (`lf`, or a flag that the kernel has no name for).
fn is_on_fault(area: Area) -> Result<bool> {
    let record = procfs::smaps("self", area.page(0))?;
    let mut lines = record.iter();
    let flags = lines.find(|line| line.starts_with("VmFlags:"));
    let mut flags = flags.into_iter().flat_map(|line| line.split_whitespace());
    Ok(flags.any(|flag| ["lf", "??"].contains(&flag)))
}

/// Pages that were only read, and such as lie behind the end of a file: locked all the same, and not as they are
/// touched.
pub(crate) fn untouched(_: &Setting) -> Result<Watch> {
    let read = Area::map(8, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1)?;
    locked(read, 0)?;
    // SAFETY: the name is a C string; the descriptor is ours.
    let file = fd("memfd_create", unsafe {
        libc::memfd_create(c"short".as_ptr(), 0)
    })?;
    let prot = PROT_READ | PROT_WRITE;
    let short = Area::map(8, prot, MAP_SHARED, file)?;
    // SAFETY: a call on a descriptor of ours.
    sys("ftruncate", unsafe {
        libc::ftruncate(file, 3 * PAGE as i64)
    })?;
    // Not all of it can be brought in.
    if locked(short, 0).is_ok() {
        bail!("what lies behind the end of a file is locked without an error");
    }
    short.put(2, 0, 26);
    let flags = move || {
        let one = |area: Area| {
            Ok::<_, anyhow::Error>((procfs::vm_flags(area.page(0))?, is_on_fault(area)?))
        };
        Ok((one(read)?, one(short)?))
    };
    Ok(Watch::keep(flags)?
        .spoiled_by(move || {
            // SAFETY: the area is a mapping of ours.
            sys("munlock", unsafe { libc::munlock(read.page(0), PAGE) }).map(drop)
        })
        .and(Watch::new(move || {
            read.check_zero(1)?;
            same("what is in the file", &26, &short.get(2, 0))
        })))
}

/// Locked as it is touched: what was not touched is not there.
pub(crate) fn onfault(_: &Setting) -> Result<Watch> {
    let area = Area::anonymous(16)?;
    locked(area, libc::MLOCK_ONFAULT)?;
    area.fill_page(2, 25);
    Ok(watch(area)?.and(Watch::keep(move || {
        procfs::smaps_kb("self", area.page(0), "Rss")
    })?))
}

/// Locked in part when a child was forked, which has no locks, but two mappings as its parent has. Both have pages of
/// their own in common.
pub(crate) fn forked(setting: &Setting) -> Result<Watch> {
    let area = Area::anonymous(64)?;
    area.fill(27);
    locked(area.part(0, 32), 0)?;
    let lines = move || -> Result<Watch> {
        let line = move |page: usize| {
            Ok::<_, anyhow::Error>(procfs::smaps("self", area.page(page))?[0].clone())
        };
        let first = format!("{:x}-{:x} ", area.page(0) as u64, area.page(32) as u64);
        if !line(0)?.starts_with(&first) {
            bail!("it is not split: {}", line(0)?);
        }
        let kept = Watch::keep(move || Ok((line(0)?, line(32)?)))?;
        Ok(kept.and(Watch::new(move || area.check(27))))
    };
    let mut kin = Kin::start(setting, "child", |_| lines())?;
    Ok(lines()?
        .spoiled_by(move || area.part(0, 16).protect(libc::PROT_READ))
        .and(Watch::new(move || kin.check())))
}

/// Locked by who forked a child: the pages stay those of both, which a new lock would change.
pub(crate) fn shared(setting: &Setting) -> Result<Watch> {
    /// Of one page a lock may make a copy.
    const FEW_KB: u64 = 8;
    let area = Area::anonymous(64)?;
    area.fill(28);
    locked(area, 0)?;
    let own = move || {
        let own = procfs::smaps_kb("self", area.page(0), "Private_Dirty")?;
        Ok::<_, anyhow::Error>(own <= FEW_KB)
    };
    let mut kin = Kin::start(setting, "child", |_| Ok(Watch::new(move || area.check(28))))?;
    let lock = move || procfs::vm_flags(area.page(0));
    Ok(Watch::keep(move || Ok((own()?, lock()?)))?
        .spoiled_by(move || {
            area.fill(28);
            Ok(())
        })
        .and(Watch::new(move || same("pages are shared", &true, &own()?)))
        .and(Watch::new(move || kin.check())))
}

/// What is mapped later is locked as well.
pub(crate) fn future(_: &Setting) -> Result<Watch> {
    // SAFETY: mlockall takes flags only.
    sys("mlockall", unsafe { libc::mlockall(libc::MCL_FUTURE) })?;
    Ok(Watch::new(|| {
        let area = Area::anonymous(4)?;
        let flags = procfs::vm_flags(area.page(0))?;
        area.unmap()?;
        same(
            "a new mapping is locked",
            &true,
            &flags.contains(&"lo".to_owned()),
        )
    })
    .spoiled_by(|| {
        // SAFETY: munlockall takes nothing.
        sys("munlockall", unsafe { libc::munlockall() }).map(drop)
    }))
}
