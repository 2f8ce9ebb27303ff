//! Reading what is not there yet, writing where there is no room.

use std::fs;
use std::os::unix::ffi::OsStrExt;

use anyhow::Result;

use super::polling::{pipe, pull, push};
use crate::kit::{Setting, Watch, args, blocked, fd, raw, sys};

/// An empty pipe.
pub(crate) fn empty_pipe(_: &Setting) -> Result<Watch> {
    let [read, write] = pipe()?;
    blocked(libc::SYS_read, move || pull(read), 1, move || push(write))
}

fn read(from: i32, bytes: &mut [u8]) -> i64 {
    raw(
        libc::SYS_read,
        args([from as u64, bytes.as_mut_ptr() as u64, bytes.len() as u64]),
    )
}

fn write(to: i32, bytes: &[u8]) -> i64 {
    raw(
        libc::SYS_write,
        args([to as u64, bytes.as_ptr() as u64, bytes.len() as u64]),
    )
}

/// Bytes that a new pipe has room for.
const ROOM: usize = 65536;

/// A full pipe: a page is taken out, a page fits in.
pub(crate) fn full_pipe(_: &Setting) -> Result<Watch> {
    let [from, to] = pipe()?;
    sys("filling", write(to, &[1; ROOM]))?;
    blocked(
        libc::SYS_write,
        move || write(to, &[2; 4096]),
        4096,
        move || sys("read", read(from, &mut [0; 4096])).map(drop),
    )
}

/// An eventfd at zero.
pub(crate) fn eventfd(_: &Setting) -> Result<Watch> {
    // SAFETY: takes numbers.
    let event = fd("eventfd", unsafe { libc::eventfd(0, 0) })?;
    blocked(
        libc::SYS_read,
        move || {
            let mut count = [0; 8];
            read(event, &mut count) + 10 * i64::from(count[0])
        },
        38,
        move || sys("write", write(event, &3_u64.to_ne_bytes())).map(drop),
    )
}

/// A timerfd that is set when the check wants it.
pub(crate) fn timerfd(_: &Setting) -> Result<Watch> {
    // SAFETY: takes numbers.
    let timer = fd("timerfd", unsafe {
        libc::timerfd_create(libc::CLOCK_MONOTONIC, 0)
    })?;
    blocked(
        libc::SYS_read,
        move || read(timer, &mut [0; 8]),
        8,
        move || {
            // Once, after a millisecond.
            let once = [0_u64, 0, 0, 1_000_000];
            let set = raw(
                libc::SYS_timerfd_settime,
                args([timer as u64, 0, once.as_ptr() as u64]),
            );
            sys("timerfd_settime", set).map(drop)
        },
    )
}

/// A directory in which something is made.
pub(crate) fn inotify(setting: &Setting) -> Result<Watch> {
    let dir = setting.fresh("dir");
    fs::create_dir(&dir)?;
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: the path is a C string.
    let notify = unsafe {
        let notify = fd("inotify", libc::inotify_init1(0))?;
        sys(
            "watch",
            libc::inotify_add_watch(notify, path.as_ptr(), libc::IN_DELETE),
        )?;
        notify
    };
    blocked(
        libc::SYS_read,
        move || read(notify, &mut [0; 256]),
        32,
        move || {
            let file = dir.join("file");
            fs::write(&file, "")?;
            Ok(fs::remove_file(&file)?)
        },
    )
}

/// open(2) waits for the other side.
pub(crate) fn fifo(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("fifo");
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a C string.
    sys("mkfifo", unsafe { libc::mkfifo(name.as_ptr(), 0o600) })?;
    blocked(
        libc::SYS_openat,
        move || {
            let at = libc::AT_FDCWD as u64;
            let opened = raw(
                libc::SYS_openat,
                args([at, name.as_ptr() as u64, libc::O_RDONLY as u64]),
            );
            let result = pull(opened as i32);
            // Until the writer is gone: the next open shall wait for another one.
            while pull(opened as i32) > 0 {}
            raw(libc::SYS_close, args([opened as u64]));
            result
        },
        1,
        move || Ok(fs::write(&path, "x")?),
    )
}
