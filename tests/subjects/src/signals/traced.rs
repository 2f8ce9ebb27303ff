//! Processes in stops of their tracer (ptrace(2)), which is their parent.

use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Result, bail};
use libc::{
    __WALL, CLD_CONTINUED, CLD_TRAPPED, PTRACE_ATTACH, PTRACE_CONT, PTRACE_EVENT_STOP,
    PTRACE_GETREGS, PTRACE_GETSIGINFO, PTRACE_INTERRUPT, PTRACE_O_TRACESYSGOOD, PTRACE_SEIZE,
    PTRACE_SETOPTIONS, PTRACE_SYSCALL, PTRACE_TRACEME, SIGCHLD, SIGCONT, SIGSTOP, SIGTRAP, SIGTSTP,
    SIGUSR1, WCONTINUED, WNOHANG, WNOWAIT, WSTOPPED,
};

use crate::kit::{SOON, Setting, Watch, fork, procfs, same, sys, until};

type Registers = [u64; 27];

pub(super) fn request(number: u32, pid: i32, data: u64) -> Result<()> {
    // SAFETY: the requests that are made take numbers, or places of their size.
    let done = unsafe { libc::ptrace(number, pid, 0_usize, data) };
    sys("ptrace", done as i32).map(drop)
}

pub(super) fn registers(pid: i32) -> Result<Registers> {
    let mut all = [0; 27];
    request(PTRACE_GETREGS, pid, all.as_mut_ptr() as u64)?;
    Ok(all)
}

/// What the tracer is told of the signal of a stop; None in a group stop of one that was not seized.
fn signal(pid: i32) -> Option<Vec<u8>> {
    let mut info = vec![0; 128];
    let asked = request(PTRACE_GETSIGINFO, pid, info.as_mut_ptr() as u64);
    asked.is_ok().then_some(info)
}

/// The status of a child that has stopped, if its parent has not been told of it; `options` are waitid's.
pub(super) fn stop(pid: i32, options: i32) -> Result<Option<i32>> {
    // SAFETY: zeros are a valid siginfo, and the kernel fills it.
    let (done, info) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = options | WSTOPPED | __WALL;
        let done = libc::waitid(libc::P_PID, pid as u32, &raw mut info, options);
        (done, info)
    };
    sys("waitid", done)?;
    // SAFETY: it tells of a child.
    let (who, status) = unsafe { (info.si_pid(), info.si_status()) };
    if who == 0 {
        return Ok(None);
    }
    same("why the child is told of", &CLD_TRAPPED, &info.si_code)?;
    Ok(Some(status))
}

pub(super) fn stops(pid: i32, expected: i32) -> Result<()> {
    same("the stop", &Some(expected), &stop(pid, 0)?)?;
    forget()
}

/// Takes the SIGCHLD of a stop, which is blocked.
fn forget() -> Result<()> {
    // SAFETY: the set is made before it is used; there is no time-out and nothing to be told.
    unsafe {
        let mut set = std::mem::zeroed();
        sys("sigemptyset", libc::sigemptyset(&raw mut set))?;
        sys("sigaddset", libc::sigaddset(&raw mut set, SIGCHLD))?;
        let mask = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        same("blocking a signal", &0, &mask)?;
        let now: libc::timespec = std::mem::zeroed();
        libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const now);
    }
    Ok(())
}

/// What can be seen of a tracee in a stop.
fn seen(pid: i32) -> Result<impl PartialEq + std::fmt::Debug + use<>> {
    let state = procfs::status(&pid.to_string(), "State")?;
    let by = procfs::status(&pid.to_string(), "TracerPid")?;
    let told = stop(pid, WNOHANG | WNOWAIT)?;
    let waits = pending(SIGCHLD)?;
    Ok((
        procfs::status(&pid.to_string(), "SigPnd")?,
        state,
        by,
        told,
        waits,
        registers(pid)?,
        signal(pid),
    ))
}

/// Watches a child that `child` makes: it is as it was, does what it would have done, and is in its stop again.
pub(super) fn watch(
    child: i32,
    again: impl Fn() -> Result<()> + 'static,
    goes_on: impl Fn() -> Result<()> + 'static,
) -> Result<Watch> {
    watch_all(vec![child], again, goes_on)
}

