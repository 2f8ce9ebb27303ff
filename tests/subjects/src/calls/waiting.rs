//! Waiting for children and completions.

use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::Result;

use crate::kit::{Setting, TERM, Watch, args, blocked, raw, sys, timed};

/// Not in the `libc` crate.
const IO_PGETEVENTS: i64 = 333;

/// The child that is waited for.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// A child that does nothing, made without the C library: there are other threads.
fn child() -> i64 {
    let child = raw(libc::SYS_clone, args([libc::SIGCHLD as u64]));
    if child == 0 {
        // What another thread looks at just now: this one would have it for ever.
        raw(libc::SYS_close_range, args([3, u64::from(u32::MAX)]));
        loop {
            raw(libc::SYS_pause, args([]));
        }
    }
    CHILD.store(child as i32, Ordering::SeqCst);
    child
}

fn end() -> Result<()> {
    // SAFETY: ends the child of ours.
    sys("kill", unsafe {
        libc::kill(CHILD.load(Ordering::SeqCst), libc::SIGKILL)
    })
    .map(drop)
}

/// wait4: the status tells the signal.
pub(crate) fn wait4(_: &Setting) -> Result<Watch> {
    blocked(
        libc::SYS_wait4,
        || {
            let (child, mut status) = (child(), 0_u32);
            let ended = raw(
                libc::SYS_wait4,
                args([child as u64, &raw mut status as u64]),
            );
            i64::from(ended == child) * 100 + i64::from(status)
        },
        109,
        end,
    )
}

/// waitid for any child.
pub(crate) fn waitid(_: &Setting) -> Result<Watch> {
    blocked(
        libc::SYS_waitid,
        || {
            let (child, mut info) = (child(), [0_i32; 32]);
            let at = info.as_mut_ptr() as u64;
            let result = raw(
                libc::SYS_waitid,
                args([libc::P_ALL as u64, 0, at, libc::WEXITED as u64]),
            );
            // si_pid and si_status of siginfo_t.
            result + i64::from(i64::from(info[4]) == child) * 100 + i64::from(info[6])
        },
        109,
        end,
    )
}

/// Completed requests, of which there are none.
pub(crate) fn timed_events(_: &Setting) -> Result<Watch> {
    let mut context = 0_u64;
    let made = raw(libc::SYS_io_setup, args([16, &raw mut context as u64]));
    sys("io_setup", made)?;
    timed(
        IO_PGETEVENTS,
        move || {
            let term = [TERM.as_secs(), TERM.subsec_nanos().into()];
            let mut event = [0_u64; 4];
            let (at, term) = (event.as_mut_ptr() as u64, term.as_ptr() as u64);
            raw(IO_PGETEVENTS, args([context, 1, 1, at, term, 0]))
        },
        0,
    )
}
