//! Clocks of processor time, as programs read them: through the vdso.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::clocks::{now as by_call, through_vdso};
use crate::kit::{Crew, Kin, SOON, Setting, Watch, give_way, same, tid, until};
use crate::threads::seccomp::{answer, install};

unsafe extern "C" {
    /// clock(3), which is not in libc.
    fn clock() -> libc::clock_t;
}

const PROCESS: i32 = libc::CLOCK_PROCESS_CPUTIME_ID;
const THREAD: i32 = libc::CLOCK_THREAD_CPUTIME_ID;

/// Works for so much processor time.
pub(super) fn burn(time: Duration) {
    let begun = by_call(THREAD);
    while by_call(THREAD) - begun < time.as_nanos() as u64 {
        std::hint::spin_loop();
    }
}

/// Clocks by which a thread knows its own time, and that of its process.
fn clocks() -> [i32; 6] {
    // MAKE_PROCESS_CPUCLOCK, MAKE_THREAD_CPUCLOCK (kernel/time/posix-cpu-timers.c), of others and of oneself.
    let pid = std::process::id() as i32;
    [THREAD, PROCESS, !tid() << 3 | 6, !pid << 3 | 2, -2, -6]
}

/// What a clock showed last, and when: it never goes back, and on by what may have been worked.
struct Clock {
    id: i32,
    threads: u64,
    last: u64,
    at: Instant,
}

impl Clock {
    fn new(id: i32, threads: u64) -> Self {
        Self {
            id,
            threads,
            last: through_vdso(id),
            at: Instant::now(),
        }
    }

    fn check(&mut self) -> Result<()> {
        /// Parts of time that a clock may gain by being carried, and what a slow machine does in between.
        const SLACK: u64 = 200_000_000;
        let time = through_vdso(self.id);
        let passed = self.at.elapsed().as_nanos() as u64;
        let gone = time.checked_sub(self.last);
        let Some(gone) = gone else {
            bail!("clock {} went back from {} to {time}", self.id, self.last);
        };
        if gone > passed * self.threads + SLACK {
            bail!("clock {} went on by {gone} ns within {passed} ns", self.id);
        }
        (self.last, self.at) = (time, Instant::now());
        Ok(())
    }

    /// It goes on as the kernel's does.
    fn runs(&mut self) -> Result<()> {
        let id = self.id;
        let read = || (by_call(id), through_vdso(id), by_call(id));
        let (first, second) = (read(), {
            burn(Duration::from_millis(15));
            read()
        });
        let gone = second.1.saturating_sub(first.1);
        if gone < second.0.saturating_sub(first.2) || gone > second.2 - first.0 {
            bail!("clock {id}: {first:?} became {second:?}");
        }
        self.check()
    }
}

/// A clock of somebody who was not there before.
fn is_new(id: i32) -> Result<()> {
    let (first, seen, last) = (by_call(id), through_vdso(id), by_call(id));
    if !(first..=last).contains(&seen) {
        bail!("a new clock {id} shows {seen}, not {first} to {last}");
    }
    Ok(())
}

/// Of a process and its threads, by all names they have.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let mut crew = Crew::default();
    for number in 1..4 {
        crew.add(move || {
            burn(Duration::from_millis(100 * number));
            let mut own: Vec<Clock> = clocks().map(|id| Clock::new(id, 8)).into();
            Ok(Watch::new(move || {
                own.iter_mut().try_for_each(Clock::check)?;
                own.iter_mut().try_for_each(Clock::runs)
            }))
        })?;
    }
    burn(Duration::from_millis(250));
    let mut own: Vec<Clock> = clocks().map(|id| Clock::new(id, 8)).into();
    let mut by_clock = 0;
    let others = Watch::new(move || {
        for clock in &mut own {
            clock.check()?;
            clock.runs()?;
        }
        // SAFETY: takes nothing.
        let clock = unsafe { clock() };
        if clock < by_clock {
            bail!("clock(3) went back from {by_clock} to {clock}");
        }
        by_clock = clock;
        is_new_in_others()
    });
    Ok(crew.watch().and(others).and(spoilable(PROCESS, 8)))
}

