//! Traced processes that run, while a thread of ours waits for their next stop.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex, mpsc};

use anyhow::{Context, Result, bail};
use libc::{
    __WALL, PTRACE_ATTACH, PTRACE_CONT, PTRACE_INTERRUPT, PTRACE_O_TRACESYSGOOD, PTRACE_SEIZE,
    PTRACE_SYSCALL, SIGTRAP, SIGUSR1, WEXITED, WSTOPPED,
};

use super::filtered::confine;
use crate::kit::{SOON, Setting, Watch, fork, give_way, procfs, same, sys, until};

const CALL: i32 = SIGTRAP | 0x80;

/// The stops that the tracer has been told of: status, and which side of a call it is.
type Told = Arc<Mutex<Vec<(i32, u8)>>>;

fn request(number: u32, pid: i32, data: u64) -> Result<i64> {
    // SAFETY: the requests that are made take numbers.
    let done = unsafe { libc::ptrace(number, pid, 0_usize, data) };
    sys("ptrace", done)?;
    Ok(done)
}

/// `PTRACE_GET_SYSCALL_INFO`: 1 before a call, 2 behind it.
fn side(pid: i32) -> Result<u8> {
    const GET_SYSCALL_INFO: u32 = 0x420e;
    let mut info = [0_u8; 88];
    // SAFETY: the kernel is told how much room there is.
    let done = unsafe { libc::ptrace(GET_SYSCALL_INFO, pid, info.len(), info.as_mut_ptr()) };
    sys("ptrace", done)?;
    Ok(info[0])
}

/// The status of the next stop; None at the end.
fn wait(pid: i32) -> Result<Option<i32>> {
    // SAFETY: zeros are a valid siginfo, the kernel fills it, and it tells of a child.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = WSTOPPED | WEXITED | __WALL;
        let done = libc::waitid(libc::P_PID, pid as u32, &raw mut info, options);
        sys("waitid", done)?;
        Ok((info.si_code == libc::CLD_TRAPPED).then(|| info.si_status()))
    }
}

/// How a child is traced.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Seized,
    /// The same, from call to call.
    Calls,
    /// Attached to, as debuggers do, and waited for so.
    Attached(By),
}

/// How SIGCHLD, which is blocked, is waited for.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum By {
    Poll,
    Read,
    Epoll,
    Select,
    Wait,
    Suspend,
}

extern "C" fn nothing(_: i32) {}

/// Waits for SIGCHLD.
fn wait_for_signal(signals: i32, by: By) -> Result<()> {
    let nobody = std::ptr::null_mut();
    // SAFETY: what the kernel fills is on the stack, and zeros are valid for it; the handler does nothing.
    unsafe {
        match by {
            By::Poll => return poll(signals),
            By::Read => {}
            By::Epoll => {
                let epoll = sys("epoll_create1", libc::epoll_create1(0))? as i32;
                let mut event: libc::epoll_event = std::mem::zeroed();
                event.events = libc::EPOLLIN as u32;
                let added = libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, signals, &raw mut event);
                sys("epoll_ctl", added)?;
                sys("epoll_wait", libc::epoll_wait(epoll, &raw mut event, 1, -1))?;
                libc::close(epoll);
            }
            By::Select => {
                let mut wanted: libc::fd_set = std::mem::zeroed();
                libc::FD_SET(signals, &raw mut wanted);
                let none = std::ptr::null();
                let wanted = &raw mut wanted;
                let done = libc::pselect(signals + 1, wanted, nobody, nobody, none, none.cast());
                sys("pselect", done)?;
            }
            By::Wait => {
                let set = 1_u64 << (libc::SIGCHLD - 1);
                let none = std::ptr::null::<u64>();
                let done = libc::syscall(libc::SYS_rt_sigtimedwait, &raw const set, none, none, 8);
                return sys("rt_sigtimedwait", done).map(drop);
            }
            By::Suspend => {
                let handler = nothing as *const () as libc::sighandler_t;
                libc::signal(libc::SIGCHLD, handler);
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigfillset(&raw mut set);
                libc::sigdelset(&raw mut set, libc::SIGCHLD);
                libc::sigsuspend(&raw const set);
                return Ok(());
            }
        }
        let mut info = [0_u8; 128];
        let read = libc::read(signals, info.as_mut_ptr().cast(), info.len());
        sys("read", read).map(drop)
    }
}

