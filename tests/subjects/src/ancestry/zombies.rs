//! Children that have ended and wait for their parent.

use std::io::{Read as _, Write as _};

use anyhow::{Result, bail};

use crate::kit::{SOON, Setting, Watch, args, fork, not_here, procfs, raw, same, sys, until};

fn becomes_zombie(pid: i32) -> Result<()> {
    until("it is a zombie", SOON, || {
        procfs::status(&pid.to_string(), "State").is_ok_and(|state| state.starts_with('Z'))
    })
}

/// Status of a child without reaping it (WNOWAIT).
fn status(pid: i32) -> Result<(i32, i32)> {
    let mut info = [0_i32; 32];
    let options = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG | libc::__WALL;
    let at = info.as_mut_ptr() as u64;
    let done = raw(
        libc::SYS_waitid,
        args([libc::P_PID as u64, pid as u64, at, options as u64]),
    );
    if done < 0 || info[4] != pid {
        bail!("waitid for {pid}: {done}");
    }
    Ok((info[2], info[6]))
}

/// A zombie that must stay, and one of the same kind to be reaped at every check.
fn kept(make: fn() -> Result<i32>, expected: (i32, i32), wait_status: i32) -> Result<Watch> {
    let pid = make()?;
    let mut spare = make()?;
    Ok(Watch::new(move || {
        for pid in [pid, spare] {
            same(
                "the state",
                "Z (zombie)",
                &procfs::status(&pid.to_string(), "State")?,
            )?;
            same("code and status", &expected, &status(pid)?)?;
        }
        let mut seen = 0;
        // SAFETY: reaps a child of ours.
        let reaped = unsafe { libc::waitpid(spare, &raw mut seen, libc::__WALL) };
        same("the reaped child", &(spare, wait_status), &(reaped, seen))?;
        spare = make()?;
        Ok(())
    })
    .spoiled_by(move || {
        // SAFETY: as above.
        sys("wait", unsafe {
            libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL)
        })
        .map(drop)
    }))
}

/// exit(42)
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    kept(
        || {
            let pid = fork(|| std::process::exit(42))?;
            becomes_zombie(pid)?;
            Ok(pid)
        },
        (libc::CLD_EXITED, 42),
        42 << 8,
    )
}

/// What its limits were: those of a child that has lowered some.
pub(crate) fn limited(_: &Setting) -> Result<Watch> {
    let make = |core: u64| {
        let pid = fork(move || {
            for (which, value) in [(libc::RLIMIT_CORE, core), (libc::RLIMIT_NOFILE, 77)] {
                let limit = libc::rlimit {
                    rlim_cur: value,
                    rlim_max: value,
                };
                // SAFETY: the structure is alive.
                unsafe { libc::setrlimit(which, &raw const limit) };
            }
            std::process::exit(42)
        })?;
        becomes_zombie(pid)?;
        Ok::<_, anyhow::Error>(pid)
    };
    let (one, other) = (make(1 << 20)?, make(1 << 21)?);
    let limits = move || {
        let of = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/limits"));
        Ok((of(one)?, of(other)?))
    };
    Ok(Watch::keep(limits)?.spoiled_by(move || {
        // SAFETY: reaps it.
        sys("wait", unsafe {
            libc::waitpid(one, std::ptr::null_mut(), 0)
        })
        .map(drop)
    }))
}

/// It had a user namespace of its own, and so all capabilities, which those who build it again need not have.
pub(crate) fn with_namespace(_: &Setting) -> Result<Watch> {
    let make = || {
        let pid = fork(|| {
            // SAFETY: takes a number.
            let alone = unsafe { libc::unshare(libc::CLONE_NEWUSER) } == 0;
            std::process::exit(if alone { 42 } else { 1 })
        })?;
        becomes_zombie(pid)?;
        match status(pid)? {
            (libc::CLD_EXITED, 1) => not_here("user namespaces"),
            _ => Ok(pid),
        }
    };
    kept(make, (libc::CLD_EXITED, 42), 42 << 8)
}

/// SIGTERM
pub(crate) fn killed(_: &Setting) -> Result<Watch> {
    kept(
        || {
            let pid = fork(|| {
                loop {
                    std::thread::sleep(SOON);
                }
            })?;
            // SAFETY: takes numbers.
            sys("kill", unsafe { libc::kill(pid, libc::SIGTERM) })?;
            becomes_zombie(pid)?;
            Ok(pid)
        },
        (libc::CLD_KILLED, libc::SIGTERM),
        libc::SIGTERM,
    )
}

