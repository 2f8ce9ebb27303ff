//! Rings from which a thread of the kernel's takes entries (`IORING_SETUP_SQPOLL`).

use std::os::fd::IntoRawFd;

use anyhow::{Result, ensure};

use super::ring::{Entry, READ, Ring};
use crate::kit::{SOON, Setting, Watch, args, files, raw, same, until};

const SQPOLL: u32 = 1 << 1;
/// `IORING_ENTER_SQ_WAKEUP`
const WAKEUP: u64 = 1 << 1;

/// Has the kernel's thread look.
fn wake(ring: Ring, count: u64) -> Result<()> {
    let args = args([ring.fd as u64, count, 0, WAKEUP]);
    let done = raw(libc::SYS_io_uring_enter, args);
    ensure!(done == count as i64, "io_uring_enter: {done}");
    Ok(())
}

/// A read waits; entries are taken without a call as long as the thread does not sleep. `idle` is in milliseconds.
fn polled(idle: u32) -> Result<Watch> {
    let ring = Ring::with(8, 16, SQPOLL, idle)?;
    let (from, to) = nix::unistd::pipe()?;
    let (from, to) = (from.into_raw_fd(), to.into_raw_fd());
    let room = Box::leak(Box::new([0_u8; 8]));
    let at = room.as_mut_ptr() as u64;
    let ask = move || {
        ring.add(Entry {
            opcode: READ,
            fd: from,
            address: at,
            len: 8,
            data: 1,
            ..Entry::default()
        });
        wake(ring, 1)
    };
    let mut count = 1;
    ask()?;
    until("it is taken", SOON, || ring.counts().0 == count)?;
    Ok(Watch::new(move || {
        ring.expect_none()?;
        same("taken", &count, &ring.counts().0)?;
        files::write(to, b"text")?;
        same("a read", &vec![(1, 4)], &ring.wait(1)?)?;
        same("what", &b"text"[..], &room[..4])?;
        for data in 10..30 {
            ring.nop(data);
            wake(ring, 1)?;
            same("a completion", &vec![(data, 0)], &ring.wait(1)?)?;
        }
        // It is awake by now.
        ring.nop(30);
        until("taken by itself", SOON, || {
            ring.counts().0 == count + 21 || ring.needs_wakeup()
        })?;
        if ring.needs_wakeup() {
            wake(ring, 1)?;
        }
        same("by itself", &vec![(30, 0)], &ring.wait(1)?)?;
        ask()?;
        count += 22;
        until("it is taken", SOON, || ring.counts().0 == count)
    })
    .spoiled_by(move || {
        files::write(to, b"text")?;
        ring.wait(1).map(drop)
    }))
}

/// Its thread sleeps soon.
pub(crate) fn asleep(_: &Setting) -> Result<Watch> {
    polled(5)
}

/// Its thread never sleeps for long.
pub(crate) fn awake(_: &Setting) -> Result<Watch> {
    polled(20_000)
}