fn poll(signals: i32) -> Result<()> {
    let mut wanted = libc::pollfd {
        fd: signals,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut info = [0_u8; 128];
    // SAFETY: there is one descriptor, and the kernel is told how much room there is.
    unsafe {
        sys("poll", libc::poll(&raw mut wanted, 1, -1))?;
        let read = libc::read(signals, info.as_mut_ptr().cast(), info.len());
        sys("read", read).map(drop)
    }
}

/// A descriptor that tells of SIGCHLD, which is blocked from here on.
fn children() -> Result<i32> {
    // SAFETY: the set is made before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        sys("sigemptyset", libc::sigemptyset(&raw mut set))?;
        sys("sigaddset", libc::sigaddset(&raw mut set, libc::SIGCHLD))?;
        let mask = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        same("blocking a signal", &0, &mask)?;
        Ok(sys("signalfd", libc::signalfd(-1, &raw const set, 0))? as i32)
    }
}

/// Traces a child and lets it run.
fn trace(life: fn(), how: How, made: &mpsc::Sender<i32>, told: &Told) -> Result<()> {
    // It is not to be in its call already when it is seized.
    let (mut may_begin, mut begin) = std::io::pipe()?;
    let child = fork(|| {
        if may_begin.read_exact(&mut [0]).is_ok() {
            life();
        }
    })?;
    let signals = children()?;
    if let How::Attached(by) = how {
        request(PTRACE_ATTACH, child, 0)?;
        wait(child)?;
        wait_for_signal(signals, by)?;
    } else {
        request(PTRACE_SEIZE, child, PTRACE_O_TRACESYSGOOD as u64)?;
        request(PTRACE_INTERRUPT, child, 0)?;
        wait(child)?;
    }
    begin.write_all(&[0])?;
    let go_on = match how {
        How::Calls => PTRACE_SYSCALL,
        How::Seized | How::Attached(_) => PTRACE_CONT,
    };
    request(go_on, child, 0)?;
    made.send(child)?;
    loop {
        if let How::Attached(by) = how {
            wait_for_signal(signals, by)?;
        }
        let Some(status) = wait(child)? else {
            return Ok(());
        };
        let side = side(child)?;
        tell(told, (status, side));
        let signal = if status == CALL { 0 } else { status };
        request(go_on, child, signal as u64)?;
    }
}

/// A child that such a thread traces, and what that is told.
fn traced(life: fn(), how: How) -> Result<(i32, Told)> {
    let told = Told::default();
    let (made, child) = mpsc::channel();
    let theirs = Arc::clone(&told);
    std::thread::spawn(move || {
        if trace(life, how, &made, &theirs).is_err() {
            tell(&theirs, (-1, 0));
        }
    });
    let child = child.recv()?;
    until("it runs", SOON, || {
        procfs::status(&child.to_string(), "State").is_ok_and(|state| !state.starts_with('t'))
    })
    .with_context(|| format!("told {:?}", all(&told)))?;
    Ok((child, told))
}

fn tell(told: &Told, stop: (i32, u8)) {
    if let Ok(mut told) = told.lock() {
        told.push(stop);
    }
}

fn all(told: &Told) -> Vec<(i32, u8)> {
    told.lock().map(|told| told.clone()).unwrap_or_default()
}

fn spin() {
    give_way();
    // SAFETY: ignoring a signal.
    unsafe { libc::signal(SIGUSR1, libc::SIG_IGN) };
    loop {
        std::hint::spin_loop();
    }
}

fn nap() {
    loop {
        // SAFETY: both places are there.
        unsafe {
            let mut time = libc::timespec {
                tv_sec: 0,
                tv_nsec: 900_000_000,
            };
            if libc::nanosleep(&raw const time, &raw mut time) != 0 {
                libc::_exit(1);
            }
        }
    }
}