/// The same for all of these threads. The last one is spoilt.
pub(super) fn watch_all(
    threads: Vec<i32>,
    again: impl Fn() -> Result<()> + 'static,
    goes_on: impl Fn() -> Result<()> + 'static,
) -> Result<Watch> {
    forget()?;
    again()?;
    let child = threads.last().copied().unwrap_or(0);
    let look = move || -> Result<Vec<_>> { threads.iter().map(|tid| seen(*tid)).collect() };
    let mut before = look()?;
    Ok(Watch::new(move || {
        same("what is seen of it", &before, &look()?)?;
        goes_on()?;
        again()?;
        before = look()?;
        Ok(())
    })
    .spoiled_by(move || {
        let mut all = registers(child)?;
        all[0] = !all[0];
        // SAFETY: they are as many as the kernel reads.
        let done = unsafe { libc::ptrace(libc::PTRACE_SETREGS, child, 0_usize, all.as_ptr()) };
        sys("ptrace", done as i32).map(drop)
    }))
}

fn pending(signal: i32) -> Result<bool> {
    // SAFETY: the kernel fills the set.
    unsafe {
        let mut set = std::mem::zeroed();
        sys("sigpending", libc::sigpending(&raw mut set))?;
        Ok(libc::sigismember(&raw const set, signal) == 1)
    }
}

pub(super) fn raise(signal: i32) {
    // SAFETY: takes numbers.
    unsafe { libc::raise(signal) };
}

pub(super) static COUNTED: AtomicI32 = AtomicI32::new(0);

pub(super) extern "C" fn count(_: i32) {
    COUNTED.fetch_add(1, Ordering::SeqCst);
}

/// A child that asked to be traced: before a signal is delivered that its handler counts.
pub(crate) fn signalled(_: &Setting) -> Result<Watch> {
    // SAFETY: the handler only counts.
    unsafe { libc::signal(SIGUSR1, count as *const () as usize) };
    let child = fork(|| {
        // SAFETY: takes numbers.
        unsafe { libc::ptrace(PTRACE_TRACEME, 0, 0, 0) };
        for round in 1.. {
            raise(SIGUSR1);
            // What was delivered is told by how it stops next.
            let counted = COUNTED.load(Ordering::SeqCst);
            raise(if counted == round { SIGSTOP } else { SIGTRAP });
        }
    })?;
    watch(
        child,
        move || stops(child, SIGUSR1),
        move || {
            request(PTRACE_CONT, child, SIGUSR1 as u64)?;
            stops(child, SIGSTOP)?;
            request(PTRACE_CONT, child, 0)
        },
    )
}

/// A child that sleeps, and that its parent has attached to.
pub(crate) fn attached(_: &Setting) -> Result<Watch> {
    let child = fork(sleep)?;
    until("it sleeps", SOON, || {
        procfs::status(&child.to_string(), "State").is_ok_and(|state| state.starts_with('S'))
    })?;
    request(PTRACE_ATTACH, child, 0)?;
    watch(
        child,
        move || stops(child, SIGSTOP),
        move || {
            request(PTRACE_CONT, child, 0)?;
            until("it sleeps on", SOON, || {
                procfs::status(&child.to_string(), "State").is_ok_and(|now| now.starts_with('S'))
            })?;
            same("another stop", &None, &stop(child, WNOHANG)?)?;
            // SAFETY: takes numbers.
            sys("kill", unsafe { libc::kill(child, SIGSTOP) }).map(drop)
        },
    )
}

/// A child that runs, and that its parent has seized and interrupted.
pub(crate) fn seized(_: &Setting) -> Result<Watch> {
    let child = fork(spin)?;
    request(PTRACE_SEIZE, child, PTRACE_O_TRACESYSGOOD as u64)?;
    watch(
        child,
        move || {
            request(PTRACE_INTERRUPT, child, 0)?;
            stops(child, SIGTRAP | PTRACE_EVENT_STOP << 8)
        },
        move || {
            request(PTRACE_CONT, child, 0)?;
            until("it runs", SOON, || {
                procfs::status(&child.to_string(), "State").is_ok_and(|now| now.starts_with('R'))
            })
        },
    )
}

