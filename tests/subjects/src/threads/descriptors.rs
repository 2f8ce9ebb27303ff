//! Threads with a descriptor table of their own.

use std::io::Write;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context, Result, anyhow, bail};
use libc::{F_GETFD, F_GETLK, F_SETLK, F_UNLCK, F_WRLCK, O_APPEND, O_RDONLY, O_RDWR};

use crate::kit::files::{close, fcntl, open, place, read, ready, seen, write};
use crate::kit::{
    Crew, LONG_TERM, SOON, Setting, Watch, args, fd, not_here, raw, same, sys, tid, timed_long,
};

/// Numbers that the process and a thread have for different files, and that one of them has closed.
const BOTH: i32 = 40;
const MAIN: i32 = 41;
const OWN: i32 = 42;

fn needs_pidfds_of_threads() -> Result<()> {
    // PIDFD_THREAD
    let own = u64::from(std::process::id());
    if raw(libc::SYS_pidfd_open, args([own, 0o200])) < 0 {
        return not_here("no pidfds of threads, which the descriptors are copied through");
    }
    Ok(())
}

fn leave() -> Result<()> {
    // SAFETY: takes a number.
    sys("unshare", unsafe { libc::unshare(libc::CLONE_FILES) }).map(drop)
}

fn number(from: i32, to: i32, flags: i32) -> Result<()> {
    // SAFETY: takes numbers that nobody uses.
    fd("dup3", unsafe { libc::dup3(from, to, flags) })?;
    close(from);
    Ok(())
}

fn lock(file: i32, command: i32, kind: i32, (start, len): (i64, i64)) -> Result<i32> {
    let mut lock = libc::flock {
        l_type: kind as i16,
        l_whence: 0,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the structure is alive.
    sys("fcntl", unsafe {
        libc::fcntl(file, command, &raw mut lock)
    })?;
    Ok(lock.l_type.into())
}

/// Is a file open under this number here?
fn is_open(number: i32) -> bool {
    fcntl(number, F_GETFD, 0).is_ok()
}

/// A process with a thread that has left its table, and one that has not.
pub(crate) fn apart(setting: &Setting) -> Result<Watch> {
    let [one, two, locked] = ["one", "two", "locked"].map(|name| setting.fresh(name));
    for (path, text) in [(&one, "one"), (&two, "two"), (&locked, "locked")] {
        std::fs::write(path, text)?;
    }
    number(open(&one, O_RDWR)?, BOTH, 0)?;
    number(open(&one, O_RDONLY)?, MAIN, libc::O_CLOEXEC)?;
    let file = open(&locked, O_RDWR)?;
    lock(file, F_SETLK, F_WRLCK, (0, 10))?;
    place(BOTH, Some(1))?;
    let mut crew = Crew::default();
    crew.add(move || common(file))?;
    crew.add(move || own(file, &two))?;
    Ok(crew.watch())
}

/// What the process has, seen by a thread that shares it.
fn common(file: i32) -> Result<Watch> {
    Ok(
        Watch::keep(|| Ok((seen(BOTH)?, seen(MAIN)?)))?.and(Watch::new(move || {
            same("what the thread alone has", &false, &is_open(OWN))?;
            // Locks belong to tables, not to processes.
            let held = |at| lock(file, F_GETLK, F_WRLCK, (at, 5));
            same("its own lock", &F_UNLCK, &held(0)?)?;
            same("that of the other table", &F_WRLCK, &held(20)?)
        })),
    )
}

/// A thread that has left: it has closed a number, has another file under one, and some alone.
fn own(file: i32, two: &std::path::Path) -> Result<Watch> {
    leave()?;
    close(MAIN);
    number(open(two, O_RDWR | O_APPEND)?, BOTH, libc::O_CLOEXEC)?;
    lock(file, F_SETLK, F_WRLCK, (20, 5))?;
    let (ours, mut theirs) = std::io::pipe()?;
    number(ours.into_raw_fd(), OWN, 0)?;
    theirs.write_all(b"sent")?;
    // SAFETY: takes a number.
    let epoll = fd("epoll", unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 7,
    };
    // SAFETY: the structure is alive.
    sys("epoll_ctl", unsafe {
        libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, OWN, &raw mut event)
    })?;
    // A pipe has another inode afterwards.
    let flags =
        |file| -> Result<_> { Ok((fcntl(file, libc::F_GETFL, 0)?, fcntl(file, F_GETFD, 0)?)) };
    let path = || std::fs::read_link(format!("/proc/thread-self/fd/{BOTH}"));
    Ok(
        Watch::keep(move || Ok(([BOTH, OWN, epoll].map(|file| flags(file).ok()), path().ok())))?
            .and(Watch::new(move || {
                same("what was closed", &false, &is_open(MAIN))?;
                same("the file", b"two".as_slice(), &read_at_start(BOTH)?)?;
                let held = |at| lock(file, F_GETLK, F_WRLCK, (at, 5));
                same("the process's lock", &F_WRLCK, &held(0)?)?;
                same("its own lock", &F_UNLCK, &held(20)?)?;
                let (me, leader) = (tid() as u64, u64::from(std::process::id()));
                // KCMP_FILE
                let order = raw(
                    libc::SYS_kcmp,
                    args([me, leader, 0, file as u64, file as u64]),
                );
                same("the description that both have", &0, &order)?;
                same("the epoll", &libc::POLLIN, &ready(epoll, libc::POLLIN)?)?;
                same("the data", b"sent".as_slice(), &read(OWN, 4)?)?;
                same("the epoll", &0, &ready(epoll, libc::POLLIN)?)?;
                write(theirs.as_raw_fd(), b"sent")
            }))
            .spoiled_by(move || lock(file, F_SETLK, F_UNLCK, (20, 5)).map(drop)),
    )
}

