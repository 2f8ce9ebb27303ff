//! Stopped processes stay stopped, and their parent learns of it exactly once.

use std::time::Duration;

use anyhow::Result;
use libc::{SIGCONT, SIGSTOP, WCONTINUED, WNOHANG, WUNTRACED};

use crate::kit::{SOON, Setting, Watch, fork, procfs, same, sys, until};

/// A child that sleeps.
fn sleeper(group: bool) -> Result<i32> {
    fork(move || {
        if group {
            // SAFETY: takes numbers.
            unsafe { libc::setpgid(0, 0) };
        }
        loop {
            std::thread::sleep(Duration::from_millis(10));
        }
    })
}

fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: takes numbers.
    sys("kill", unsafe { libc::kill(pid, signal) }).map(drop)
}

fn state(pid: i32) -> String {
    procfs::status(&pid.to_string(), "State").unwrap_or_default()
}

fn stops(pid: i32) -> Result<()> {
    until("it stops", SOON, || state(pid).starts_with('T'))
}

/// How long a tracer's former tracees may take to stop again: they are woken for that (kernel/ptrace.c,
/// __ptrace_unlink), and do nothing else before, but need a processor for it.
const MOMENT: Duration = Duration::from_secs(3);

fn stands(pid: i32) -> Result<()> {
    until("it is stopped", MOMENT, || {
        state(pid).starts_with("T (stopped)")
    })
}

/// What wait4 tells at once: the process and its status.
fn wait(options: i32) -> Result<(i32, i32)> {
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, options | WNOHANG) };
    sys("waitpid", pid)?;
    Ok((pid, if pid == 0 { 0 } else { status }))
}

/// The status of a child that was stopped by a signal.
fn by(signal: i32) -> i32 {
    signal << 8 | 0x7f
}

/// A nap that was over while its process stood still: the signal that has it go on has a handler, and so ends it as any
/// other would.
pub(crate) fn nap(_: &Setting) -> Result<Watch> {
    const INTERRUPTED: i32 = 33;
    extern "C" fn on_cont(_: libc::c_int) {}
    let make = || {
        let child = fork(|| {
            let time = libc::timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            // SAFETY: the handler does nothing, the structure is alive.
            let ended = unsafe {
                libc::signal(SIGCONT, on_cont as *const () as libc::sighandler_t);
                libc::nanosleep(&raw const time, std::ptr::null_mut())
            };
            std::process::exit(if ended == 0 { 0 } else { INTERRUPTED });
        })?;
        until("it sleeps", SOON, || state(child).starts_with('S'))?;
        std::thread::sleep(Duration::from_millis(100));
        kill(child, SIGSTOP)?;
        stops(child)?;
        same("the stop", &(child, by(SIGSTOP)), &wait(WUNTRACED)?)?;
        Ok::<_, anyhow::Error>(child)
    };
    let mut child = make()?;
    std::thread::sleep(Duration::from_secs(1));
    Ok(Watch::new(move || {
        stands(child)?;
        kill(child, SIGCONT)?;
        until("it ends", SOON, || state(child).starts_with('Z'))?;
        same("the end", &(child, INTERRUPTED << 8), &wait(0)?)?;
        child = make()?;
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    }))
}

/// Another SIGSTOP waits for a child that is stopped: for the process, or for its thread. SIGCONT takes it away.
pub(crate) fn twice(_: &Setting) -> Result<Watch> {
    let children = [sleeper(false)?, sleeper(false)?];
    let waits = [
        format!("{:016x}", 1 << (SIGSTOP - 1)),
        format!("{:016x}", 0),
    ];
    let queues = |child: i32| -> Result<[String; 2]> {
        let child = child.to_string();
        let queue = |key| procfs::status(&child, key);
        Ok([queue("ShdPnd")?, queue("SigPnd")?])
    };
    let [process, thread] = children;
    let stop = move || {
        for child in children {
            kill(child, SIGSTOP)?;
            stops(child)?;
            same("the stop", &(child, by(SIGSTOP)), &wait(WUNTRACED)?)?;
        }
        kill(process, SIGSTOP)?;
        // SAFETY: takes numbers.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, thread, thread, SIGSTOP) };
        sys("tgkill", sent).map(drop)
    };
    stop()?;
    Ok(Watch::new(move || {
        let [shared, own] = [queues(process)?, queues(thread)?];
        same("what waits for the process", &waits, &shared)?;
        let [own_shared, own_queue] = own;
        same(
            "what waits for the thread",
            &waits,
            &[own_queue, own_shared],
        )?;
        for child in children {
            stands(child)?;
            kill(child, SIGCONT)?;
            until("it goes on", SOON, || !state(child).starts_with('T'))?;
        }
        same("a report", &(0, 0), &wait(WUNTRACED)?)?;
        stop()
    })
    .spoiled_by(move || kill(process, SIGCONT)))
}

/// The parent knows already.
pub(crate) fn reported(_: &Setting) -> Result<Watch> {
    let child = sleeper(false)?;
    kill(child, SIGSTOP)?;
    stops(child)?;
    same("the stop", &(child, by(SIGSTOP)), &wait(WUNTRACED)?)?;
    Ok(Watch::new(move || {
        stands(child)?;
        same("a second report", &(0, 0), &wait(WUNTRACED | WCONTINUED)?)?;
        // It goes on when it is told to, and stops again.
        kill(child, SIGCONT)?;
        until("it goes on", SOON, || !state(child).starts_with('T'))?;
        same(
            "the report",
            &(child, 0xffff),
            &wait(WUNTRACED | WCONTINUED)?,
        )?;
        kill(child, SIGSTOP)?;
        stops(child)?;
        same("the stop", &(child, by(SIGSTOP)), &wait(WUNTRACED)?)
    })
    .spoiled_by(move || {
        kill(child, SIGCONT)?;
        until("it goes on", SOON, || !state(child).starts_with('T'))
    }))
}