/// SIGABRT with a core dump; no other file comes beside it.
pub(crate) fn dumped(setting: &Setting) -> Result<Watch> {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    if pattern.starts_with(['|', '@', '/']) {
        return not_here("cores go elsewhere");
    }
    let place = setting.fresh("cores");
    std::fs::create_dir_all(&place)?;
    let pid = fork(|| {
        let unlimited = libc::rlimit {
            rlim_cur: libc::RLIM_INFINITY,
            rlim_max: libc::RLIM_INFINITY,
        };
        let moved = std::env::set_current_dir(&place);
        // SAFETY: the structure is alive.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &unlimited) };
        if moved.is_ok() {
            std::process::abort();
        }
    })?;
    becomes_zombie(pid)?;
    if status(pid)?.0 != libc::CLD_DUMPED {
        return not_here("no core was dumped");
    }
    let files = move || -> Result<usize> { Ok(std::fs::read_dir(&place)?.count()) };
    let found = Watch::keep(move || Ok((status(pid)?, files()?)))?;
    Ok(found.spoiled_by(move || {
        // SAFETY: reaps it.
        sys("wait", unsafe {
            libc::waitpid(pid, std::ptr::null_mut(), 0)
        })
        .map(drop)
    }))
}

/// Children of who ignores SIGCHLD only since they have ended: one that has ended by SIGPIPE, and one that was
/// otherwise than its parent.
pub(crate) fn kept_all_the_same(_: &Setting) -> Result<Watch> {
    let broken = fork(|| {
        // SAFETY: takes numbers; Rust's runtime ignores SIGPIPE.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            libc::raise(libc::SIGPIPE);
        }
    })?;
    let other = fork(|| {
        // SAFETY: takes numbers, and a name that is there; the set is made before it is used.
        unsafe {
            libc::prctl(libc::PR_SET_NAME, c"was other".as_ptr());
            libc::setpriority(libc::PRIO_PROCESS, 0, 7);
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::signal(libc::SIGUSR1, libc::SIG_IGN);
            let mut blocked = std::mem::zeroed();
            libc::sigemptyset(&raw mut blocked);
            libc::sigaddset(&raw mut blocked, libc::SIGUSR2);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const blocked, std::ptr::null_mut());
            libc::_exit(9)
        }
    })?;
    becomes_zombie(broken)?;
    becomes_zombie(other)?;
    // SAFETY: takes numbers.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    same(
        "the end",
        &(libc::CLD_KILLED, libc::SIGPIPE),
        &status(broken)?,
    )?;
    let looks = move |pid: i32| -> Result<Vec<String>> {
        let fields = [
            "Name",
            "Uid",
            "Groups",
            "SigBlk",
            "SigIgn",
            "SigCgt",
            "CapEff",
            "CapBnd",
            "NoNewPrivs",
            "Cpus_allowed",
        ];
        let mut seen = Vec::new();
        for field in fields {
            seen.push(procfs::status(&pid.to_string(), field)?);
        }
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let nice = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.split(' ').nth(16));
        seen.push(nice.unwrap_or_default().to_owned());
        Ok(seen)
    };
    Ok(Watch::keep(move || {
        Ok((
            status(broken)?,
            status(other)?,
            looks(broken)?,
            looks(other)?,
        ))
    })?
    .spoiled_by(move || {
        // SAFETY: reaps it.
        sys("wait", unsafe {
            libc::waitpid(other, std::ptr::null_mut(), 0)
        })
        .map(drop)
    }))
}

/// A leader of a session and a member of it whom it has not waited for: both have ended, and have one parent since. The
/// founder of the member's group is gone, and the member had a handler for SIGCHLD.
pub(crate) fn session(_: &Setting) -> Result<Watch> {
    // SAFETY: takes numbers.
    sys("prctl", unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    })?;
    let (mut told, tells) = std::io::pipe()?;
    let leader = fork(move || {
        // SAFETY: takes nothing.
        unsafe { libc::setsid() };
        let founder = fork(|| std::process::exit(6)).unwrap_or(0);
        // SAFETY: takes numbers.
        unsafe { libc::setpgid(founder, founder) };
        let _ = becomes_zombie(founder);
        let member = fork(move || {
            // SAFETY: the handler is a function, which never runs.
            unsafe {
                libc::setpgid(0, founder);
                libc::signal(libc::SIGCHLD, std::process::abort as fn() -> ! as usize);
            }
            std::process::exit(7)
        });
        let member = member.unwrap_or(0);
        let _ = becomes_zombie(member);
        // SAFETY: reaps a child.
        unsafe { libc::waitpid(founder, std::ptr::null_mut(), 0) };
        let _ = (&tells).write_all(&member.to_ne_bytes());
        std::process::exit(8)
    })?;
    let mut member = [0; 4];
    told.read_exact(&mut member)?;
    let member = i32::from_ne_bytes(member);
    becomes_zombie(leader)?;
    Ok(Watch::keep(move || {
        // SAFETY: takes numbers.
        let sessions = unsafe { [libc::getsid(leader), libc::getsid(member)] };
        same("the sessions", &[leader, leader], &sessions)?;
        // SAFETY: takes numbers.
        let groups = unsafe { [libc::getpgid(leader), libc::getpgid(member)] };
        Ok((groups, status(leader)?, status(member)?))
    })?
    .spoiled_by(move || {
        // SAFETY: reaps it.
        sys("wait", unsafe {
            libc::waitpid(member, std::ptr::null_mut(), 0)
        })
        .map(drop)
    }))
}

