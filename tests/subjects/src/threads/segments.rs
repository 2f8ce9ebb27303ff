//! Base addresses of fs and gs.

use anyhow::Result;

use crate::kit::{Crew, Setting, Watch, same, sys, tid};

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
