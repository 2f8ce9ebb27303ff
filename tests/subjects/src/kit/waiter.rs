//! Threads that wait in a system call.

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{SOON, Watch, sys, tid, until};

/// What [`raw`] returns where a call has changed registers that it was given: no error has this number.
const REGISTERS: i64 = -4095;

/// A system call without the C library: its result, or the negative error number. The program may count on the
/// registers that it gave its arguments in.
pub(crate) fn raw(number: i64, arguments: [u64; 6]) -> i64 {
    let [mut rdi, mut rsi, mut rdx, mut r10, mut r8, mut r9] = arguments;
    let result: i64;
    // SAFETY: the subjects pass what the call expects.
    unsafe {
        std::arch::asm!("syscall",
            inlateout("rax") number => result,
            inlateout("rdi") rdi, inlateout("rsi") rsi, inlateout("rdx") rdx,
            inlateout("r10") r10, inlateout("r8") r8, inlateout("r9") r9,
            lateout("rcx") _, lateout("r11") _);
    }
    if [rdi, rsi, rdx, r10, r8, r9] == arguments {
        result
    } else {
        REGISTERS
    }
}

/// The arguments of a call, the rest zeros.
pub(crate) fn args<const N: usize>(given: [u64; N]) -> [u64; 6] {
    std::array::from_fn(|place| given.get(place).copied().unwrap_or(0))
}

/// Takes a blocked signal of a mask if one waits: its number or the negative error, and the words of its siginfo_t.
pub(crate) fn take_signal(mask: u64) -> (i64, [u64; 16]) {
    let (none, mut info) = ([0_u64; 2], [0_u64; 16]);
    let arguments = [
        &raw const mask as u64,
        info.as_mut_ptr() as u64,
        none.as_ptr() as u64,
        8,
    ];
    let taken = raw(libc::SYS_rt_sigtimedwait, args(arguments));
    (taken, info)
}

/// Is the thread in this call, asleep?
pub(crate) fn waits(tid: i32, number: i64) -> bool {
    let text = fs::read_to_string(format!("/proc/self/task/{tid}/syscall")).unwrap_or_default();
    text.split(' ').next() == Some(&number.to_string())
}

/// Is the thread in this call, with this first argument, asleep?
pub(crate) fn waits_with(tid: i32, (number, first): (i64, u64)) -> bool {
    let text = fs::read_to_string(format!("/proc/self/task/{tid}/syscall")).unwrap_or_default();
    text.starts_with(&format!("{number} {first:#x} "))
}

/// One return of a call.
struct Return {
    result: i64,
    start: Instant,
    end: Instant,
}

/// Starts a thread that makes a call again and again, and waits until it waits in it.
fn start(
    number: i64,
    mut call: impl FnMut() -> i64 + Send + 'static,
) -> Result<(i32, Receiver<Return>)> {
    let (send_tid, its_tid) = channel();
    let (send, returns) = channel();
    std::thread::spawn(move || {
        let _ = send_tid.send(tid());
        loop {
            let start = Instant::now();
            let result = call();
            let end = Instant::now();
            if send.send(Return { result, start, end }).is_err() {
                return;
            }
        }
    });
    let tid = its_tid.recv_timeout(SOON)?;
    until("a thread waits in its call", SOON, || waits(tid, number))?;
    Ok((tid, returns))
}

/// A thread waits in a call without a time-out: it must still do so, and `wake` must make the
/// call return `expected`. Then it waits again.
pub(crate) fn blocked(
    number: i64,
    call: impl FnMut() -> i64 + Send + 'static,
    expected: i64,
    wake: impl FnMut() -> Result<()> + 'static,
) -> Result<Watch> {
    let (tid, returns) = start(number, call)?;
    let wake = Rc::new(RefCell::new(wake));
    let spoil = wake.clone();
    Ok(Watch::new(move || {
        match returns.try_recv() {
            Err(TryRecvError::Empty) => {}
            Ok(back) => bail!("call {number} returned {} by itself", back.result),
            Err(TryRecvError::Disconnected) => bail!("the thread has ended"),
        }
        // On a busy machine it may still be on its way back into the call.
        let again = || waits(tid, number) || waits(tid, libc::SYS_restart_syscall);
        let _ = until("the thread waits", BACK, again);
        wake.borrow_mut()()?;
        let back = returns.recv_timeout(SOON).context("it is not woken")?;
        if back.result != expected {
            bail!("call {number} returned {}, not {expected}", back.result);
        }
        until("the thread waits again", SOON, || waits(tid, number))
    })
    .spoiled_by(move || {
        spoil.borrow_mut()()?;
        sleep(Duration::from_millis(100));
        Ok(())
    }))
}

/// How long a thread that was stopped may take until it waits again.
const BACK: Duration = Duration::from_millis(300);

/// How long timed calls last.
pub(crate) const TERM: Duration = Duration::from_millis(1500);

/// How far into a call a subject is when it answers: a time-out started from zero is late by this.
const INSIDE: Duration = Duration::from_millis(800);

/// How much shorter a time-out of a socket may be by itself: it is counted in ticks of 4 ms from the last one, which
/// comes late on a virtual processor that has to wait for a real one.
const TICKS: Duration = Duration::from_millis(25);

/// How late a call may return on a busy machine.
const SLACK: Duration = Duration::from_millis(500);

