//! Time-outs that are over, of threads that nobody has let run since.

use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::terminals;
use crate::kit::{Gaps, SOON, Setting, TERM, Watch, args, hear, not_here, raw, sys, tid};

/// So many wait for the processor that one keeps busy, each for long: most often some of them do when they are stopped.
const MANY: u32 = 120;

/// How long the processor is kept busy, and how long without a pause.
const BUSY: Duration = Duration::from_secs(5);
const BURST: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(5);

/// How late a call may return where its thread waits so long: less than its time-out.
const LATE: Duration = Duration::from_millis(800);

/// How much shorter a time-out may be by itself.
const TICKS: Duration = Duration::from_millis(25);

/// One return of a call.
struct Return {
    call: &'static str,
    result: i64,
    expected: i64,
    start: Instant,
    end: Instant,
}

/// A call that waits, and what it returns when its time is over.
type Wait = (&'static str, Box<dyn FnMut() -> i64 + Send>, i64);

fn wait(number: u32) -> Result<Wait> {
    Ok(match number % 8 {
        5..8 => {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_read_timeout(Some(TERM))?;
            let _held = theirs.into_raw_fd();
            let ours = ours.into_raw_fd() as u64;
            let receive = move || {
                let mut byte = 0_u8;
                let arguments = args([ours, &raw mut byte as u64, 1]);
                raw(libc::SYS_recvfrom, arguments)
            };
            ("recv", Box::new(receive), -i64::from(libc::EAGAIN))
        }
        1..5 => {
            // SAFETY: takes numbers.
            let epoll = sys("epoll_create1", unsafe { libc::epoll_create1(0) })?;
            let wait = move || {
                let mut event = [0_u64; 2];
                let limit = TERM.as_millis() as u64;
                let arguments = args([epoll as u64, event.as_mut_ptr() as u64, 1, limit]);
                raw(libc::SYS_epoll_wait, arguments)
            };
            ("epoll_wait", Box::new(wait), 0)
        }
        _ => {
            let [_master, slave] = terminals::pty(0, terminals::tenths(TERM))?;
            ("read", Box::new(move || terminals::read(slave)), 0)
        }
    })
}

/// The calling thread runs on the first processor that it may run on, only.
fn pin() -> Result<()> {
    // SAFETY: zeros are a valid set; it is alive in the calls; 0 is this thread.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of::<libc::cpu_set_t>();
        sys(
            "sched_getaffinity",
            libc::sched_getaffinity(0, size, &raw mut set),
        )?;
        let first = (0..libc::CPU_SETSIZE as usize).find(|cpu| libc::CPU_ISSET(*cpu, &set));
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(first.context("no processor")?, &mut one);
        sys(
            "sched_setaffinity",
            libc::sched_setaffinity(0, size, &raw const one),
        )
        .map(drop)
    }
}

/// The calling thread runs before all ordinary ones.
fn be_urgent() -> Result<()> {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure is alive; 0 is this thread.
    match unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &param) } {
        0 => Ok(()),
        _ => not_here("real-time scheduling is not allowed"),
    }
}

/// Waits again and again.
fn go_on((call, mut make, expected): Wait, returns: &Sender<Return>) {
    loop {
        let start = Instant::now();
        let result = make();
        let end = Instant::now();
        let back = Return {
            call,
            result,
            expected,
            start,
            end,
        };
        if returns.send(back).is_err() {
            return;
        }
    }
}

fn judge(back: &Return, gaps: &Gaps) -> Result<()> {
    let Return { call, result, .. } = back;
    let lasted = back.end - back.start;
    let still = gaps.between(back.start, back.end);
    if *result != back.expected {
        bail!("{call} returned {result} after {lasted:?}");
    }
    if lasted + TICKS < TERM || lasted > TERM + still + LATE {
        bail!("{call} lasted {lasted:?}, everybody stood still for {still:?} of it");
    }
    Ok(())
}

/// Threads that wait for a time, and then for a processor.
pub(crate) fn starved(_: &Setting) -> Result<Watch> {
    let gaps = Gaps::watch();
    let (send, returns) = channel();
    let (ready, tids) = channel();
    let (urgent, is_urgent) = channel();
    // The first thread is asked to stop first, so that nobody has to wait for it.
    spawn(move || {
        let begun = Instant::now();
        let _ = urgent.send(pin().and_then(|()| be_urgent()));
        while begun.elapsed() < BUSY {
            let begun = Instant::now();
            while begun.elapsed() < BURST {
                std::hint::spin_loop();
            }
            sleep(PAUSE);
        }
    });
    is_urgent.recv()??;
    for number in 0..MANY {
        let (wait, send, ready) = (wait(number)?, send.clone(), ready.clone());
        spawn(move || {
            let _ = ready.send(pin().map(|()| tid()));
            // They begin one after the other.
            sleep(TERM * number / MANY);
            go_on(wait, &send);
        });
    }
    let tids: Vec<i32> = tids.iter().take(MANY as usize).collect::<Result<_>>()?;
    hear()?;
    sleep(TERM + TERM / 2);
    Ok(Watch::new(move || {
        // Whoever was stopped in a call has returned from it by then.
        let until = Instant::now() + TERM * 2;
        while Instant::now() < until {
            if let Ok(back) = returns.recv_timeout(SOON.min(TERM)) {
                judge(&back, &gaps)?;
            }
        }
        Ok(())
    })
    .spoiled_by(move || {
        // SAFETY: a signal with a handler, for threads of ours.
        let signal = |tid: &i32| unsafe {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), *tid, libc::SIGUSR1)
        };
        tids.iter()
            .try_for_each(|tid| sys("tgkill", signal(tid)).map(drop))
    }))
}
