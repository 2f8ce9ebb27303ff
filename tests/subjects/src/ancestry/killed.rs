//! Children that are killed as soon as anybody runs.

use anyhow::Result;
use libc::{MAP_ANONYMOUS, MAP_SHARED, PROT_READ, PROT_WRITE, SIGKILL};

use crate::kit::{Area, SOON, Setting, Watch, fork, same, until};

/// Children of one round.
const CHILDREN: usize = 20;
/// Between their birth and their end.
const LIFE_NS: i64 = 200_000_000;
/// Words of the page that both see: rounds done, rounds with an error.
const ROUNDS: usize = 0;
const ERRORS: usize = 1;

/// A child makes children and kills them, the last one first, at a time that is over after every stop: it does so while
/// the others are still to be let go.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let page = Area::map(1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1)?;
    fork(|| {
        loop {
            let done = round().unwrap_or(false);
            let place = if done { ROUNDS } else { ERRORS };
            page.put(0, place, page.get(0, place) + 1);
        }
    })?;
    let goes_on = move || {
        let before = page.get(0, ROUNDS);
        until("a round", SOON, || page.get(0, ROUNDS) > before)?;
        same("rounds with an error", &0, &page.get(0, ERRORS))
    };
    goes_on()?;
    Ok(Watch::new(goes_on).spoiled_by(move || {
        page.put(0, ERRORS, 1);
        Ok(())
    }))
}

/// Whether all children ended as they were told.
fn round() -> Result<bool> {
    let sleep = || {
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    };
    let children: Vec<i32> = (0..CHILDREN).map(|_| fork(sleep)).collect::<Result<_>>()?;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let clock = libc::CLOCK_MONOTONIC;
    // SAFETY: the kernel fills the structure, and reads it.
    unsafe {
        libc::clock_gettime(clock, &raw mut time);
        let then = time.tv_nsec + LIFE_NS;
        time.tv_sec += then / 1_000_000_000;
        time.tv_nsec = then % 1_000_000_000;
        libc::clock_nanosleep(
            clock,
            libc::TIMER_ABSTIME,
            &raw const time,
            std::ptr::null_mut(),
        );
    }
    for child in children.iter().rev() {
        // SAFETY: a child that nobody has waited for.
        unsafe { libc::kill(*child, SIGKILL) };
    }
    Ok(children.into_iter().all(|child| {
        let mut status = 0;
        // SAFETY: the kernel fills the status.
        let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
        ended == child && libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == SIGKILL
    }))
}