/// A child whose threads all run when it is stopped, and go on only when they are told to.
pub(crate) fn threads(_: &Setting) -> Result<Watch> {
    const THREADS: usize = 24;
    let child = fork(|| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                std::thread::spawn(|| {
                    loop {
                        std::hint::spin_loop();
                        std::thread::yield_now();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| drop(thread.join()));
    })?;
    let all = move |wanted: char| {
        let tasks = std::fs::read_dir(format!("/proc/{child}/task"));
        let tasks: Vec<_> = tasks.into_iter().flatten().flatten().collect();
        tasks.len() == THREADS + 1
            && tasks.iter().all(|task| {
                let tid = task.file_name().to_string_lossy().into_owned();
                procfs::status(&format!("{child}/task/{tid}"), "State")
                    .is_ok_and(|state| state.starts_with(wanted) == (wanted == 'T'))
            })
    };
    until("all its threads are there", SOON, || {
        std::fs::read_dir(format!("/proc/{child}/task")).is_ok_and(|all| all.count() > THREADS)
    })?;
    kill(child, SIGSTOP)?;
    until("all its threads stop", SOON, || all('T'))?;
    same("the stop", &(child, by(SIGSTOP)), &wait(WUNTRACED)?)?;
    Ok(Watch::new(move || {
        until("all its threads are stopped", MOMENT, || all('T'))?;
        same("a second report", &(0, 0), &wait(WUNTRACED | WCONTINUED)?)
    })
    .spoiled_by(move || {
        kill(child, SIGCONT)?;
        until("it goes on", SOON, || !state(child).starts_with('T'))
    }))
}

/// The parent does not know yet.
pub(crate) fn unreported(_: &Setting) -> Result<Watch> {
    let child = sleeper(false)?;
    let stop = move || {
        kill(child, SIGSTOP)?;
        stops(child)
    };
    stop()?;
    Ok(Watch::new(move || {
        stands(child)?;
        same("the stop", &(child, by(SIGSTOP)), &wait(WUNTRACED)?)?;
        kill(child, SIGCONT)?;
        until("it goes on", SOON, || !state(child).starts_with('T'))?;
        stop()
    })
    .spoiled_by(|| wait(WUNTRACED).map(drop)))
}

/// Two processes of a group of their own.
pub(crate) fn job(_: &Setting) -> Result<Watch> {
    let leader = sleeper(true)?;
    let member = sleeper(false)?;
    until("the group is there", SOON, || {
        // SAFETY: takes numbers.
        unsafe { libc::getpgid(leader) == leader }
    })?;
    // SAFETY: as above.
    sys("setpgid", unsafe { libc::setpgid(member, leader) })?;
    kill(-leader, SIGSTOP)?;
    stops(leader)?;
    stops(member)?;
    while wait(WUNTRACED)?.0 != 0 {}
    Ok(Watch::new(move || {
        for pid in [leader, member] {
            stands(pid)?;
            // SAFETY: as above.
            same("the group", &leader, &unsafe { libc::getpgid(pid) })?;
        }
        kill(-leader, SIGCONT)?;
        for pid in [leader, member] {
            until("it goes on", SOON, || !state(pid).starts_with('T'))?;
        }
        kill(-leader, SIGSTOP)?;
        stops(leader)?;
        stops(member)
    })
    .spoiled_by(move || {
        kill(member, SIGCONT)?;
        until("it goes on", SOON, || !state(member).starts_with('T'))
    }))
}

/// SIGCONT waits for a child that blocks it, whose threads sleep on.
pub(crate) fn blocked(_: &Setting) -> Result<Watch> {
    let long = || std::thread::sleep(Duration::from_secs(3600));
    let child = fork(move || {
        let mut set = std::mem::MaybeUninit::uninit();
        // SAFETY: the set is alive, and initialized first.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), SIGCONT);
            libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        }
        for _ in 0..3 {
            std::thread::spawn(long);
        }
        long();
        std::process::exit(0)
    })?;
    until("its threads sleep", SOON, || {
        let tasks = std::fs::read_dir(format!("/proc/{child}/task"));
        tasks.is_ok_and(|tasks| tasks.count() == 4) && state(child).starts_with('S')
    })?;
    let waits = |child: i32| procfs::status(&child.to_string(), "ShdPnd");
    let state = move |task: &str| {
        procfs::status(&format!("{child}/task/{task}"), "State").unwrap_or_default()
    };
    kill(child, SIGCONT)?;
    let mask = format!("{:016x}", 1 << (SIGCONT - 1));
    Ok(Watch::new(move || {
        same("what waits", &mask, &waits(child)?)?;
        let tasks = std::fs::read_dir(format!("/proc/{child}/task"))?;
        for task in tasks {
            let task = task?.file_name().into_string().unwrap_or_default();
            until("a thread sleeps", SOON, || state(&task).starts_with('S'))?;
        }
        Ok(())
    })
    .spoiled_by(move || kill(child, libc::SIGKILL)))
}

/// It was stopped and goes on: the parent can still learn of the latter.
pub(crate) fn continued(_: &Setting) -> Result<Watch> {
    let child = sleeper(false)?;
    let go = move || {
        kill(child, SIGSTOP)?;
        stops(child)?;
        wait(WUNTRACED)?;
        kill(child, SIGCONT)?;
        until("it goes on", SOON, || !state(child).starts_with('T'))
    };
    go()?;
    Ok(Watch::new(move || {
        same("the report", &(child, 0xffff), &wait(WCONTINUED)?)?;
        go()
    })
    .spoiled_by(|| wait(WCONTINUED).map(drop)))
}
