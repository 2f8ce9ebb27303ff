//! Base addresses of fs and gs.

use anyhow::Result;

use crate::kit::{Area, Crew, Setting, Watch, args, not_here, raw, same, sys, tid};

const ARCH_SET_GS: i32 = 0x1001;
const ARCH_GET_FS: i32 = 0x1003;
const ARCH_GET_GS: i32 = 0x1004;

fn base(what: i32) -> Result<u64> {
    let mut base = 0_u64;
    // SAFETY: the kernel writes one word.
    sys("arch_prctl", unsafe {
        libc::syscall(libc::SYS_arch_prctl, what, &raw mut base)
    })?;
    Ok(base)
}

/// Four threads, each with a gs base of its own; fs points to the thread's own data.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let mut crew = Crew::default();
    for number in 1..=4_u64 {
        crew.add(move || {
            let wanted = number << 20 | 0x10_0000_0000;
            let set = move |to: u64| {
                // SAFETY: nothing uses gs in these programs.
                sys("arch_prctl", unsafe {
                    libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, to)
                })
            };
            set(wanted)?;
            let (fs, me) = (base(ARCH_GET_FS)?, tid());
            Ok(Watch::new(move || {
                same("gs", &wanted, &base(ARCH_GET_GS)?)?;
                same("fs", &fs, &base(ARCH_GET_FS)?)?;
                same("the thread", &me, &tid())
            })
            .spoiled_by(move || set(0).map(drop)))
        })?;
    }
    Ok(crew.watch())
}

/// Writes a segment that begins at `base`: number, base, limit in pages, 32 bits wide.
fn segment(number: u32, base: u32) -> i64 {
    const WRITE: u64 = 0x11;
    const WIDE_AND_IN_PAGES: u32 = 0x51;
    let entry = [number, base, 0xf_ffff, WIDE_AND_IN_PAGES];
    let asked = args([WRITE, entry.as_ptr() as u64, 16]);
    raw(libc::SYS_modify_ldt, asked)
}

/// Those of the whole table, which has room for 8192, that are not empty.
fn entries() -> Result<Vec<(usize, u64)>> {
    let mut table = vec![0_u64; 8192];
    let asked = args([0, table.as_mut_ptr() as u64, 8 * table.len() as u64]);
    sys("modify_ldt", raw(libc::SYS_modify_ldt, asked))?;
    let numbered = table.into_iter().enumerate();
    Ok(numbered.filter(|(_, entry)| *entry != 0).collect())
}

/// Two segments with a gap before them; gs is one of them in this thread, the other in a second one. Another is the
/// last that there can be.
pub(crate) fn table(_: &Setting) -> Result<Watch> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
    let area = Area::map(2, libc::PROT_READ | libc::PROT_WRITE, flags, -1)?;
    let base = |page: usize| area.page(page) as u64 as u32;
    for page in 0..2 {
        area.put(page, 0, 0x5e6_0000 + page as u64);
        if segment(7 + page as u32, base(page)) < 0 {
            return not_here("this kernel has no local descriptor tables");
        }
    }
    sys("modify_ldt", segment(8191, 0x1234_5000))?;
    let build = move |page: usize| {
        let selector = (7 + page as u16) << 3 | 7;
        // SAFETY: nothing uses gs in these programs.
        unsafe { std::arch::asm!("mov gs, {0:x}", in(reg) selector) };
        let first = move || {
            let (now, word): (u16, u64);
            // SAFETY: reads a register.
            unsafe { std::arch::asm!("mov {0:x}, gs", out(reg) now) };
            same("the selector", &selector, &now)?;
            // SAFETY: the segment begins at a word of ours; without one this thread dies.
            unsafe { std::arch::asm!("mov {}, gs:[0]", out(reg) word) };
            same(
                "the first word of the segment",
                &(0x5e6_0000 + page as u64),
                &word,
            )
        };
        Watch::new(first)
    };
    let mut crew = Crew::default();
    crew.add(move || {
        Ok(build(1).spoiled_by(move || {
            // Its first word is another one now.
            area.put(1, 0, 0);
            Ok(())
        }))
    })?;
    Ok(crew.watch().and(build(0)).and(Watch::keep(entries)?))
}
