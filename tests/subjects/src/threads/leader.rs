//! Processes whose first thread has ended.

use std::cell::Cell;
use std::fs;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use anyhow::{Context, Result, bail};

use crate::kit::files::{open, place, read, ready, write};
use crate::kit::{Kin, SOON, Setting, Watch, args, fork, procfs, raw, same, sys, until};

/// What the first thread gives to exit(2), which is seen in /proc/PID/stat; its name, user and nice value.
const CODE: i32 = 7;
const NAME: &std::ffi::CStr = c"kup gone)";
const NOBODY: u64 = 65534;
const NICE: i32 = 5;
/// What the last thread gives to exit(2), which becomes the code of the process (since Linux 5.17).
const LAST: u64 = 3;
/// `si_code` of a signal that the kernel sends.
const SI_KERNEL: i32 = 0x80;
/// siginfo_t as words.
type Info = [u64; 16];

/// A process with state of its own, and one that ends at every check.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    block(bit(libc::SIGCHLD))?;
    let mut child = Kin::start_in_thread(setting, "child", leave, life)?;
    let mortal = Rc::new(Cell::new(mortal()?));
    let other = mortal.clone();
    Ok(Watch::new(move || {
        child.check()?;
        // Which code SIGCHLD tells, the first thread's or the last one's, differs from kernel to kernel.
        let told = ends(self::mortal()?)?;
        same("the code in SIGCHLD", &told, &ends(mortal.get())?)?;
        mortal.set(self::mortal()?);
        Ok(())
    })
    .spoiled_by(move || kill(other.get(), libc::SIGKILL)))
}

/// An interval timer that expires without a pause, also while nobody runs; another thread takes its signals.
pub(crate) fn interval_timer(setting: &Setting) -> Result<Watch> {
    let mut child = Kin::start_in_thread(setting, "child", || 0, ticking)?;
    Ok(Watch::new(move || child.check()))
}

fn ticking(_: &Setting) -> Result<Watch> {
    const EVERY_US: u64 = 20_000;
    static TICKS: AtomicU64 = AtomicU64::new(0);
    let pid = std::process::id() as i32;
    until("the first thread ends", SOON, || is_zombie(pid))?;
    block(bit(libc::SIGALRM))?;
    let strange = Arc::new(AtomicBool::new(false));
    let seen = strange.clone();
    std::thread::spawn(move || {
        loop {
            match wait(libc::SIGALRM, std::ptr::null()) {
                Some([_, code, ..]) if code as i32 == SI_KERNEL => {
                    TICKS.fetch_add(1, Relaxed);
                }
                Some(_) => seen.store(true, Relaxed),
                None => {}
            }
        }
    });
    let every = [0, EVERY_US, 0, EVERY_US];
    let armed = args([libc::ITIMER_REAL as u64, every.as_ptr() as u64]);
    sys("setitimer", raw(libc::SYS_setitimer, armed))?;
    until("the timer expires", SOON, || TICKS.load(Relaxed) > 2)?;
    Ok(Watch::new(move || {
        let before = TICKS.load(Relaxed);
        until("the timer expires", SOON, || {
            TICKS.load(Relaxed) > before + 2
        })?;
        let mut now = [0_u64; 4];
        let asked = args([libc::ITIMER_REAL as u64, now.as_mut_ptr() as u64]);
        sys("getitimer", raw(libc::SYS_getitimer, asked))?;
        same("the interval", &EVERY_US, &now[1])?;
        same(
            "a signal that tells something else",
            &false,
            &strange.load(Relaxed),
        )
    }))
}

/// The first thread becomes somebody else before it ends.
fn leave() -> i32 {
    // SAFETY: the name is a C string; the rest are numbers.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, NAME.as_ptr());
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
    }
    // The C library would change all threads.
    raw(libc::SYS_setresuid, args([NOBODY, NOBODY, NOBODY]));
    CODE
}

fn is_zombie(pid: i32) -> bool {
    procfs::status(&format!("{pid}/task/{pid}"), "State").is_ok_and(|state| state.starts_with('Z'))
}

/// The second thread holds what the process has.
fn life(setting: &Setting) -> Result<Watch> {
    let pid = std::process::id() as i32;
    // Signals for the process are this thread's from then on.
    until("the first thread ends", SOON, || is_zombie(pid))?;
    let path = setting.fresh("file");
    fs::write(&path, "some text")?;
    let file = open(&path, libc::O_RDWR)?;
    place(file, Some(4))?;
    let mut pipe = [0; 2];
    // SAFETY: two descriptors are filled in.
    sys("pipe", unsafe { libc::pipe(pipe.as_mut_ptr()) })?;
    write(pipe[1], b"in the pipe")?;
    let memory = vec![0xa5_u8; 1 << 20];
    let timer = timer()?;
    block(bit(libc::SIGUSR1))?;
    kill(pid, libc::SIGUSR1)?;
    Ok(Watch::new(move || {
        same("the process", &pid, &(std::process::id() as i32))?;
        looks(pid)?;
        same("the offset", &4, &place(file, None)?)?;
        same("the pipe", &libc::POLLIN, &ready(pipe[0], libc::POLLIN)?)?;
        same(
            "in the pipe",
            b"in the pipe".as_slice(),
            &read(pipe[0], 64)?,
        )?;
        write(pipe[1], b"in the pipe")?;
        if memory.iter().any(|byte| *byte != 0xa5) {
            bail!("the memory has changed");
        }
        same("the timer", &true, &(400..=1000).contains(&left(timer)?))?;
        let [signal, code, sender, ..] = take(libc::SIGUSR1).context("no signal waits")?;
        let expected = (libc::SIGUSR1 as u64, 0, pid as u64);
        same(
            "the signal",
            &expected,
            &(signal, code, sender as u32 as u64),
        )?;
        kill(pid, libc::SIGUSR1)
    }))
}

