//! Signals that have come and wait: they must come out as they went in, in the same order.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::kit::{SOON, Setting, Watch, args, fork, raw, same, sys, tid, until};

/// siginfo_t as words.
type Info = [u64; 16];

fn block(mask: u64) -> Result<()> {
    let set = &raw const mask as u64;
    let how = libc::SIG_BLOCK as u64;
    sys(
        "rt_sigprocmask",
        raw(libc::SYS_rt_sigprocmask, args([how, set, 0, 8])),
    )
    .map(drop)
}

/// Blocks every signal there is.
fn block_all() -> Result<()> {
    block(u64::MAX)
}

/// Takes the next pending one out of a set.
fn take(mask: u64) -> Option<Info> {
    let (mut info, none) = ([0; 16], [0_u64; 2]);
    let got = raw(
        libc::SYS_rt_sigtimedwait,
        args([
            &raw const mask as u64,
            info.as_mut_ptr() as u64,
            none.as_ptr() as u64,
            8,
        ]),
    );
    (got > 0).then_some(info)
}

/// SI_QUEUE with a value, from a process and user that do not exist.
fn info(signal: i32, value: u64) -> Info {
    let mut info = [0; 16];
    info[0] = signal as u64; // si_signo, si_errno
    info[1] = (libc::SI_QUEUE as u32).into(); // si_code
    info[2] = 4_000_000 | 1234 << 32; // si_pid, si_uid
    info[3] = value;
    info
}

/// Where a signal waits.
#[derive(Clone, Copy)]
enum Where {
    Process,
    Thread,
}

impl Where {
    fn put(self, info: &Info) -> Result<()> {
        let (pid, at) = (u64::from(std::process::id()), info.as_ptr() as u64);
        let done = match self {
            Where::Process => raw(libc::SYS_rt_sigqueueinfo, args([pid, info[0], at])),
            Where::Thread => raw(
                libc::SYS_rt_tgsigqueueinfo,
                args([pid, tid() as u64, info[0], at]),
            ),
        };
        sys("rt_sigqueueinfo", done).map(drop)
    }

    /// All of them must come out, and go in again.
    fn watch(self, infos: Vec<Info>) -> Result<Watch> {
        block_all()?;
        infos.iter().try_for_each(|info| self.put(info))?;
        Ok(Watch::new(move || {
            let field = if matches!(self, Where::Process) {
                "ShdPnd"
            } else {
                "SigPnd"
            };
            let shown = crate::kit::procfs::status("thread-self", field)?;
            let set = infos
                .iter()
                .fold(0_u64, |set, info| set | 1 << (info[0] - 1));
            same(field, &format!("{set:016x}"), &shown)?;
            // Each signal by itself: the kernel's choice among several is not the matter here.
            let mut came = Vec::new();
            for signal in 1..=64 {
                came.extend(std::iter::from_fn(|| take(1 << (signal - 1))));
            }
            let mut expected = infos.clone();
            expected.sort_by_key(|info| info[0]);
            same("what came", &expected, &came)?;
            infos.iter().try_for_each(|info| self.put(info))
        })
        .spoiled_by(move || self.put(&info(50, 1))))
    }
}

/// Standard and real-time signals for the process.
pub(crate) fn process(_: &Setting) -> Result<Watch> {
    Where::Process.watch(vec![
        info(libc::SIGTERM, 0x1111_2222_3333_4444),
        info(libc::SIGUSR1, 5),
        info(34, 6),
        info(64, u64::MAX),
    ])
}

/// The same for the thread.
pub(crate) fn thread(_: &Setting) -> Result<Watch> {
    Where::Thread.watch(vec![
        info(libc::SIGUSR2, 7),
        info(35, 8),
        info(63, 9),
        info(63, 10),
    ])
}

/// Fifty times one signal.
pub(crate) fn queue(_: &Setting) -> Result<Watch> {
    Where::Process.watch((0..50).map(|number| info(40, number * number)).collect())
}

/// More than one batch of calls queues.
pub(crate) fn many(_: &Setting) -> Result<Watch> {
    Where::Process.watch((0..2000).map(|number| info(40, number)).collect())
}

/// Every plain signal that can be blocked and stops nobody, those that faults raise as if one had.
pub(crate) fn plain(_: &Setting) -> Result<Watch> {
    const NEVER: [i32; 5] = [
        libc::SIGKILL,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
    ];
    const FAULTS: [i32; 6] = [
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGSEGV,
        libc::SIGSYS,
    ];
    let one = |signal: i32| {
        let mut info = info(signal, 9);
        if FAULTS.contains(&signal) {
            // SEGV_MAPERR and its like, with an address.
            (info[1], info[2]) = (1, 0x1234_5678);
        }
        info
    };
    let signals = (1..32).filter(|signal| !NEVER.contains(signal));
    Where::Thread.watch(signals.map(one).collect())
}