/// How long everybody stands still at most where saving and restoring is a matter of one kernel.
const STILL: Duration = Duration::from_secs(3);

extern "C" fn nothing(_: i32) {}

/// Has SIGUSR1 end calls, and do nothing else.
pub(crate) fn hear() -> Result<()> {
    // SAFETY: zeros are a valid structure, the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        let done = libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
        sys("sigaction", done).map(drop)
    }
}

/// A thread waits in a call with a time-out of [`TERM`]: every call must return `expected` after
/// that time, neither earlier nor later than the time that everybody stood still explains.
pub(crate) fn timed(
    number: i64,
    call: impl FnMut() -> i64 + Send + 'static,
    expected: i64,
) -> Result<Watch> {
    let (mut calls, spoil) = Timed::start(number, call, expected, TERM)?;
    Ok(Watch::new(move || calls.finish()).spoiled_by(spoil))
}

/// How long calls last that are stopped more than once.
pub(crate) const LONG_TERM: Duration = Duration::from_secs(5);

/// As [`timed`] with a time-out of [`LONG_TERM`]: every second check leaves the call waiting, so that it is
/// stopped more than once.
pub(crate) fn timed_long(
    number: i64,
    call: impl FnMut() -> i64 + Send + 'static,
    expected: i64,
) -> Result<Watch> {
    let (mut calls, spoil) = Timed::start(number, call, expected, LONG_TERM)?;
    let mut finish = false;
    Ok(Watch::new(move || {
        finish = !finish;
        if finish {
            return calls.finish();
        }
        sleep(INSIDE / 2);
        let backs: Vec<Return> = calls.returns.try_iter().collect();
        backs.iter().try_for_each(|back| calls.judge(back))
    })
    .spoiled_by(spoil))
}

/// A thread in calls that last for a certain time.
struct Timed {
    number: i64,
    expected: i64,
    term: Duration,
    returns: Receiver<Return>,
    gaps: Gaps,
}

impl Timed {
    /// Starts it; the second is what makes a call return too early.
    fn start(
        number: i64,
        call: impl FnMut() -> i64 + Send + 'static,
        expected: i64,
        term: Duration,
    ) -> Result<(Self, impl FnMut() -> Result<()>)> {
        hear()?;
        let gaps = Gaps::watch();
        let (tid, returns) = start(number, call)?;
        sleep(INSIDE);
        let timed = Self {
            number,
            expected,
            term,
            returns,
            gaps,
        };
        Ok((timed, move || {
            // SAFETY: a signal with a handler, for a thread of ours.
            let done =
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGUSR1) };
            sys("tgkill", done).map(drop)
        }))
    }

    /// Waits until the call returns, and until the thread is well inside of the next one.
    fn finish(&mut self) -> Result<()> {
        let mut backs: Vec<Return> = self.returns.try_iter().collect();
        backs.push(
            self.returns
                .recv_timeout(self.term + SOON)
                .context("it does not return")?,
        );
        backs.iter().try_for_each(|back| self.judge(back))?;
        sleep(INSIDE);
        Ok(())
    }

    fn judge(&self, back: &Return) -> Result<()> {
        let (number, term) = (self.number, self.term);
        let lasted = back.end - back.start;
        let still = self.gaps.between(back.start, back.end);
        // Time goes on while everybody stands still: what ends then ends at once when they go on. When a machine
        // goes on, everything is slow for a while.
        let due = back.start + term;
        let late = match still < STILL {
            true => self.gaps.end(due) + self.gaps.between(self.gaps.end(due), back.end) + SLACK,
            false => due + still + SLACK,
        };
        if back.result != self.expected {
            bail!("call {number} returned {} after {lasted:?}", back.result);
        }
        if lasted + TICKS < term || back.end > late {
            bail!("call {number} lasted {lasted:?}, everybody stood still for {still:?} of it");
        }
        Ok(())
    }
}

/// When this process stood still, found by a thread that looks at the clock again and again: not more often than it has
/// to, since many of these are at work at once.
#[derive(Clone)]
pub(crate) struct Gaps(Arc<Mutex<Vec<(Instant, Instant)>>>);

impl Gaps {
    /// Starts looking.
    pub(crate) fn watch() -> Self {
        let gaps = Self(Arc::default());
        let seen = gaps.clone();
        std::thread::spawn(move || {
            let mut last = Instant::now();
            loop {
                sleep(Duration::from_millis(15));
                let now = Instant::now();
                if now - last > Duration::from_millis(25) {
                    seen.0
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((last, now));
                }
                last = now;
            }
        });
        gaps
    }

    /// When it last went on after it had stood still for so long.
    pub(crate) fn last(&self, least: Duration) -> Option<Instant> {
        let gaps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let long = |(from, to): &&(Instant, Instant)| *to - *from >= least;
        gaps.iter().rev().find(long).map(|(_, to)| *to)
    }

    /// When it went on if it stood still at this moment, else the moment itself.
    fn end(&self, at: Instant) -> Instant {
        let gaps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let around = gaps.iter().find(|(from, to)| (*from..*to).contains(&at));
        around.map_or(at, |(_, to)| *to)
    }

    /// How much of the time between two moments it stood still.
    pub(crate) fn between(&self, start: Instant, end: Instant) -> Duration {
        let gaps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gaps.iter()
            .map(|(from, to)| (*to).min(end).saturating_duration_since((*from).max(start)))
            .sum()
    }
}
