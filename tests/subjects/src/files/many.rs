//! Many descriptors, and high numbers.

use std::fs;

use anyhow::Result;
use libc::{O_RDONLY, O_RDWR};

use crate::kit::files::{close, fcntl, open, place, seen};
use crate::kit::{Setting, Watch, same, sys};

const COUNT: i32 = 4000;

/// The same file again and again, each at a place of its own.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("file");
    fs::write(&path, vec![0; COUNT as usize])?;
    let mut numbers = Vec::new();
    for number in 0..COUNT {
        let fd = open(&path, O_RDONLY)?;
        place(fd, Some(number.into()))?;
        numbers.push(fd);
    }
    let last = numbers[COUNT as usize - 1];
    Ok(Watch::new(move || {
        numbers
            .iter()
            .zip(0..)
            .try_for_each(|(fd, number)| same("a place", &number, &place(*fd, None)?))
    })
    .spoiled_by(move || place(last, Some(0)).map(drop)))
}

/// How many files may be open.
fn limit() -> Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure is alive.
    sys("getrlimit", unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit)
    })?;
    Ok(limit)
}

/// Close to the limit, and nothing between.
pub(crate) fn high(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("file");
    fs::write(&path, "text")?;
    let fd = open(&path, O_RDWR)?;
    let highest = i32::try_from(limit()?.rlim_cur.min(15_000))? - 1;
    for number in [777, highest] {
        fcntl(fd, libc::F_DUPFD, number)?;
    }
    close(fd);
    place(highest, Some(2))?;
    let observe = move || {
        let count = fs::read_dir("/proc/self/fd")?.count();
        Ok((count, seen(777)?, seen(highest)?, place(highest, None)?))
    };
    Ok(Watch::keep(observe)?.spoiled_by(|| place(777, Some(0)).map(drop)))
}

/// The last number that a process may have at all.
pub(crate) fn last(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("file");
    fs::write(&path, "text")?;
    let fd = open(&path, O_RDWR)?;
    /// A table of descriptors takes eight bytes for each.
    const MOST: u64 = 1 << 20;
    let mut limit = limit()?;
    limit.rlim_max = limit.rlim_max.min(MOST);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the same.
    sys("setrlimit", unsafe {
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    })?;
    let last = i32::try_from(limit.rlim_max)? - 1;
    fcntl(fd, libc::F_DUPFD, last)?;
    close(fd);
    place(last, Some(2))?;
    let observe = move || Ok((seen(last)?, place(last, None)?));
    Ok(Watch::keep(observe)?.spoiled_by(move || place(last, Some(0)).map(drop)))
}
