//! Instances of inotify(7) and groups of fanotify(7), which are counted for the user who has made them.

use anyhow::{Context, Result};

use crate::kit::{Setting, Watch, fd, same, sys};

/// Two users together have more than one may (`fs.inotify.max_user_instances`, 128 by default).
const USERS: [u32; 2] = [71_001, 71_002];
const EACH: usize = 70;

/// What a user makes.
type Make = fn() -> i32;

pub(crate) fn inotify(_: &Setting) -> Result<Watch> {
    // SAFETY: takes numbers.
    of_users(|| unsafe { libc::inotify_init1(libc::IN_CLOEXEC) })
}

pub(crate) fn fanotify(_: &Setting) -> Result<Watch> {
    // SAFETY: takes numbers.
    of_users(|| unsafe { libc::fanotify_init(libc::FAN_CLOEXEC | libc::FAN_REPORT_FID, 0) })
}

fn of_users(make: Make) -> Result<Watch> {
    let mut made = Vec::new();
    for user in USERS {
        for _ in 0..EACH {
            made.push(fd("made", as_user(user, make)?)?);
        }
    }
    let more = move || {
        let all = USERS.into_iter().map(|user| more(user, make));
        all.collect::<Result<Vec<usize>>>()
    };
    let before = more()?;
    let one = made[0];
    let watch = Watch::new(move || same("how many more they may make", &before, &more()?));
    // SAFETY: made above.
    Ok(watch.spoiled_by(move || sys("close", unsafe { libc::close(one) }).map(drop)))
}

/// How many more a user may make.
fn more(user: u32, make: Make) -> Result<usize> {
    let made = std::iter::from_fn(|| as_user(user, make).ok().filter(|fd| *fd >= 0));
    let made: Vec<i32> = made.collect();
    for fd in &made {
        // SAFETY: made above.
        sys("close", unsafe { libc::close(*fd) })?;
    }
    Ok(made.len())
}

/// What a function returns that is called by this thread with another effective user.
fn as_user(user: u32, make: Make) -> Result<i32> {
    let become_user = |user: u32| {
        let keep = u32::MAX;
        // SAFETY: takes numbers.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, keep, user, keep) };
        sys("setresuid", done).map(drop)
    };
    become_user(user).context("another user")?;
    let made = make();
    become_user(0)?;
    Ok(made)
}