/// Its user, as waitid(2) tells it, and its ids in /proc.
pub(crate) fn belonging(_: &Setting) -> Result<Watch> {
    let pid = fork(|| {
        // SAFETY: takes numbers.
        unsafe {
            libc::setresgid(81, 82, 83);
            libc::setresuid(71, 72, 73);
            libc::_exit(5)
        }
    })?;
    becomes_zombie(pid)?;
    Ok(Watch::keep(move || {
        let mut info = [0_i32; 32];
        let options = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
        let at = info.as_mut_ptr() as u64;
        let which = [libc::P_PID as u64, pid as u64, at, options as u64];
        if raw(libc::SYS_waitid, args(which)) < 0 {
            bail!("waitid for {pid}");
        }
        let [_, _, code, _, pid, user, status] = info[..7] else {
            bail!("no siginfo");
        };
        same("the user", &71, &user)?;
        let of = |field| procfs::status(&pid.to_string(), field);
        Ok((code, pid, status, of("Uid")?, of("Gid")?))
    })?
    .spoiled_by(move || {
        // SAFETY: reaps it.
        sys("wait", unsafe {
            libc::waitpid(pid, std::ptr::null_mut(), 0)
        })
        .map(drop)
    }))
}

/// What personality(2) made of it, in /proc.
pub(crate) fn personality(_: &Setting) -> Result<Watch> {
    let pid = fork(|| {
        // SAFETY: takes a number.
        unsafe {
            libc::personality(libc::ADDR_NO_RANDOMIZE as u64);
            libc::_exit(6)
        }
    })?;
    becomes_zombie(pid)?;
    Ok(Watch::new(move || {
        let found = std::fs::read_to_string(format!("/proc/{pid}/personality"))?;
        same("the personality", "00040000", found.trim())?;
        same("how it ended", &(libc::CLD_EXITED, 6), &status(pid)?)
    })
    .spoiled_by(move || {
        // SAFETY: reaps it.
        sys("wait", unsafe {
            libc::waitpid(pid, std::ptr::null_mut(), 0)
        })
        .map(drop)
    }))
}

/// Children that have ended with signals of their own: of one its parent has heard, of the others these wait.
pub(crate) fn exit_signals_told(_: &Setting) -> Result<Watch> {
    let real_time = libc::SIGRTMIN() + 3;
    let [heard, waits] = [libc::SIGUSR1, libc::SIGUSR2];
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: the set is initialized, and blocked in this thread only.
    let blocked = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        let mut set = set.assume_init();
        for signal in [heard, waits, real_time] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    };
    let take = move || {
        let at_once = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: set and time are alive, nothing is written.
        unsafe { libc::sigtimedwait(&raw const blocked, std::ptr::null_mut(), &raw const at_once) }
    };
    let end = move |signal: i32| -> Result<i32> {
        let pid = raw(libc::SYS_clone, args([signal as u64])) as i32;
        if pid == 0 {
            // Only this copy of the thread ends.
            raw(libc::SYS_exit_group, args([0]));
        }
        becomes_zombie(pid)?;
        Ok(pid)
    };
    end(heard)?;
    same("what it heard", &heard, &take())?;
    let told = [waits, real_time, real_time];
    let mut children = Vec::new();
    for signal in told {
        children.push(end(signal)?);
    }
    Ok(Watch::new(move || {
        for signal in told {
            same("a signal of an end", &signal, &take())?;
        }
        same("another one", &-1, &take())?;
        for child in &mut children {
            let how = libc::__WALL;
            // SAFETY: reaps it.
            let ended = unsafe { libc::waitpid(*child, std::ptr::null_mut(), how) };
            same("the child that has ended", child, &ended)?;
        }
        children.clear();
        for signal in told {
            children.push(end(signal)?);
        }
        Ok(())
    })
    .spoiled_by(move || same("a signal", &waits, &take())))
}

