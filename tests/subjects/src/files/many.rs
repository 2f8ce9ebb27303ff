//! Many descriptors, and high numbers.

use std::fs;
use std::path::Path;

use anyhow::Result;
use libc::{O_RDONLY, O_RDWR};

use crate::kit::files::{close, fcntl, open, place, read, seen, share, write};
use crate::kit::{Setting, Watch, fd, same, sys};

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

/// A file at a place, another number for it, an eventfd with a count, and a pipe.
struct Row {
    number: i32,
    file: i32,
    copy: i32,
    event: i32,
    reader: i32,
    writer: i32,
}

impl Row {
    fn open(path: &Path, number: i32) -> Result<Self> {
        // Some are kept over exec, not the same of every kind.
        let flag = |every: i32, flag: i32| if number % every == 0 { flag } else { 0 };
        let file = open(path, O_RDONLY | flag(3, libc::O_CLOEXEC))?;
        place(file, Some(number.into()))?;
        let copy = fcntl(file, libc::F_DUPFD, 0)?;
        // SAFETY: no pointers.
        let event = unsafe { libc::eventfd(0, flag(2, libc::EFD_CLOEXEC)) };
        let event = fd("eventfd", event)?;
        write(event, &count(number))?;
        let mut ends = [0; 2];
        // SAFETY: there is room for two numbers.
        let made = unsafe { libc::pipe2(ends.as_mut_ptr(), flag(5, libc::O_CLOEXEC)) };
        sys("pipe2", made)?;
        let [reader, writer] = ends;
        Ok(Self {
            number,
            file,
            copy,
            event,
            reader,
            writer,
        })
    }

    /// What it is, and that everything is connected as it was.
    fn observe(&self) -> Result<(i64, bool, Vec<i32>)> {
        let me = std::process::id().cast_signed();
        same("a count", &count(self.number)[..], &read(self.event, 8)?)?;
        write(self.event, &count(self.number))?;
        write(self.writer, &count(self.number))?;
        let came = read(self.reader, 16)?;
        same("what came through a pipe", &count(self.number)[..], &came)?;
        let all = [self.file, self.copy, self.event, self.reader, self.writer];
        let flags = all.iter().map(|fd| fcntl(*fd, libc::F_GETFD, 0));
        Ok((
            place(self.file, None)?,
            share(self.file, me, self.copy)?,
            flags.collect::<Result<_>>()?,
        ))
    }
}

fn count(number: i32) -> [u8; 8] {
    (i64::from(number) + 1).to_ne_bytes()
}

/// Hundreds of several kinds, and a number in between that nothing has.
pub(crate) fn kinds(setting: &Setting) -> Result<Watch> {
    const ROWS: i32 = 120;
    let path = setting.fresh("file");
    fs::write(&path, [0; ROWS as usize])?;
    let mut rows = Vec::new();
    let mut between = None;
    for number in 0..ROWS {
        if number == 2 * ROWS / 3 {
            between = Some(open(&path, O_RDONLY)?);
        }
        rows.push(Row::open(&path, number)?);
    }
    between.into_iter().for_each(close);
    let broken = rows[ROWS as usize / 2].copy;
    let observe = move || rows.iter().map(Row::observe).collect::<Result<Vec<_>>>();
    Ok(Watch::keep(observe)?.spoiled_by(move || fcntl(broken, libc::F_SETFD, 1).map(drop)))
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
