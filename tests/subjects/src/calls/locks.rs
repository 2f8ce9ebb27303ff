//! Waiting for file locks.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use crate::kit::{Kin, SOON, Setting, Watch, args, blocked, raw, sys, until};

/// The lock of a whole file (struct flock).
pub(super) fn whole(kind: i32) -> libc::flock {
    // SAFETY: zeros are a valid structure.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock
}

/// One kind of lock.
#[derive(Clone, Copy)]
struct Kind {
    /// The call that waits for it.
    number: i64,
    take: fn(i32) -> i64,
    leave: fn(i32) -> i64,
    /// Takes it if it is free.
    attempt: fn(i32) -> i64,
}

impl Kind {
    /// Waits for the lock, tells by a file that it has had it, lets go of it and waits until the other side has it
    /// again.
    fn turn(self, fd: i32, had: &Path) -> i64 {
        let result = (self.take)(fd);
        if File::create(had).is_err() {
            return -1;
        }
        loop {
            (self.leave)(fd);
            sleep(Duration::from_millis(1));
            if (self.attempt)(fd) != 0 {
                return result;
            }
        }
    }

    /// Lets the other side have the lock once.
    fn lend(self, fd: i32, had: &Path) -> Result<()> {
        sys("release", (self.leave)(fd))?;
        until("the other side has the lock", SOON, || had.exists())?;
        fs::remove_file(had)?;
        sys("the lock", (self.take)(fd)).map(drop)
    }

    /// Two descriptions of one file in one process.
    fn watch(self, setting: &Setting) -> Result<Watch> {
        let path = setting.fresh("file");
        let (ours, theirs) = (open(&path)?, open(&path)?);
        let had = setting.fresh("had");
        let told = had.clone();
        sys("the lock", (self.take)(ours.as_raw_fd()))?;
        blocked(
            self.number,
            move || self.turn(theirs.as_raw_fd(), &had),
            0,
            move || self.lend(ours.as_raw_fd(), &told),
        )
    }
}

fn open(path: &Path) -> Result<File> {
    let mut options = File::options();
    let options = options.create(true).truncate(false).read(true).write(true);
    Ok(options.open(path)?)
}

fn whole_file(fd: i32, operation: i32) -> i64 {
    raw(libc::SYS_flock, args([fd as u64, operation as u64]))
}

/// flock
pub(crate) fn flock(setting: &Setting) -> Result<Watch> {
    Kind {
        number: libc::SYS_flock,
        take: |fd| whole_file(fd, libc::LOCK_EX),
        leave: |fd| whole_file(fd, libc::LOCK_UN),
        attempt: |fd| whole_file(fd, libc::LOCK_EX | libc::LOCK_NB),
    }
    .watch(setting)
}

fn fcntl(fd: i32, command: i32, kind: i32) -> i64 {
    let lock = whole(kind);
    raw(
        libc::SYS_fcntl,
        args([fd as u64, command as u64, &raw const lock as u64]),
    )
}

/// Locks of open file descriptions
pub(crate) fn ofd(setting: &Setting) -> Result<Watch> {
    Kind {
        number: libc::SYS_fcntl,
        take: |fd| fcntl(fd, libc::F_OFD_SETLKW, libc::F_WRLCK),
        leave: |fd| fcntl(fd, libc::F_OFD_SETLKW, libc::F_UNLCK),
        attempt: |fd| fcntl(fd, libc::F_OFD_SETLK, libc::F_WRLCK),
    }
    .watch(setting)
}

/// Locks of processes: a child holds it and lends it.
pub(crate) fn posix(setting: &Setting) -> Result<Watch> {
    let kind = Kind {
        number: libc::SYS_fcntl,
        take: |fd| fcntl(fd, libc::F_SETLKW, libc::F_WRLCK),
        leave: |fd| fcntl(fd, libc::F_SETLK, libc::F_UNLCK),
        attempt: |fd| fcntl(fd, libc::F_SETLK, libc::F_WRLCK),
    };
    let file = open(&setting.fresh("file"))?;
    let ours = file.as_raw_fd();
    let had = setting.fresh("had");
    let told = had.clone();
    let mut child = Kin::start(setting, "child", move |_| {
        sys("the lock", (kind.take)(ours))?;
        Ok(Watch::new(move || kind.lend(ours, &told)))
    })?;
    blocked(
        kind.number,
        move || kind.turn(file.as_raw_fd(), &had),
        0,
        move || child.check(),
    )
}
