//! Waiting for descriptors.

use std::time::{Duration, Instant};

use anyhow::Result;
use libc::{MAP_ANONYMOUS, MAP_PRIVATE, POLLIN, PROT_READ, PROT_WRITE, c_int};

use super::sleeping::spec;
use crate::kit::{
    Area, LONG_TERM, PAGE, Setting, TERM, Watch, args, blocked, fd, fork, raw, same, sys, timed,
    timed_long,
};

/// A pipe: its ends for reading and writing.
pub(super) fn pipe() -> Result<[c_int; 2]> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    fd("pipe", unsafe {
        libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC)
    })?;
    Ok(ends)
}

/// Writes one byte.
pub(super) fn push(to: c_int) -> Result<()> {
    // SAFETY: one byte of a static.
    sys("write", unsafe { libc::write(to, b"x".as_ptr().cast(), 1) }).map(drop)
}

/// Reads one byte.
pub(super) fn pull(from: c_int) -> i64 {
    let mut byte = 0_u8;
    raw(libc::SYS_read, args([from as u64, &raw mut byte as u64, 1]))
}

const HOUR_MS: u64 = 3_600_000;

/// One for the signal mask of ppoll and pselect: everything but SIGUSR1.
static MASK: u64 = !(1 << (libc::SIGUSR1 - 1));

/// poll of a quiet descriptor.
fn poll_once(read: i32, limit: Duration) -> i64 {
    let mut set = libc::pollfd {
        fd: read,
        events: POLLIN,
        revents: 0,
    };
    let time = limit.as_millis() as u64;
    raw(libc::SYS_poll, args([&raw mut set as u64, 1, time]))
}

/// poll
pub(crate) fn poll_timed(_: &Setting) -> Result<Watch> {
    let [read, _] = pipe()?;
    timed(libc::SYS_poll, move || poll_once(read, TERM), 0)
}

/// poll, stopped more than once.
pub(crate) fn poll_twice(_: &Setting) -> Result<Watch> {
    let [read, _] = pipe()?;
    timed_long(libc::SYS_poll, move || poll_once(read, LONG_TERM), 0)
}

/// ppoll, which cannot write what remains to where its time-out is.
pub(crate) fn ppoll_fixed(_: &Setting) -> Result<Watch> {
    let [read, _] = pipe()?;
    let area = Area::map(1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1)?;
    let at = area.page(0);
    let time = spec(TERM);
    // SAFETY: the page is ours, and stays.
    unsafe {
        std::ptr::copy_nonoverlapping(time.as_ptr(), at.cast(), time.len());
        sys("mprotect", libc::mprotect(at, PAGE, PROT_READ))?;
    }
    let at = at as u64;
    timed(
        libc::SYS_ppoll,
        move || {
            let mut set = libc::pollfd {
                fd: read,
                events: POLLIN,
                revents: 0,
            };
            raw(libc::SYS_ppoll, args([&raw mut set as u64, 1, at]))
        },
        0,
    )
}

/// ppoll
pub(crate) fn ppoll_timed(_: &Setting) -> Result<Watch> {
    let [read, _] = pipe()?;
    timed(
        libc::SYS_ppoll,
        move || {
            let mut set = libc::pollfd {
                fd: read,
                events: POLLIN,
                revents: 0,
            };
            let mut time = spec(TERM);
            raw(
                libc::SYS_ppoll,
                args([
                    &raw mut set as u64,
                    1,
                    time.as_mut_ptr() as u64,
                    &raw const MASK as u64,
                    8,
                ]),
            )
        },
        0,
    )
}

/// A set with one descriptor.
fn one(descriptor: c_int) -> [u64; 16] {
    let mut set = [0; 16];
    set[descriptor as usize / 64] = 1 << (descriptor % 64);
    set
}

/// select of a quiet descriptor.
fn select_once(read: c_int, limit: Duration) -> i64 {
    let mut set = one(read);
    let mut time = [limit.as_secs(), limit.subsec_micros().into()];
    let (set, time) = (set.as_mut_ptr() as u64, time.as_mut_ptr() as u64);
    raw(libc::SYS_select, args([read as u64 + 1, set, 0, 0, time]))
}

/// select
pub(crate) fn select_timed(_: &Setting) -> Result<Watch> {
    let [read, _] = pipe()?;
    timed(libc::SYS_select, move || select_once(read, TERM), 0)
}

/// select, stopped more than once.
pub(crate) fn select_twice(_: &Setting) -> Result<Watch> {
    let [read, _] = pipe()?;
    timed_long(libc::SYS_select, move || select_once(read, LONG_TERM), 0)
}

/// pselect
pub(crate) fn pselect_timed(_: &Setting) -> Result<Watch> {
    let [read, _] = pipe()?;
    timed(
        libc::SYS_pselect6,
        move || {
            let mut set = one(read);
            let mut time = spec(TERM);
            let mask = [&raw const MASK as u64, 8];
            raw(
                libc::SYS_pselect6,
                [
                    read as u64 + 1,
                    set.as_mut_ptr() as u64,
                    0,
                    0,
                    time.as_mut_ptr() as u64,
                    mask.as_ptr() as u64,
                ],
            )
        },
        0,
    )
}

/// An epoll that looks at a descriptor.
pub(super) fn epoll_of(descriptor: c_int) -> Result<c_int> {
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 7,
    };
    // SAFETY: the event is alive.
    unsafe {
        let epoll = fd("epoll_create", libc::epoll_create1(0))?;
        sys(
            "epoll_ctl",
            libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, descriptor, &raw mut event),
        )?;
        Ok(epoll)
    }
}

