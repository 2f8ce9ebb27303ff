//! pidfd_open(2)

use anyhow::Result;
use libc::POLLIN;

use crate::kit::files::ready;
use crate::kit::{SOON, Setting, Watch, args, fd, fork, raw, same, sys, until};

fn open(pid: i32) -> Result<i32> {
    let made = raw(libc::SYS_pidfd_open, args([pid as u64]));
    fd("pidfd_open", i32::try_from(made)?)
}

/// `Pid:` of its fdinfo.
fn pid_of(pidfd: i32) -> Result<String> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{pidfd}"))?;
    let line = text.lines().find(|line| line.starts_with("Pid:"));
    Ok(line
        .unwrap_or_default()
        .trim_start_matches("Pid:")
        .trim()
        .to_owned())
}

fn signal(pidfd: i32, signal: i32) -> i64 {
    raw(
        libc::SYS_pidfd_send_signal,
        args([pidfd as u64, signal as u64]),
    )
}

fn sleeper() -> Result<i32> {
    fork(|| {
        loop {
            std::thread::sleep(SOON);
        }
    })
}

/// Of the subject itself and of a child, which can be ended by it.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let me = std::process::id() as i32;
    let mut child = sleeper()?;
    let (own, mut other) = (open(me)?, open(child)?);
    let spoiled = other;
    Ok(Watch::new(move || {
        same("the subject", &me.to_string(), &pid_of(own)?)?;
        same("the child", &child.to_string(), &pid_of(other)?)?;
        same(
            "nobody has ended",
            &(0, 0),
            &(ready(own, POLLIN)?, ready(other, POLLIN)?),
        )?;
        same("a signal", &0, &signal(other, libc::SIGKILL))?;
        until("the end is told", SOON, || {
            ready(other, POLLIN).is_ok_and(|events| events == POLLIN)
        })?;
        // SAFETY: reaps the child.
        sys("wait", unsafe {
            libc::waitpid(child, std::ptr::null_mut(), 0)
        })?;
        crate::kit::files::close(other);
        child = sleeper()?;
        other = open(child)?;
        Ok(())
    })
    .spoiled_by(move || sys("signal", signal(spoiled, libc::SIGKILL)).map(drop)))
}

/// Its process has ended and was waited for.
pub(crate) fn dead(_: &Setting) -> Result<Watch> {
    let child = sleeper()?;
    let pidfd = open(child)?;
    // SAFETY: ends and reaps the child.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    Ok(Watch::new(move || {
        same("its process", "-1", &pid_of(pidfd)?)?;
        same(
            "the end is told",
            &POLLIN,
            &(ready(pidfd, POLLIN)? & POLLIN),
        )?;
        same("a signal", &-i64::from(libc::ESRCH), &signal(pidfd, 0))
    })
    .spoiled_by(move || {
        let own = open(std::process::id() as i32)?;
        // SAFETY: both are descriptors of ours.
        fd("dup2", unsafe { libc::dup2(own, pidfd) }).map(drop)
    }))
}

/// Of two threads of the subject, one of which has ended; a child has one of them, too.
pub(crate) fn thread(setting: &Setting) -> Result<Watch> {
    const PIDFD_THREAD: u64 = 0o200;
    let of_thread = |tid: i32| {
        let made = raw(libc::SYS_pidfd_open, args([tid as u64, PIDFD_THREAD]));
        i32::try_from(made)
    };
    let (tell, told) = std::sync::mpsc::channel();
    let tell_too = tell.clone();
    std::thread::spawn(move || {
        // The receiver waits.
        let _ = tell.send(crate::kit::tid());
        loop {
            std::thread::park();
        }
    });
    let living = told.recv()?;
    let pidfd = of_thread(living)?;
    if pidfd < 0 {
        return crate::kit::not_here("the kernel knows no pidfds of threads");
    }
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let short = std::thread::spawn(move || {
        let _ = tell_too.send(crate::kit::tid());
        // It ends when the other end goes.
        let _ = ended.recv();
    });
    let gone = of_thread(told.recv()?)?;
    drop(end);
    // It does not panic.
    let _ = short.join();
    until("its end is told", SOON, || {
        pid_of(gone).is_ok_and(|pid| pid == "-1")
    })?;
    let flags = crate::kit::files::seen(pidfd)?;
    let mut child = crate::kit::Kin::start(setting, "child", move |_| {
        Ok(Watch::new(move || {
            same("the thread", &living.to_string(), &pid_of(pidfd)?)
        }))
    })?;
    Ok(Watch::new(move || {
        same("the thread", &living.to_string(), &pid_of(pidfd)?)?;
        same("its flags", &flags, &crate::kit::files::seen(pidfd)?)?;
        same("the other one", "-1", &pid_of(gone)?)?;
        let poll = |pidfd| anyhow::Ok(ready(pidfd, POLLIN)? & POLLIN);
        same(
            "which has ended",
            &(0, POLLIN),
            &(poll(pidfd)?, poll(gone)?),
        )?;
        same("a signal", &0, &signal(pidfd, 0))?;
        let one = crate::kit::files::share(pidfd, child.pid, pidfd)?;
        same("one description", &true, &one)?;
        child.check()
    })
    .spoiled_by(move || {
        let own = open(std::process::id() as i32)?;
        // SAFETY: both are descriptors of ours.
        fd("dup2", unsafe { libc::dup2(own, pidfd) }).map(drop)
    }))
}
