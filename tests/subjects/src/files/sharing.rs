//! Descriptions that several descriptors share.

use std::fs;

use anyhow::{Result, bail};
use libc::{O_NONBLOCK, O_RDWR};

use crate::kit::files::{close, fcntl, open, place, read, seen, share};
use crate::kit::{Kin, Setting, Watch, fd, same, sys};

fn file(setting: &Setting) -> Result<i32> {
    let path = setting.fresh("file");
    fs::write(&path, "0123456789")?;
    open(&path, O_RDWR)
}

fn dup2(from: i32, to: i32) -> Result<i32> {
    // SAFETY: the subject has nothing else at these numbers.
    fd("dup2", unsafe { libc::dup2(from, to) })
}

fn me() -> i32 {
    std::process::id() as i32
}

/// Numbers 40, 60 and 61 are one description, 50 is another one of the same file.
pub(crate) fn dup(setting: &Setting) -> Result<Watch> {
    let first = file(setting)?;
    for number in [40, 60, 61] {
        dup2(first, number)?;
    }
    let other = open(setting.path("file"), O_RDWR)?;
    dup2(other, 50)?;
    close(first);
    close(other);
    fcntl(60, libc::F_SETFD, libc::FD_CLOEXEC)?;
    place(40, Some(4))?;
    place(50, Some(8))?;
    Ok(Watch::keep(|| {
        let mut open = Vec::new();
        for entry in fs::read_dir("/proc/self/fd")? {
            let number: i32 = entry?.file_name().to_string_lossy().parse()?;
            // The directory itself, and the log and /dev/null.
            if number > 30 {
                open.push((
                    number,
                    fcntl(number, libc::F_GETFD, 0)?,
                    place(number, None)?,
                ));
            }
        }
        open.sort_unstable();
        Ok(open)
    })?
    .and(
        Watch::new(|| {
            for (one, other, shared) in [(40, 60, true), (60, 61, true), (40, 50, false)] {
                same(
                    &format!("{one} and {other} are one"),
                    &shared,
                    &share(one, me(), other)?,
                )?;
            }
            // The place and flags of one are those of the others.
            place(61, Some(6))?;
            same("the place", &6, &place(40, None)?)?;
            place(61, Some(4))?;
            fcntl(61, libc::F_SETFL, O_NONBLOCK)?;
            same("a flag", &O_NONBLOCK, &(seen(40)?.0 & O_NONBLOCK))?;
            same("the other's flag", &0, &(seen(50)?.0 & O_NONBLOCK))?;
            fcntl(61, libc::F_SETFL, 0).map(drop)
        })
        .spoiled_by(|| {
            let path = format!("/proc/self/fd/{}", 40);
            let other = open(path, O_RDWR)?;
            dup2(other, 61)?;
            place(61, Some(4)).map(drop)
        }),
    ))
}

/// A child has the same description, moves it, and has one of its own.
pub(crate) fn fork(setting: &Setting) -> Result<Watch> {
    let fd = file(setting)?;
    place(fd, Some(2))?;
    let mut child = Kin::start(setting, "child", move |_| {
        let own = open(format!("/proc/self/fd/{fd}"), O_RDWR)?;
        place(own, Some(9))?;
        Ok(Watch::new(move || {
            same("what the child reads", b"23".as_slice(), &read(fd, 2)?)?;
            same("the child's own place", &9, &place(own, None)?)
        }))
    })?;
    Ok(Watch::new(move || {
        same("the place", &2, &place(fd, None)?)?;
        child.check()?;
        same("the place after the child has read", &4, &place(fd, None)?)?;
        place(fd, Some(2))?;
        match share(fd, child.pid, fd)? {
            true => Ok(()),
            false => bail!("the child's description is another one"),
        }
    })
    .spoiled_by(move || {
        let other = open(format!("/proc/self/fd/{fd}"), O_RDWR)?;
        dup2(other, fd)?;
        place(fd, Some(2)).map(drop)
    }))
}

/// Passed to a child over a socket that is closed again.
pub(crate) fn passed(setting: &Setting) -> Result<Watch> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    sys("socketpair", unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, ends.as_mut_ptr())
    })?;
    let [ours, theirs] = ends;
    let (send, receive) = (
        crate::kit::net::send_descriptor,
        crate::kit::net::receive_descriptor,
    );
    let parent = setting.clone();
    let mut child = Kin::start(setting, "child", move |_| {
        // Opened by the child, so that it comes to the parent by the message only.
        let fd = file(&parent)?;
        place(fd, Some(3))?;
        send(theirs, fd)?;
        close(ours);
        close(theirs);
        Ok(Watch::new(move || {
            same("the child's place", &7, &place(fd, None)?)
        }))
    })?;
    let fd = receive(ours)?;
    close(ours);
    close(theirs);
    Ok(Watch::new(move || {
        same("the place", &3, &place(fd, None)?)?;
        place(fd, Some(7))?;
        child.check()?;
        place(fd, Some(3)).map(drop)
    })
    .spoiled_by(move || place(fd, Some(0)).map(drop)))
}