/// Lets a child in a group stop go on, and that its parent hears of.
fn continues(child: i32) -> Result<()> {
    send(child, child, SIGCONT)?;
    is_continued(child)
}

/// Whether the parent of a child is told that it goes on.
fn is_continued(child: i32) -> Result<()> {
    // SAFETY: zeros are a valid siginfo, and the kernel fills it.
    let (done, told) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = WCONTINUED | WNOHANG;
        let done = libc::waitid(libc::P_PID, child as u32, &raw mut info, options);
        (done, (info.si_pid(), info.si_code))
    };
    sys("waitid", done)?;
    same("who is told to go on", &(child, CLD_CONTINUED), &told)
}

/// A child that asked to be traced and raises a signal again and again.
fn raising(signal: i32) -> Result<i32> {
    fork(|| {
        // SAFETY: takes numbers.
        unsafe { libc::ptrace(PTRACE_TRACEME, 0, 0, 0) };
        loop {
            raise(signal);
        }
    })
}

/// A child that is stopped by SIGSTOP, which its tracer lets through.
pub(crate) fn group_stopped(_: &Setting) -> Result<Watch> {
    let child = raising(SIGSTOP)?;
    watch(
        child,
        move || {
            stops(child, SIGSTOP)?;
            request(PTRACE_CONT, child, SIGSTOP as u64)?;
            stops(child, SIGSTOP)?;
            same("its signal", &None, &signal(child))
        },
        move || {
            continues(child)?;
            request(PTRACE_CONT, child, 0)?;
            stops(child, SIGCONT)?;
            request(PTRACE_CONT, child, SIGCONT as u64)
        },
    )
}

/// A seized child whose threads are all stopped by SIGTSTP.
pub(crate) fn group_seized(_: &Setting) -> Result<Watch> {
    const STOPPED: i32 = SIGTSTP | PTRACE_EVENT_STOP << 8;
    let child = fork(|| {
        // Its group has a parent in another one, so that this signal stops it.
        // SAFETY: takes numbers.
        unsafe { libc::setpgid(0, 0) };
        std::thread::spawn(spin);
        std::thread::spawn(sleep);
        sleep();
    })?;
    let threads = threads_of(child, 3)?;
    for tid in &threads {
        request(PTRACE_SEIZE, *tid, PTRACE_O_TRACESYSGOOD as u64)?;
    }
    let first = threads[0];
    let (stopped, gone_on) = (threads.clone(), threads.clone());
    watch_all(
        threads,
        move || {
            send(child, first, SIGTSTP)?;
            stops(first, SIGTSTP)?;
            request(PTRACE_CONT, first, SIGTSTP as u64)?;
            stopped.iter().try_for_each(|tid| stops(*tid, STOPPED))
        },
        move || {
            continues(child)?;
            // They tell that the stop is over.
            let over = SIGTRAP | PTRACE_EVENT_STOP << 8;
            for tid in &gone_on {
                request(PTRACE_CONT, *tid, 0)?;
                stops(*tid, over)?;
                request(PTRACE_CONT, *tid, 0)?;
            }
            stops(first, SIGCONT)?;
            request(PTRACE_CONT, first, 0)
        },
    )
}