/// As below, by children with other threads.
pub(crate) fn exit_signal_of_threads(setting: &Setting) -> Result<Watch> {
    fn go_on() {
        loop {
            raw(libc::SYS_pause, args([]));
        }
    }
    exit_signals(setting, || {
        for _ in 0..3 {
            std::thread::spawn(go_on);
        }
    })
}

/// clone(2) with no signal at all and with SIGUSR1 at the end: only __WCLONE and __WALL see them.
pub(crate) fn exit_signal(setting: &Setting) -> Result<Watch> {
    exit_signals(setting, || ())
}

fn exit_signals(_: &Setting, begin: fn()) -> Result<Watch> {
    // SAFETY: ignores a signal that would end the subject.
    unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
    let mut children = Vec::new();
    for signal in [0, libc::SIGUSR1, libc::SIGUSR1, libc::SIGUSR1] {
        let pid = raw(libc::SYS_clone, args([signal as u64])) as i32;
        if pid == 0 {
            begin();
            loop {
                raw(libc::SYS_pause, args([]));
            }
        }
        children.push((pid, signal));
    }
    let first = children[0].0;
    Ok(Watch::new(move || {
        for (pid, signal) in &children {
            // exit_signal is field 38 of proc_pid_stat(5).
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let after = stat.rsplit(") ").next().unwrap_or_default();
            let field = after.split(' ').nth(38 - 3).unwrap_or_default();
            same(
                "the signal at its end",
                &signal.to_string(),
                &field.to_owned(),
            )?;
        }
        Ok(())
    })
    .spoiled_by(move || {
        // SAFETY: takes numbers.
        sys("kill", unsafe { libc::kill(first, libc::SIGKILL) })?;
        // SAFETY: reaps it.
        sys("wait", unsafe {
            libc::waitpid(first, std::ptr::null_mut(), libc::__WALL)
        })
        .map(drop)
    }))
}

/// Children that have ended, orphans among them, as wait(2) comes upon them.
struct Line(Vec<i32>);

impl Line {
    /// Two orphans that came behind two children, but are older than these.
    fn make() -> Result<Line> {
        let (mut told, tells) = std::io::pipe()?;
        let father = fork(move || {
            let mut tells = &tells;
            for _ in 0..2 {
                let Ok(child) = fork(sleep) else { return };
                if tells.write_all(&child.to_ne_bytes()).is_err() {
                    return;
                }
            }
            sleep();
        })?;
        let mut orphans = [0; 2];
        for orphan in &mut orphans {
            let mut bytes = [0; 4];
            told.read_exact(&mut bytes)?;
            *orphan = i32::from_ne_bytes(bytes);
        }
        let own = [fork(sleep)?, fork(sleep)?];
        end(father)?;
        // SAFETY: reaps a child of ours.
        sys("wait", unsafe {
            libc::waitpid(father, std::ptr::null_mut(), 0)
        })?;
        let me = std::process::id().to_string();
        for orphan in orphans {
            until("it is ours", SOON, || {
                procfs::status(&orphan.to_string(), "PPid").is_ok_and(|ppid| ppid == me)
            })?;
        }
        let last = fork(sleep)?;
        let line = Line([&own[..], &orphans, &[last]].concat());
        for pid in line.0.iter().rev() {
            end(*pid)?;
        }
        Ok(line)
    }

    fn reap(&self) -> Result<()> {
        let mut reaped = Vec::new();
        for _ in &self.0 {
            // SAFETY: reaps a child of ours.
            reaped.push(unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) });
        }
        same("who is reaped", &self.0, &reaped)
    }
}

fn sleep() {
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1000));
    }
}

fn end(pid: i32) -> Result<()> {
    // SAFETY: takes numbers.
    sys("kill", unsafe { libc::kill(pid, libc::SIGKILL) })?;
    becomes_zombie(pid)
}

/// In the order in which their parent got them.
pub(crate) fn order(_: &Setting) -> Result<Watch> {
    // SAFETY: takes numbers.
    sys("prctl", unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
    })?;
    let mut line = Line::make()?;
    Ok(Watch::new(move || {
        line.reap()?;
        line = Line::make()?;
        Ok(())
    })
    .spoiled_by(|| {
        // SAFETY: reaps a child of ours.
        sys("wait", unsafe {
            libc::waitpid(-1, std::ptr::null_mut(), 0)
        })
        .map(drop)
    }))
}