fn read_at_start(file: i32) -> Result<Vec<u8>> {
    place(file, Some(0))?;
    read(file, 3)
}

/// A question to a thread: a number, and whether it is to be opened or closed there.
type Wish = (i32, bool);

/// The first thread leaves the table that its threads go on sharing.
pub(crate) fn shared(_: &Setting) -> Result<Watch> {
    let asked = |outer: bool| -> Result<(Sender<Wish>, Receiver<Result<bool>>)> {
        let (ask, wishes) = channel();
        let (tell, told) = channel();
        let body = move || {
            for wish in wishes {
                let _ = tell.send(fulfil(wish));
            }
        };
        let (started, starts) = channel();
        if outer {
            std::thread::spawn(move || {
                let _ = started.send(tid());
                body();
            });
        } else {
            // One that is made by a thread.
            std::thread::spawn(move || {
                std::thread::spawn(move || {
                    let _ = started.send(tid());
                    body();
                });
            });
        }
        starts.recv_timeout(SOON)?;
        Ok((ask, told))
    };
    let threads = [asked(true)?, asked(false)?, asked(true)?];
    leave()?;
    let own = std::fs::File::open("/dev/null")?.into_raw_fd();
    number(own, OWN, 0)?;
    let wish = move |thread: usize, wish: Wish| -> Result<bool> {
        let (ask, told) = &threads[thread];
        ask.send(wish).map_err(|_| anyhow!("it has ended"))?;
        told.recv_timeout(SOON).context("no answer")?
    };
    let mut turn = 0;
    Ok(Watch::new(move || {
        turn += 1;
        let (opener, others) = (turn % 3, [(turn + 1) % 3, (turn + 2) % 3]);
        same("it was closed", &false, &wish(opener, (BOTH, true))?)?;
        for other in others {
            same("the others have it", &true, &wish(other, (BOTH, false))?)?;
            same("and have it again", &false, &wish(opener, (BOTH, true))?)?;
        }
        same("it is closed", &true, &wish(opener, (BOTH, false))?)?;
        if is_open(BOTH) || !is_open(OWN) || wish(0, (OWN, false))? {
            bail!("the first thread has the others' descriptors, or they its");
        }
        Ok(())
    })
    .spoiled_by(|| {
        close(OWN);
        Ok(())
    }))
}

/// Opens or closes a number; whether it was open.
fn fulfil((wanted, opened): Wish) -> Result<bool> {
    let was = is_open(wanted);
    if opened && !was {
        number(open("/dev/null", O_RDONLY)?, wanted, 0)?;
    } else if !opened && was {
        close(wanted);
    }
    Ok(was)
}

/// A receive whose time-out belongs to a socket that only this thread has.
pub(crate) fn waiting(_: &Setting) -> Result<Watch> {
    needs_pidfds_of_threads()?;
    let mut socket = None;
    timed_long(
        libc::SYS_recvfrom,
        move || {
            let (ours, _) = socket.get_or_insert_with(|| {
                // A failure shows as a call that returns something else.
                let pair = leave().and_then(|()| Ok(UnixStream::pair()?));
                let Ok((ours, theirs)) = pair else {
                    return (-1, -1);
                };
                let _ = ours.set_read_timeout(Some(LONG_TERM));
                (ours.into_raw_fd(), theirs.into_raw_fd())
            });
            let mut byte = 0_u8;
            raw(
                libc::SYS_recvfrom,
                args([*ours as u64, &raw mut byte as u64, 1]),
            )
        },
        -i64::from(libc::EAGAIN),
    )
}
