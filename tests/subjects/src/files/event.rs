//! eventfd(2)

use anyhow::Result;
use libc::{EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE};

use crate::kit::files::{read, seen, write};
use crate::kit::{Setting, Watch, fd, same};

fn create(count: u64, flags: i32) -> Result<i32> {
    // SAFETY: takes numbers.
    let event = fd("eventfd", unsafe { libc::eventfd(0, flags) })?;
    if count > 0 {
        write(event, &count.to_ne_bytes())?;
    }
    Ok(event)
}

fn flags(event: i32) -> Result<(i32, i32)> {
    seen(event).map(|(description, descriptor, _)| (description, descriptor))
}

/// Zero, small, and as large as it can be.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let counts = [0, 3, u64::MAX - 1];
    let events = [
        create(counts[0], EFD_NONBLOCK)?,
        create(counts[1], 0)?,
        create(counts[2], EFD_NONBLOCK | EFD_CLOEXEC)?,
    ];
    let before = events.map(flags).into_iter().collect::<Result<Vec<_>>>()?;
    Ok(Watch::new(move || {
        same(
            "flags",
            &before,
            &events.map(flags).into_iter().collect::<Result<Vec<_>>>()?,
        )?;
        same("a zero", &true, &read(events[0], 8).is_err())?;
        same(
            "room for more",
            &true,
            &write(events[2], &1_u64.to_ne_bytes()).is_err(),
        )?;
        for at in [1, 2] {
            same(
                "a count",
                &counts[at].to_ne_bytes()[..],
                &read(events[at], 8)?,
            )?;
            write(events[at], &counts[at].to_ne_bytes())?;
        }
        Ok(())
    })
    .spoiled_by(move || write(events[1], &1_u64.to_ne_bytes())))
}

/// Each read takes one.
pub(crate) fn semaphore(_: &Setting) -> Result<Watch> {
    let event = create(3, EFD_SEMAPHORE | EFD_NONBLOCK)?;
    Ok(Watch::new(move || {
        for _ in 0..3 {
            same("one", &1_u64.to_ne_bytes()[..], &read(event, 8)?)?;
        }
        same("a fourth", &true, &read(event, 8).is_err())?;
        write(event, &3_u64.to_ne_bytes())
    })
    .spoiled_by(move || read(event, 8).map(drop)))
}