/// A seized child that is stopped, and listens in that until it is told to go on.
pub(crate) fn listening(_: &Setting) -> Result<Watch> {
    const LISTEN: u32 = 0x4208;
    const STOPPED: i32 = SIGSTOP | PTRACE_EVENT_STOP << 8;
    let child = fork(sleep)?;
    request(PTRACE_SEIZE, child, PTRACE_O_TRACESYSGOOD as u64)?;
    let stop_it = move || {
        send(child, child, SIGSTOP)?;
        stops(child, SIGSTOP)?;
        request(PTRACE_CONT, child, SIGSTOP as u64)?;
        stops(child, STOPPED)?;
        request(LISTEN, child, 0)
    };
    stop_it()?;
    let look = move || -> Result<()> {
        same("its state", &true, &in_state(child, child, 't'))?;
        let told = stop(child, WNOHANG | WNOWAIT)?;
        same("a stop to be told of", &None, &told)?;
        same("whether SIGCHLD waits", &false, &pending(SIGCHLD)?)?;
        same("whether it can be asked", &false, &registers(child).is_ok())
    };
    look()?;
    Ok(Watch::new(move || {
        look()?;
        send(child, child, SIGCONT)?;
        // It tells that the stop is over.
        stops(child, SIGTRAP | PTRACE_EVENT_STOP << 8)?;
        is_continued(child)?;
        request(PTRACE_CONT, child, 0)?;
        stops(child, SIGCONT)?;
        request(PTRACE_CONT, child, 0)?;
        until("it sleeps on", SOON, || in_state(child, child, 'S'))?;
        stop_it()
    })
    .spoiled_by(move || request(PTRACE_INTERRUPT, child, 0)))
}

/// A child before and behind a system call: `rounds` of the four stops are gone through in between. It calls `begin`
/// before.
pub(super) fn calling(stops_before: usize, begin: fn() -> Result<()>) -> Result<Watch> {
    calling_with(PTRACE_O_TRACESYSGOOD, stops_before, begin)
}

/// With these options.
fn calling_with(options: i32, stops_before: usize, begin: fn() -> Result<()>) -> Result<Watch> {
    const NUMBER: u64 = libc::SYS_getppid as u64;
    const ORIG_RAX: usize = 15;
    const RAX: usize = 10;
    let child = fork(|| {
        // SAFETY: takes numbers.
        unsafe { libc::ptrace(PTRACE_TRACEME, 0, 0, 0) };
        if begin().is_err() {
            return;
        }
        raise(SIGSTOP);
        loop {
            // SAFETY: takes no arguments.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
    })?;
    stops(child, SIGSTOP)?;
    request(PTRACE_SETOPTIONS, child, options as u64)?;
    let good = if options == 0 { 0 } else { 0x80 };
    let next = move || {
        request(PTRACE_SYSCALL, child, 0)?;
        stops(child, SIGTRAP | good)
    };
    // Whatever raise(3) does on its way out.
    while registers(child)?[ORIG_RAX] != NUMBER {
        next()?;
    }
    if stops_before == 1 {
        next()?;
    }
    let entry = stops_before == 0;
    watch(
        child,
        move || {
            let all = registers(child)?;
            same("the call", &NUMBER, &all[ORIG_RAX])?;
            let enosys = (-i64::from(libc::ENOSYS)).cast_unsigned();
            same("before it", &entry, &(all[RAX] == enosys))
        },
        move || {
            next()?;
            let result = registers(child)?[RAX];
            let behind = if entry {
                u64::from(std::process::id())
            } else {
                result
            };
            same("what it returns", &behind, &result)?;
            next()
        },
    )
}

/// Before it.
pub(crate) fn entry(_: &Setting) -> Result<Watch> {
    calling(0, || Ok(()))
}

/// Behind it.
pub(crate) fn exit(_: &Setting) -> Result<Watch> {
    calling(1, || Ok(()))
}

/// Before it, as a tracer that has set no options is told.
pub(crate) fn plain_entry(_: &Setting) -> Result<Watch> {
    calling_with(0, 0, || Ok(()))
}

/// Behind it, the same.
pub(crate) fn plain_exit(_: &Setting) -> Result<Watch> {
    calling_with(0, 1, || Ok(()))
}

/// A stop that the tracer has not waited for yet, and a signal to come.
pub(crate) fn unread(_: &Setting) -> Result<Watch> {
    let child = raising(SIGUSR1)?;
    watch(
        child,
        move || {
            until("it stops", SOON, || {
                stop(child, WNOHANG | WNOWAIT).is_ok_and(|told| told == Some(SIGUSR1))
            })
        },
        move || {
            stops(child, SIGUSR1)?;
            if stop(child, WNOHANG)?.is_some() {
                bail!("the stop is told of twice");
            }
            request(PTRACE_CONT, child, 0)
        },
    )
}

/// The threads of a child that makes as many, the first one first.
pub(super) fn threads_of(child: i32, count: usize) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    until("it has its threads", SOON, || {
        let all = std::fs::read_dir(format!("/proc/{child}/task"));
        let names = all.into_iter().flatten().flatten();
        found = names
            .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
            .collect();
        found.len() == count
    })?;
    found.sort_unstable();
    Ok(found)
}

