//! The flag of RFLAGS that only shows whether there is CPUID. Programs may change it, and ptrace(2) leaves it alone.

use std::arch::asm;

use anyhow::Result;

use crate::kit::{Crew, Setting, Watch};

const ID: u64 = 1 << 21;

fn flags() -> u64 {
    let flags: u64;
    // SAFETY: reads the flags.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    flags
}

fn set_id(on: bool) {
    let flags = if on { flags() | ID } else { flags() & !ID };
    // SAFETY: nothing depends on this flag.
    unsafe { asm!("push {}", "popfq", in(reg) flags) };
}

/// One thread has it, the other has not.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let kept = |on: bool| {
        set_id(on);
        Ok(Watch::keep(|| Ok(flags() & ID))?.spoiled_by(move || {
            set_id(!on);
            Ok(())
        }))
    };
    let mut crew = Crew::default();
    crew.add(move || kept(true))?;
    crew.add(move || kept(false))?;
    Ok(crew.watch())
}