/// What is seen of the first thread.
fn looks(pid: i32) -> Result<()> {
    let task = format!("self/task/{pid}");
    same("it is a zombie", &true, &is_zombie(pid))?;
    same("threads", "2", &procfs::status("self", "Threads")?)?;
    same("its name", NAME.to_str()?, &procfs::status(&task, "Name")?)?;
    let user = [NOBODY.to_string().as_str(); 4].join("\t");
    same("its user", &user, &procfs::status(&task, "Uid")?)?;
    same(
        "the others' user",
        "0\t0\t0\t0",
        &procfs::status("thread-self", "Uid")?,
    )?;
    // SAFETY: takes numbers.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, pid as u32) };
    same("its nice value", &NICE, &nice)?;
    let stat = fs::read_to_string(format!("/proc/self/task/{pid}/stat"))?;
    let code = stat.split_whitespace().next_back().unwrap_or("");
    same("its exit code", (CODE << 8).to_string().as_str(), code)
}

/// A timer that tells nobody, and runs for a thousand seconds.
fn timer() -> Result<u64> {
    let mut event = [0_u64; 8];
    // sigev_notify behind sigev_value and sigev_signo.
    event[1] = (libc::SIGEV_NONE as u64) << 32;
    let mut id = 0_i32;
    let clock = libc::CLOCK_MONOTONIC as u64;
    let made = args([clock, event.as_ptr() as u64, &raw mut id as u64]);
    sys("timer_create", raw(libc::SYS_timer_create, made))?;
    let when = [0_u64, 0, 1000, 0];
    let armed = args([id as u64, 0, when.as_ptr() as u64, 0]);
    sys("timer_settime", raw(libc::SYS_timer_settime, armed))?;
    Ok(id as u64)
}

/// Seconds until it expires.
fn left(timer: u64) -> Result<u64> {
    let mut now = [0_u64; 4];
    let asked = args([timer, now.as_mut_ptr() as u64]);
    sys("timer_gettime", raw(libc::SYS_timer_gettime, asked))?;
    Ok(now[2])
}

/// A process that has lost its first thread; SIGUSR1 ends its second one, SIGTERM its third.
fn mortal() -> Result<i32> {
    let pid = fork(|| {
        let signals = [libc::SIGUSR1, libc::SIGTERM];
        let blocked = block(signals.into_iter().map(bit).sum());
        for signal in signals.into_iter().filter(|_| blocked.is_ok()) {
            std::thread::spawn(move || {
                while wait(signal, std::ptr::null()).is_none() {}
                raw(libc::SYS_exit, args([LAST]));
            });
        }
        raw(libc::SYS_exit, args([leave() as u64]));
    })?;
    until("the first thread ends", SOON, || is_zombie(pid))?;
    Ok(pid)
}

/// Nobody hears of its end before the last thread ends; that one's code is told then. Returns the code in SIGCHLD.
fn ends(pid: i32) -> Result<u64> {
    let threads = || procfs::status(&pid.to_string(), "Threads").unwrap_or_default();
    same("threads", "3", &threads())?;
    untold(pid)?;
    kill(pid, libc::SIGUSR1)?;
    until("a signal to the process ends a thread", SOON, || {
        threads() == "2"
    })?;
    untold(pid)?;
    kill(pid, libc::SIGTERM)?;
    until("the parent hears of the end", SOON, || {
        procfs::status(&pid.to_string(), "Threads").is_ok_and(|threads| threads == "1")
    })?;
    let [_, code, sender, status, ..] = take(libc::SIGCHLD).context("no SIGCHLD")?;
    let told = (code as i32, sender as i32);
    same("SIGCHLD", &(libc::CLD_EXITED, pid), &told)?;
    let in_signal = status;
    let mut status = 0;
    // SAFETY: the status is ours.
    let got = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    same("the wait", &(pid, (LAST as i32) << 8), &(got, status))?;
    Ok(in_signal)
}

/// Its parent has not been told of its end.
fn untold(pid: i32) -> Result<()> {
    let mut info: Info = [0; 16];
    let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let at = info.as_mut_ptr() as u64;
    let done = raw(
        libc::SYS_waitid,
        args([libc::P_PID as u64, pid as u64, at, how as u64]),
    );
    same(
        "waitid and the child it tells of",
        &(0, 0),
        &(done, info[2]),
    )?;
    same("SIGCHLD waits", &None, &take(libc::SIGCHLD))
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn block(mask: u64) -> Result<()> {
    let how = libc::SIG_BLOCK as u64;
    let asked = args([how, &raw const mask as u64, 0, 8]);
    sys("rt_sigprocmask", raw(libc::SYS_rt_sigprocmask, asked)).map(drop)
}

/// Takes a signal that waits.
fn take(signal: i32) -> Option<Info> {
    wait(signal, [0_u64; 2].as_ptr())
}

/// Waits for a signal.
fn wait(signal: i32, time: *const u64) -> Option<Info> {
    let (mask, mut info): (u64, Info) = (bit(signal), [0; 16]);
    let at = info.as_mut_ptr() as u64;
    let asked = args([&raw const mask as u64, at, time as u64, 8]);
    (raw(libc::SYS_rt_sigtimedwait, asked) > 0).then_some(info)
}

fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: takes numbers.
    sys("kill", unsafe { libc::kill(pid, signal) }).map(drop)
}