/// Signals that would stop a job, and those that do nothing.
pub(crate) fn stops(_: &Setting) -> Result<Watch> {
    let stops = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    let others = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];
    let all = stops.into_iter().chain(others);
    Where::Process.watch(all.map(|signal| info(signal, 11)).collect())
}

/// Every signal that can be queued at once: each that would stop a job takes SIGCONT away.
pub(crate) fn every(_: &Setting) -> Result<Watch> {
    const NEVER: [i32; 3] = [libc::SIGKILL, libc::SIGCONT, libc::SIGSTOP];
    let signals = (1..=64).filter(|signal| !NEVER.contains(signal));
    Where::Process.watch(signals.map(|signal| info(signal, 12)).collect())
}

/// More than may be queued by now.
pub(crate) fn limited(_: &Setting) -> Result<Watch> {
    let limit = |soft: Option<u64>| -> Result<libc::rlimit> {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        let at = &raw mut limit as u64;
        let which = u64::from(libc::RLIMIT_SIGPENDING);
        sys("getrlimit", raw(libc::SYS_getrlimit, args([which, at])))?;
        if let Some(soft) = soft {
            limit.rlim_cur = soft;
            sys("setrlimit", raw(libc::SYS_setrlimit, args([which, at])))?;
        }
        Ok(limit)
    };
    let before = limit(None)?.rlim_cur;
    block_all()?;
    let put = move || -> Result<()> {
        limit(Some(before))?;
        (0..5).try_for_each(|number| Where::Process.put(&info(40, number)))?;
        limit(Some(1)).map(drop)
    };
    put()?;
    Ok(Watch::new(move || {
        same("the limit", &1, &limit(None)?.rlim_cur)?;
        let came = std::iter::from_fn(|| take(1 << 39).map(|info| info[3]));
        same("what came", &vec![0, 1, 2, 3, 4], &came.collect())?;
        put()
    })
    .spoiled_by(move || limit(Some(2)).map(drop)))
}

/// The signal of breakpoints, ignored, and queued for a thread while it is blocked.
pub(crate) fn trap(_: &Setting) -> Result<Watch> {
    // SAFETY: no handler.
    unsafe { libc::signal(libc::SIGTRAP, libc::SIG_IGN) };
    let queued = Where::Thread.watch(vec![info(libc::SIGTRAP, 11)])?;
    let ignored = || crate::kit::procfs::status("self", "SigIgn");
    Ok(Watch::keep(ignored)?.and(queued))
}

/// A timer with a value; the call returned sets it to run out once.
fn timer() -> Result<impl Fn() -> Result<()> + Copy> {
    // SAFETY: zeros are a valid structure.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = 41;
    event.sigev_value.sival_ptr = 0x1234_5678_usize as *mut _;
    let mut timer = 0_i32;
    let made = raw(
        libc::SYS_timer_create,
        args([0, &raw const event as u64, &raw mut timer as u64]),
    );
    sys("timer_create", made)?;
    let once = [0_u64, 0, 0, 1_000_000];
    Ok(move || {
        sys(
            "timer_settime",
            raw(
                libc::SYS_timer_settime,
                args([timer as u64, 0, once.as_ptr() as u64]),
            ),
        )
        .map(drop)
    })
}

/// A child's end and a timer's: their siginfo is laid out in ways of its own.
pub(crate) fn kinds(_: &Setting) -> Result<Watch> {
    block_all()?;
    let child = fork(|| std::process::exit(7))?;
    let chld = 1_u64 << (libc::SIGCHLD - 1);
    until("SIGCHLD", SOON, || {
        crate::kit::procfs::status("self", "ShdPnd").is_ok_and(|set| set.ends_with("10000"))
    })?;
    let set = timer()?;
    set()?;
    std::thread::sleep(Duration::from_millis(20));
    let mut first = true;
    Ok(Watch::new(move || {
        if std::mem::take(&mut first) {
            return Ok(());
        }
        let Some(info) = take(chld) else {
            bail!("SIGCHLD is gone")
        };
        let code = libc::CLD_EXITED as u64;
        same(
            "SIGCHLD",
            &(code, child as u64, 7),
            &(
                info[1] & 0xffff_ffff,
                info[2] & 0xffff_ffff,
                info[3] & 0xffff_ffff,
            ),
        )?;
        let Some(timed) = take(1 << 40) else {
            bail!("the timer's signal is gone")
        };
        let code = u64::from(libc::SI_TIMER as u32);
        same(
            "the timer's",
            &(code, 0x1234_5678),
            &(timed[1] & 0xffff_ffff, timed[3]),
        )?;
        // Both go in again: a real end of a child cannot be had twice, so by hand.
        sys(
            "rt_sigqueueinfo",
            raw(
                libc::SYS_rt_sigqueueinfo,
                args([
                    std::process::id().into(),
                    info[0] & 0xff,
                    info.as_ptr() as u64,
                ]),
            ),
        )?;
        set()?;
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    })
    .spoiled_by(move || {
        take(1 << 40);
        Ok(())
    }))
}