fn in_state(child: i32, tid: i32, state: char) -> bool {
    procfs::status(&format!("{child}/task/{tid}"), "State").is_ok_and(|now| now.starts_with(state))
}

pub(super) fn send(child: i32, tid: i32, signal: i32) -> Result<()> {
    // SAFETY: takes numbers.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, child, tid, signal) };
    sys("tgkill", sent as i32).map(drop)
}

/// What a debugger does with every thread but the one that tells it of a stop.
fn send_stop(child: i32, tid: i32) -> Result<()> {
    send(child, tid, SIGSTOP)
}

pub(super) fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

pub(super) fn sleep() {
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1000));
    }
}

/// A child whose threads were all attached to: one runs, two sleep.
pub(crate) fn threaded(_: &Setting) -> Result<Watch> {
    let child = fork(|| {
        std::thread::spawn(spin);
        std::thread::spawn(sleep);
        sleep();
    })?;
    let threads = threads_of(child, 3)?;
    for tid in &threads {
        request(PTRACE_ATTACH, *tid, 0)?;
        stops(*tid, SIGSTOP)?;
        request(PTRACE_SETOPTIONS, *tid, PTRACE_O_TRACESYSGOOD as u64)?;
        request(PTRACE_CONT, *tid, 0)?;
    }
    let (stopped, gone_on) = (threads.clone(), threads.clone());
    watch_all(
        threads,
        move || {
            for tid in &stopped {
                send_stop(child, *tid)?;
                stops(*tid, SIGSTOP)?;
            }
            Ok(())
        },
        move || {
            for tid in &gone_on {
                request(PTRACE_CONT, *tid, 0)?;
            }
            let states = ['S', 'R', 'S'];
            until("they go on", SOON, || {
                let mut all = gone_on.iter().zip(states);
                all.all(|(tid, state)| in_state(child, *tid, state))
            })?;
            for tid in &gone_on {
                same("another stop", &None, &stop(*tid, WNOHANG)?)?;
            }
            Ok(())
        },
    )
}

/// A child of which two threads have come to a break point, as a debugger that stops all others then has it: the
/// second one has the debugger's SIGSTOP still before it.
pub(crate) fn breakpoint(_: &Setting) -> Result<Watch> {
    // SAFETY: the handler only counts. It is called until the tracer is there.
    unsafe { libc::signal(SIGTRAP, count as *const () as usize) };
    let child = fork(|| {
        for _ in 0..2 {
            std::thread::spawn(|| {
                loop {
                    // SAFETY: its tracer is told, and lets it go on behind.
                    unsafe { std::arch::asm!("int3", options(nomem, nostack)) };
                }
            });
        }
        sleep();
    })?;
    let threads = threads_of(child, 3)?;
    for tid in &threads {
        request(PTRACE_ATTACH, *tid, 0)?;
        while stop(*tid, 0)? != Some(SIGSTOP) {
            request(PTRACE_CONT, *tid, 0)?;
        }
        request(PTRACE_CONT, *tid, 0)?;
    }
    let [main, first, second] = threads[..] else {
        bail!("there are {threads:?}");
    };
    watch_all(
        vec![main, second, first],
        move || {
            until("both have come to it", SOON, || {
                in_state(child, first, 't') && in_state(child, second, 't')
            })?;
            stops(first, SIGTRAP)?;
            for (tid, told) in [(main, SIGSTOP), (second, SIGTRAP)] {
                send_stop(child, tid)?;
                stops(tid, told)?;
            }
            Ok(())
        },
        move || {
            request(PTRACE_CONT, second, 0)?;
            stops(second, SIGSTOP)?;
            [second, first, main]
                .into_iter()
                .try_for_each(|tid| request(PTRACE_CONT, tid, 0))
        },
    )
}