fn wait_for_ever() {
    // SAFETY: nothing is waited for; the set is on the stack.
    unsafe {
        let mut event: libc::epoll_event = std::mem::zeroed();
        libc::epoll_wait(libc::epoll_create1(0), &raw mut event, 1, -1);
        libc::_exit(1);
    }
}

/// One that spins: its tracer is told of nothing but the signal that is sent to it.
pub(crate) fn spinning(_: &Setting) -> Result<Watch> {
    spins(How::Seized)
}

/// The same, with a tracer like a debugger.
pub(crate) fn attached(by: By) -> Result<Watch> {
    // SIGCHLD comes for the process.
    children()?;
    spins(How::Attached(by))
}

fn spins(how: How) -> Result<Watch> {
    let (child, told) = traced(spin, how)?;
    let fake = Arc::clone(&told);
    let mut sent = 0;
    Ok(Watch::new(move || {
        same("stops", &vec![(SIGUSR1, 0); sent], &all(&told))?;
        // SAFETY: takes numbers.
        sys("kill", unsafe { libc::kill(child, SIGUSR1) })?;
        sent += 1;
        until("its tracer is told", SOON, || all(&told).len() == sent)?;
        same("the stop", &Some((SIGUSR1, 0)), &all(&told).last().copied())
    })
    .spoiled_by(move || {
        tell(&fake, (SIGTRAP, 0));
        Ok(())
    }))
}

/// One that sleeps in one call after the other, traced from call to call.
pub(crate) fn napping(_: &Setting) -> Result<Watch> {
    naps(nap)
}

/// The same with filters.
pub(crate) fn filtered(_: &Setting) -> Result<Watch> {
    naps(|| {
        if confine().is_ok() {
            nap();
        }
    })
}

fn naps(life: fn()) -> Result<Watch> {
    let (child, told) = traced(life, How::Calls)?;
    let fake = Arc::clone(&told);
    Ok(Watch::new(move || {
        let seen = all(&told).len();
        until("it calls again", SOON, || all(&told).len() > seen + 1)
            .with_context(|| format!("of {:?} it knew {seen}", all(&told)))?;
        let all = all(&told);
        for (place, stop) in all.iter().enumerate() {
            // The first one is behind the call it was interrupted in, or before one.
            let before = all[0].1 == 1;
            let side = if before == (place % 2 == 0) { 1 } else { 2 };
            if *stop != (CALL, side) {
                bail!("stop {place} of {} is {stop:?}", all.len());
            }
        }
        same("its tracer", &true, &has_tracer(child)?)
    })
    .spoiled_by(move || {
        tell(&fake, (CALL, 3));
        Ok(())
    }))
}

fn has_tracer(child: i32) -> Result<bool> {
    Ok(procfs::status(&child.to_string(), "TracerPid")? != "0")
}

/// One that waits for what never comes, in a call that stops make fail, traced from call to call.
pub(crate) fn waiting(_: &Setting) -> Result<Watch> {
    let (child, told) = traced(wait_for_ever, How::Calls)?;
    // In the stop before its call the call is told as well.
    until("it waits", SOON, || {
        std::fs::read_to_string(format!("/proc/{child}/syscall"))
            .is_ok_and(|call| call.starts_with(&format!("{} ", libc::SYS_epoll_wait)))
            && procfs::status(&child.to_string(), "State").is_ok_and(|now| now.starts_with('S'))
    })?;
    let fake = Arc::clone(&told);
    let before = all(&told);
    Ok(Watch::new(move || {
        same("stops", &before, &all(&told))?;
        let now = std::fs::read_to_string(format!("/proc/{child}/syscall"))?;
        let number = now.split(' ').next().unwrap_or_default().to_owned();
        same("its call", &libc::SYS_epoll_wait.to_string(), &number)?;
        same("its tracer", &true, &has_tracer(child)?)
    })
    .spoiled_by(move || {
        tell(&fake, (SIGTRAP, 0));
        Ok(())
    }))
}
