//! Loops of events: they read the clock, through the vdso, and wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::spawn;
use std::time::{Duration, Instant};

use anyhow::Result;
use libc::timespec;

use super::polling::{epoll_of, pipe};
use crate::kit::{SOON, Setting, Watch, args, give_way, raw, same, until};

/// How long a thread reads the clock, and for how long it waits then.
const READS: Duration = Duration::from_micros(60);
const WAITS: Duration = Duration::from_millis(2);

/// What the loops have counted.
#[derive(Default)]
struct Counted {
    waits: AtomicU64,
    failed: AtomicU64,
}

/// Threads in such loops: one is stopped while it reads the clock, and comes to the wait before it is out of that.
pub(crate) fn busy(_: &Setting) -> Result<Watch> {
    let counted = Arc::new(Counted::default());
    for _ in 0..16 {
        let (epoll, counted) = (epoll_of(pipe()?[0])?, Arc::clone(&counted));
        spawn(move || {
            give_way();
            loop {
                let begun = Instant::now();
                while begun.elapsed() < READS {}
                if wait(epoll) != 0 {
                    counted.failed.fetch_add(1, Ordering::SeqCst);
                }
                counted.waits.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let spoiler = Arc::clone(&counted);
    Ok(Watch::new(move || {
        let before = counted.waits.load(Ordering::SeqCst);
        until("more waits", SOON, || {
            counted.waits.load(Ordering::SeqCst) > before + 100
        })?;
        same(
            "waits that failed",
            &0,
            &counted.failed.load(Ordering::SeqCst),
        )
    })
    .spoiled_by(move || {
        spoiler.failed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }))
}

/// epoll_pwait2, with nothing to happen.
fn wait(epoll: i32) -> i64 {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let time = timespec {
        tv_sec: 0,
        tv_nsec: i64::from(WAITS.subsec_nanos()),
    };
    let (event, time) = (&raw mut event as u64, &raw const time as u64);
    raw(
        libc::SYS_epoll_pwait2,
        args([epoll as u64, event, 1, time, 0, 8]),
    )
}
