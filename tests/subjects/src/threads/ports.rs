//! Ports of devices.

use anyhow::Result;
use libc::ENOSYS;

use crate::kit::{Setting, Watch, errno, not_here, sys};

/// Where boards show how far they have started: nothing comes of writing there.
const PORT: u16 = 0x80;

/// A thread that may use a port still may.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    // SAFETY: takes numbers.
    let done = unsafe { libc::ioperm(PORT.into(), 1, 1) };
    if done != 0 && errno() == ENOSYS {
        return not_here("ioperm(2)");
    }
    sys("ioperm", done)?;
    Ok(Watch::new(|| {
        // SAFETY: it writes to no memory; a thread that may not is killed.
        unsafe { std::arch::asm!("out dx, al", in("dx") PORT, in("al") 0_u8) };
        Ok(())
    })
    .spoiled_by(|| {
        // SAFETY: takes numbers.
        sys("ioperm", unsafe { libc::ioperm(PORT.into(), 1, 0) }).map(drop)
    }))
}
