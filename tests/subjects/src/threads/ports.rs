//! Ports of devices.

use anyhow::Result;
use libc::ENOSYS;

use crate::kit::{Setting, Watch, errno, fork, not_here, same, sys};

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
        // A child may what its parent may.
        let child = fork(|| {
            // SAFETY: it writes to no memory; who may not is killed.
            unsafe { std::arch::asm!("out dx, al", in("dx") PORT, in("al") 0_u8) };
        })?;
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
        same(
            "how a child ends that writes there",
            &(child, 0),
            &(ended, status),
        )
    })
    .spoiled_by(|| {
        // SAFETY: takes numbers.
        sys("ioperm", unsafe { libc::ioperm(PORT.into(), 1, 0) }).map(drop)
    }))
}