/// Children and threads that are made afterwards begin anew.
fn is_new_in_others() -> Result<()> {
    let thread = std::thread::spawn(|| {
        [THREAD, -2, !tid() << 3 | 6]
            .into_iter()
            .try_for_each(is_new)
    });
    thread.join().unwrap_or_else(|_| bail!("it panicked"))?;
    // SAFETY: the child only reads clocks and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let found = clocks().into_iter().try_for_each(is_new);
        // SAFETY: takes a number.
        unsafe { libc::_exit(i32::from(found.is_err())) };
    }
    let mut status = 0;
    // SAFETY: the number is alive.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    if status != 0 {
        bail!("a child's clock does not begin anew: {status:#x}");
    }
    Ok(())
}

/// For how long a thread reads its clocks, and how long it rests then.
const READS: Duration = Duration::from_millis(1);

/// Threads that read their clocks nearly without a pause: one is stopped in the middle of it.
pub(crate) fn busy(_: &Setting) -> Result<Watch> {
    let wrong = Arc::new(AtomicU64::new(0));
    let reads = Arc::new(AtomicU64::new(0));
    for _ in 0..3 {
        let (wrong, reads) = (Arc::clone(&wrong), Arc::clone(&reads));
        std::thread::spawn(move || {
            give_way();
            let mut last = [PROCESS, THREAD].map(through_vdso);
            let mut begun = Instant::now();
            loop {
                if begun.elapsed() > READS {
                    std::thread::sleep(READS);
                    begun = Instant::now();
                }
                let now = [PROCESS, THREAD].map(through_vdso);
                if now.iter().zip(last).any(|(now, last)| *now < last) {
                    wrong.fetch_add(1, Ordering::SeqCst);
                }
                last = now;
                reads.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let spoiler = Arc::clone(&wrong);
    Ok(Watch::new(move || {
        let before = reads.load(Ordering::SeqCst);
        until("more reads", SOON, || {
            reads.load(Ordering::SeqCst) > before + 100
        })?;
        same("clocks that went back", &0, &wrong.load(Ordering::SeqCst))
    })
    .spoiled_by(move || {
        spoiler.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }))
}

/// More threads than there is room for in a vdso: those that have worked most go on.
pub(crate) fn crowd(_: &Setting) -> Result<Watch> {
    let mut crew = Crew::default();
    for number in 0..200 {
        crew.add(move || {
            let works = number % 50 == 0;
            if works {
                burn(Duration::from_millis(300));
            }
            let mut own = Clock::new(THREAD, 1);
            Ok(Watch::new(move || if works { own.check() } else { Ok(()) }))
        })?;
    }
    burn(Duration::from_millis(300));
    Ok(crew.watch().and(spoilable(PROCESS, 200)))
}

/// Of a process and a child that it has forked before, which has worked less.
pub(crate) fn family(setting: &Setting) -> Result<Watch> {
    let own = |millis| {
        burn(Duration::from_millis(millis));
        let mut own: Vec<Clock> = clocks().map(|id| Clock::new(id, 8)).into();
        Watch::new(move || {
            own.iter_mut().try_for_each(Clock::check)?;
            own.iter_mut().try_for_each(Clock::runs)
        })
    };
    burn(Duration::from_millis(200));
    let mut child = Kin::start(setting, "child", |_| Ok(own(200)))?;
    Ok(own(300)
        .and(Watch::new(move || child.check()))
        .and(spoilable(PROCESS, 1)))
}

/// Behind filters: one lets the calls pass that tell whose clock it is, a child would be killed for one of them.
pub(crate) fn filtered(setting: &Setting) -> Result<Watch> {
    let mut child = Kin::start(setting, "child", |_| {
        burn(Duration::from_millis(200));
        answer(libc::SYS_gettid, libc::SECCOMP_RET_KILL_PROCESS)?;
        Ok(Watch::new(|| {
            [THREAD, PROCESS, -2, -6].into_iter().try_for_each(is_new)
        }))
    })?;
    burn(Duration::from_millis(200));
    install(libc::SYS_getppid, 77)?;
    let mut own: Vec<Clock> = clocks().map(|id| Clock::new(id, 8)).into();
    Ok(Watch::new(move || {
        own.iter_mut().try_for_each(Clock::check)?;
        own.iter_mut().try_for_each(Clock::runs)?;
        child.check()
    })
    .and(spoilable(PROCESS, 1)))
}

/// A clock of the subject, which can be made to have been ahead.
fn spoilable(id: i32, threads: u64) -> Watch {
    let mut clock = Clock::new(id, threads);
    let ahead = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&ahead);
    Watch::new(move || {
        clock.last += told.load(Ordering::SeqCst);
        clock.check()
    })
    .spoiled_by(move || {
        ahead.store(3_600_000_000_000, Ordering::SeqCst);
        Ok(())
    })
}