fn epoll_wait(epoll: c_int, time: u64) -> i64 {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    raw(
        libc::SYS_epoll_wait,
        args([epoll as u64, &raw mut event as u64, 1, time]),
    )
}

/// epoll_wait
pub(crate) fn epoll_timed(_: &Setting) -> Result<Watch> {
    let (epoll, time) = (epoll_of(pipe()?[0])?, TERM.as_millis() as u64);
    timed(libc::SYS_epoll_wait, move || epoll_wait(epoll, time), 0)
}

/// epoll_wait, stopped more than once.
pub(crate) fn epoll_twice(_: &Setting) -> Result<Watch> {
    let (epoll, time) = (epoll_of(pipe()?[0])?, LONG_TERM.as_millis() as u64);
    timed_long(libc::SYS_epoll_wait, move || epoll_wait(epoll, time), 0)
}

const FOREVER: u64 = u64::MAX;

/// poll without end
pub(crate) fn poll(_: &Setting) -> Result<Watch> {
    let [read, write] = pipe()?;
    blocked(
        libc::SYS_poll,
        move || {
            let mut set = libc::pollfd {
                fd: read,
                events: POLLIN,
                revents: 0,
            };
            let result = raw(libc::SYS_poll, args([&raw mut set as u64, 1, FOREVER]));
            result * 10 + i64::from(set.revents == POLLIN && pull(read) == 1)
        },
        11,
        move || push(write),
    )
}

/// select without end
pub(crate) fn select(_: &Setting) -> Result<Watch> {
    let [read, write] = pipe()?;
    blocked(
        libc::SYS_select,
        move || {
            let mut set = one(read);
            let result = raw(
                libc::SYS_select,
                args([read as u64 + 1, set.as_mut_ptr() as u64]),
            );
            result * 10 + i64::from(set == one(read) && pull(read) == 1)
        },
        11,
        move || push(write),
    )
}

/// epoll_wait without end
pub(crate) fn epoll(_: &Setting) -> Result<Watch> {
    let [read, write] = pipe()?;
    let epoll = epoll_of(read)?;
    blocked(
        libc::SYS_epoll_wait,
        move || epoll_wait(epoll, FOREVER) * 10 + i64::from(pull(read) == 1),
        11,
        move || push(write),
    )
}

/// epoll_wait of processes whose other threads have children that end all the time: what tells of that is ignored, and
/// wakes nobody.
pub(crate) fn epoll_wait_beside_ends(_: &Setting) -> Result<Watch> {
    epoll_wait_beside(|_| {
        // SAFETY: takes numbers.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
        loop {
            let pid = raw(libc::SYS_fork, args([]));
            if pid == 0 {
                raw(libc::SYS_exit_group, args([0]));
            }
            raw(libc::SYS_wait4, args([pid as u64, 0, 0, 0]));
            std::thread::sleep(Duration::from_micros(300));
        }
    })
}

/// The same, where the others wait for their children in vfork(2): each second one of these ends.
pub(crate) fn epoll_wait_beside_vforks(_: &Setting) -> Result<Watch> {
    epoll_wait_beside(|number| {
        let mut lasts = Duration::from_secs(number as u64 + 1);
        loop {
            let flags = (libc::CLONE_VFORK | libc::SIGCHLD) as u64;
            let pid = raw(libc::SYS_clone, args([flags]));
            if pid == 0 {
                wait_without_gaps(lasts);
                raw(libc::SYS_exit_group, args([0]));
            }
            raw(libc::SYS_wait4, args([pid as u64, 0, 0, 0]));
            lasts = Duration::from_secs(PROCESSES as u64);
        }
    })
}

/// Waits, and for long enough once more when nobody ran for a while: an end just after a restore is heard.
fn wait_without_gaps(mut left: Duration) {
    const STEP: Duration = Duration::from_millis(10);
    const GAP: Duration = Duration::from_millis(300);
    const LONG_ENOUGH: Duration = Duration::from_secs(5);
    while !left.is_zero() {
        let begun = Instant::now();
        std::thread::sleep(STEP);
        left = match begun.elapsed() > GAP {
            true => left.max(LONG_ENOUGH),
            false => left.saturating_sub(STEP),
        };
    }
}

/// How many wait.
const PROCESSES: usize = 4;

/// epoll_wait of processes in which other threads do what ends in no signal that they would hear.
fn epoll_wait_beside(others: fn(usize)) -> Result<Watch> {
    let mut waiting = Vec::new();
    for number in 0..PROCESSES {
        waiting.push(fork(move || {
            std::thread::spawn(move || others(number));
            // SAFETY: takes a number.
            let epoll = unsafe { libc::epoll_create1(0) };
            let mut event = [0_u64; 2];
            let at = event.as_mut_ptr() as u64;
            let result = raw(libc::SYS_epoll_wait, args([epoll as u64, at, 1, HOUR_MS]));
            std::process::exit(result.unsigned_abs() as i32)
        })?);
    }
    let first = waiting[0];
    Ok(Watch::new(move || {
        for pid in &waiting {
            let mut status = 0;
            // SAFETY: the kernel writes one int.
            let ended = unsafe { libc::waitpid(*pid, &raw mut status, libc::WNOHANG) };
            same(
                "an end, and what epoll_wait returned",
                &(0, 0),
                &(ended, status >> 8),
            )?;
        }
        Ok(())
    })
    .spoiled_by(move || {
        // SAFETY: takes numbers.
        sys("kill", unsafe { libc::kill(first, libc::SIGKILL) })?;
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }))
}
