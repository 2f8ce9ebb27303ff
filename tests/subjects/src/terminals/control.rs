//! Sessions and their terminals.

use anyhow::{Result, bail};
use libc::O_RDWR;

use super::pty::{make_raw, pty};
use crate::kit::files::{close, open, read, write};
use crate::kit::{Kin, SOON, Setting, Watch, fork, procfs, same, sys, until};

/// Terminal number and foreground group of proc_pid_stat(5).
fn terminal(pid: u32) -> Result<[String; 2]> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit(") ").next().unwrap_or_default();
    let fields: Vec<&str> = after.split(' ').collect();
    Ok([fields[4].to_owned(), fields[5].to_owned()])
}

/// Makes this process the leader of a session with the terminal.
fn take(slave: i32) -> Result<()> {
    // SAFETY: these take numbers.
    unsafe {
        sys("setsid", libc::setsid())?;
        sys("TIOCSCTTY", libc::ioctl(slave, libc::TIOCSCTTY, 0)).map(drop)
    }
}

/// A child with a terminal: a leader, a child of its own in the foreground.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let [master, slave] = pty()?;
    make_raw(slave)?;
    let mut child = Kin::start(setting, "leader", move |setting| {
        close(master);
        take(slave)?;
        let mut job = Kin::start(setting, "job", |_| {
            // SAFETY: takes numbers.
            sys("setpgid", unsafe { libc::setpgid(0, 0) })?;
            Watch::keep(|| terminal(std::process::id()))
        })?;
        // SAFETY: a signal that would stop the leader, which is in the background then.
        unsafe { libc::signal(libc::SIGTTOU, libc::SIG_IGN) };
        // SAFETY: takes numbers.
        sys("tcsetpgrp", unsafe { libc::tcsetpgrp(slave, job.pid) })?;
        let leader = std::process::id();
        let foreground = job.pid;
        Ok(Watch::keep(move || terminal(leader))?.and(
            Watch::new(move || {
                // SAFETY: these take numbers.
                let groups = unsafe { (libc::tcgetpgrp(slave), libc::tcgetsid(slave)) };
                same(
                    "foreground group and session",
                    &(foreground, leader as i32),
                    &groups,
                )?;
                let tty = open("/dev/tty", O_RDWR)?;
                write(tty, b"by /dev/tty")?;
                close(tty);
                // The job's first look was before it came to the foreground.
                let _ = job.check();
                match terminal(job.pid as u32)? == terminal(leader)? {
                    true => Ok(()),
                    false => bail!("the job has another terminal"),
                }
            })
            .spoiled_by(move || {
                // SAFETY: takes numbers.
                sys("tcsetpgrp", unsafe {
                    libc::tcsetpgrp(slave, libc::getpgid(0))
                })
                .map(drop)
            }),
        ))
    })?;
    close(slave);
    Ok(Watch::new(move || {
        child.check()?;
        let mut got = Vec::new();
        until("it comes to the master", SOON, || {
            got.extend(read(master, 100).unwrap_or_default());
            got == b"by /dev/tty"
        })
    }))
}

/// It is stopped when it reads, and told so by the terminal.
pub(crate) fn background(setting: &Setting) -> Result<Watch> {
    let [master, slave] = pty()?;
    let mut child = Kin::start(setting, "leader", move |_| {
        take(slave)?;
        // The leader's group stays in the foreground.
        let job = fork(move || {
            // SAFETY: takes numbers.
            unsafe { libc::setpgid(0, 0) };
            // The slave does not block: waiting is done by the signal.
            loop {
                let _ = read(slave, 1);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        })?;
        let state = move || procfs::status(&job.to_string(), "State").unwrap_or_default();
        until("the job is stopped", SOON, || state().starts_with('T'))?;
        Ok(Watch::new(move || {
            if !state().starts_with("T (stopped)") {
                bail!("the job is {}", state());
            }
            let mut status = 0;
            // SAFETY: the kernel writes one int.
            let seen =
                unsafe { libc::waitpid(job, &raw mut status, libc::WUNTRACED | libc::WNOHANG) };
            same(
                "stopped by SIGTTIN",
                &(job, libc::SIGTTIN << 8 | 0x7f),
                &(seen, status),
            )?;
            // It goes on, reads again, and is stopped again.
            // SAFETY: takes numbers.
            sys("kill", unsafe { libc::kill(job, libc::SIGCONT) })?;
            until("it is stopped again", SOON, || {
                // SAFETY: the kernel writes one structure; WNOWAIT leaves the report there.
                let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
                let flags = libc::WSTOPPED | libc::WNOWAIT | libc::WNOHANG;
                // SAFETY: as above.
                unsafe { libc::waitid(libc::P_PID, job as u32, &raw mut info, flags) };
                info.si_signo == libc::SIGCHLD && state().starts_with('T')
            })
        }))
    })?;
    close(slave);
    let _held = master;
    Ok(Watch::new(move || child.check()))
}
