//! File locks: who holds them, and against whom.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use libc::{
    F_GETLK, F_OFD_GETLK, F_OFD_SETLK, F_RDLCK, F_SETLK, F_UNLCK, F_WRLCK, LOCK_EX, LOCK_NB,
    LOCK_SH, LOCK_UN, O_RDWR,
};

use crate::kit::files::{F_SETSIG, close, fcntl, open};
use crate::kit::{Kin, Setting, Watch, args, fd, raw, same, sys, take_signal};

fn file(setting: &Setting, name: &str) -> Result<std::path::PathBuf> {
    let path = setting.fresh(name);
    fs::write(&path, "0123456789")?;
    Ok(path)
}

/// Does flock(2) with LOCK_NB succeed on another description?
fn free(path: &Path, kind: i32) -> Result<bool> {
    let other = open(path, O_RDWR)?;
    let taken = raw(
        libc::SYS_flock,
        args([other as u64, (kind | LOCK_NB) as u64]),
    );
    close(other);
    Ok(taken == 0)
}

/// One shared by a description with two descriptors, one exclusive.
pub(crate) fn flock(setting: &Setting) -> Result<Watch> {
    let (shared, exclusive) = (file(setting, "shared")?, file(setting, "exclusive")?);
    let (one, two) = (open(&shared, O_RDWR)?, open(&exclusive, O_RDWR)?);
    // SAFETY: takes numbers.
    let dup = fd("dup", unsafe { libc::dup(two) })?;
    close(two);
    sys(
        "flock",
        raw(libc::SYS_flock, args([one as u64, LOCK_SH as u64])),
    )?;
    sys(
        "flock",
        raw(libc::SYS_flock, args([dup as u64, LOCK_EX as u64])),
    )?;
    Ok(Watch::new(move || {
        same(
            "shared: a reader, a writer",
            &(true, false),
            &(free(&shared, LOCK_SH)?, free(&shared, LOCK_EX)?),
        )?;
        same("exclusive: a reader", &false, &free(&exclusive, LOCK_SH)?)?;
        // The lock belongs to the description: letting go works.
        sys(
            "unlock",
            raw(libc::SYS_flock, args([dup as u64, LOCK_UN as u64])),
        )?;
        same(
            "exclusive: a writer afterwards",
            &true,
            &free(&exclusive, LOCK_EX)?,
        )?;
        sys(
            "flock",
            raw(libc::SYS_flock, args([dup as u64, LOCK_EX as u64])),
        )
        .map(drop)
    })
    .spoiled_by(move || {
        sys(
            "unlock",
            raw(libc::SYS_flock, args([one as u64, LOCK_UN as u64])),
        )
        .map(drop)
    }))
}

/// A lock of a removed file that is mapped as well: its descriptor holds it.
pub(crate) fn mapped_removed(setting: &Setting) -> Result<Watch> {
    let path = file(setting, "removed")?;
    let (one, other) = (open(&path, O_RDWR)?, open(&path, O_RDWR)?);
    let lock = |fd: i32, how: i32| raw(libc::SYS_flock, args([fd as u64, how as u64]));
    sys("flock", lock(one, LOCK_EX))?;
    sys(
        "ftruncate",
        raw(libc::SYS_ftruncate, args([one as u64, 8192])),
    )?;
    let flags = libc::MAP_SHARED as u64;
    let at = raw(libc::SYS_mmap, [0, 8192, 3, flags, one as u64, 0]);
    sys("mmap", at)?;
    fs::remove_file(&path)?;
    Ok(Watch::new(move || {
        let refused = -i64::from(libc::EAGAIN);
        same("who asks", &refused, &lock(other, LOCK_EX | libc::LOCK_NB))?;
        same("who has it", &0, &lock(one, LOCK_EX | libc::LOCK_NB))
    })
    .spoiled_by(move || sys("flock", lock(one, libc::LOCK_UN)).map(drop)))
}

/// A lock that only a mapping of the file holds: its descriptor is closed.
pub(crate) fn mapped(setting: &Setting) -> Result<Watch> {
    let path = file(setting, "mapped")?;
    let fd = open(&path, O_RDWR)?;
    sys(
        "flock",
        raw(libc::SYS_flock, args([fd as u64, LOCK_EX as u64])),
    )?;
    sys(
        "ftruncate",
        raw(libc::SYS_ftruncate, args([fd as u64, 8192])),
    )?;
    let flags = libc::MAP_SHARED as u64;
    let at = raw(libc::SYS_mmap, [0, 8192, 3, flags, fd as u64, 0]);
    sys("mmap", at)?;
    close(fd);
    let taker = move || -> Result<String> {
        let inode = format!(
            ":{}",
            std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path)?)
        );
        let locks = fs::read_to_string("/proc/locks")?;
        let mut lines = locks.lines().map(str::split_whitespace);
        let own = lines.find(|line| line.clone().any(|word| word.ends_with(&inode)));
        let words: Vec<&str> = own.context("there is no lock")?.skip(1).take(4).collect();
        Ok(words.join(" "))
    };
    Ok(Watch::keep(taker)?.spoiled_by(move || {
        sys("munmap", raw(libc::SYS_munmap, args([at as u64, 8192]))).map(drop)
    }))
}

fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn set(file: i32, command: i32, mut lock: libc::flock) -> Result<()> {
    // SAFETY: the structure is alive.
    sys("fcntl", unsafe {
        libc::fcntl(file, command, &raw mut lock)
    })
    .map(drop)
}

/// Who is in the way of a lock for writing: kind, start, length, process.
fn holder(file: i32, command: i32, start: i64, len: i64) -> Result<(i32, i64, i64, i32)> {
    let mut lock = range(F_WRLCK, start, len);
    // SAFETY: the structure is alive.
    sys("F_GETLK", unsafe {
        libc::fcntl(file, command, &raw mut lock)
    })?;
    Ok((lock.l_type.into(), lock.l_start, lock.l_len, lock.l_pid))
}

/// Three ranges of a process, seen from a child that holds a fourth.
pub(crate) fn posix(setting: &Setting) -> Result<Watch> {
    let path = file(setting, "file")?;
    let file = open(&path, O_RDWR)?;
    let parent = std::process::id() as i32;
    set(file, F_SETLK, range(F_WRLCK, 0, 10))?;
    set(file, F_SETLK, range(F_RDLCK, 20, 5))?;
    set(file, F_SETLK, range(F_WRLCK, 100, 0))?;
    let mut child = Kin::start(setting, "child", move |_| {
        set(file, F_SETLK, range(F_WRLCK, 50, 10))?;
        Ok(Watch::new(move || {
            for (kind, start, len) in [(F_WRLCK, 0, 10), (F_RDLCK, 20, 5), (F_WRLCK, 100, 0)] {
                same(
                    "a lock",
                    &(kind, start, len, parent),
                    &holder(file, F_GETLK, start, 1)?,
                )?;
            }
            same("between them", &F_UNLCK, &holder(file, F_GETLK, 10, 10)?.0)
        }))
    })?;
    let pid = child.pid;
    Ok(Watch::new(move || {
        child.check()?;
        same(
            "the child's lock",
            &(F_WRLCK, 50, 10, pid),
            &holder(file, F_GETLK, 40, 30)?,
        )
    })
    .spoiled_by(move || set(file, F_SETLK, range(F_UNLCK, 21, 1))))
}

/// Readers of the same range: the kernel tells of the one that came first, which here is the last that is registered or
/// the last in the tree.
pub(crate) fn order(setting: &Setting) -> Result<Watch> {
    let path = file(setting, "read")?;
    let (one, two) = (open(&path, O_RDWR)?, open(&path, O_RDWR)?);
    let mut child = Kin::start(setting, "child", move |_| {
        set(two, F_SETLK, range(F_RDLCK, 0, 10))?;
        Ok(Watch::new(|| Ok(())))
    })?;
    set(one, F_SETLK, range(F_RDLCK, 0, 0))?;
    set(one, F_OFD_SETLK, range(F_RDLCK, 5, 0))?;
    let path = file(setting, "opened")?;
    let (three, four, asking) = (
        open(&path, O_RDWR)?,
        open(&path, O_RDWR)?,
        open(&path, O_RDWR)?,
    );
    set(four, F_OFD_SETLK, range(F_RDLCK, 7, 1))?;
    set(three, F_OFD_SETLK, range(F_RDLCK, 1, 8))?;
    let (pid, me) = (child.pid, std::process::id() as i32);
    Ok(Watch::new(move || {
        child.check()?;
        let first = (F_RDLCK, 0, 10, pid);
        same("the first of three", &first, &holder(one, F_GETLK, 0, 0)?)?;
        same("another's first", &first, &holder(two, F_OFD_GETLK, 0, 0)?)?;
        same(
            "behind it",
            &(F_RDLCK, 0, 0, me),
            &holder(two, F_OFD_GETLK, 20, 0)?,
        )?;
        let first = (F_RDLCK, 7, 1, -1);
        same(
            "of descriptions",
            &first,
            &holder(asking, F_OFD_GETLK, 0, 0)?,
        )
    })
    .spoiled_by(move || {
        set(four, F_OFD_SETLK, range(F_UNLCK, 7, 1))?;
        set(four, F_OFD_SETLK, range(F_RDLCK, 7, 1))
    }))
}

/// Ranges that belong to two descriptions of one process.
pub(crate) fn ofd(setting: &Setting) -> Result<Watch> {
    let path = file(setting, "file")?;
    let (one, two) = (open(&path, O_RDWR)?, open(&path, O_RDWR)?);
    set(one, F_OFD_SETLK, range(F_WRLCK, 0, 10))?;
    set(two, F_OFD_SETLK, range(F_RDLCK, 10, 10))?;
    Ok(Watch::new(move || {
        let get = libc::F_OFD_GETLK;
        same(
            "the first's",
            &(F_WRLCK, 0, 10, -1),
            &holder(two, get, 0, 10)?,
        )?;
        same(
            "the second's",
            &(F_RDLCK, 10, 10, -1),
            &holder(one, get, 10, 10)?,
        )?;
        same(
            "its own is not in the way",
            &F_UNLCK,
            &holder(one, get, 0, 10)?.0,
        )
    })
    .spoiled_by(move || set(two, F_OFD_SETLK, range(F_UNLCK, 10, 10))))
}

/// A lease for writing of a removed file, which nobody else has: nobody is to look who breaks it.
pub(crate) fn lease_removed(setting: &Setting) -> Result<Watch> {
    let path = file(setting, "removed")?;
    let held = open(&path, O_RDWR)?;
    fs::remove_file(&path)?;
    let mask = 1_u64 << (libc::SIGIO - 1);
    raw(
        libc::SYS_rt_sigprocmask,
        args([0, &raw const mask as u64, 0, 8]),
    );
    fcntl(held, libc::F_SETLEASE, F_WRLCK)?;
    // SAFETY: takes numbers.
    let seek = move |to, how| unsafe { libc::lseek(held, to, how) };
    same("a position", &3, &seek(3, libc::SEEK_SET))?;
    Ok(Watch::new(move || {
        same("a lease", &F_WRLCK, &fcntl(held, libc::F_GETLEASE, 0)?)?;
        same("where it stands", &3, &seek(0, libc::SEEK_CUR))?;
        let told = take_signal(mask).0;
        same("no signal", &-i64::from(libc::EAGAIN), &told)
    })
    .spoiled_by(move || fcntl(held, libc::F_SETLEASE, F_UNLCK).map(drop)))
}

/// A lease for reading and one for writing; whoever opens the file breaks it.
pub(crate) fn lease(setting: &Setting) -> Result<Watch> {
    let (one, two) = (file(setting, "one")?, file(setting, "two")?);
    let reading = open(&one, libc::O_RDONLY)?;
    let writing = open(&two, O_RDWR)?;
    fcntl(reading, libc::F_SETLEASE, F_RDLCK)?;
    let lease = move || {
        fcntl(writing, libc::F_SETLEASE, F_WRLCK)?;
        fcntl(writing, F_SETSIG, 44)
    };
    lease()?;
    let mask = 1_u64 << 43 | 1 << (libc::SIGIO - 1);
    raw(
        libc::SYS_rt_sigprocmask,
        args([0, &raw const mask as u64, 0, 8]),
    );
    Ok(Watch::new(move || {
        for (held, kind) in [(reading, F_RDLCK), (writing, F_WRLCK)] {
            same("a lease", &kind, &fcntl(held, libc::F_GETLEASE, 0)?)?;
        }
        // Breaking it sends the signal, and the opening fails for now.
        same(
            "the other side",
            &true,
            &open(&two, O_RDWR | libc::O_NONBLOCK).is_err(),
        )?;
        let (signal, info) = take_signal(mask);
        same("the signal", &44, &signal)?;
        same("si_fd", &writing.cast_unsigned(), &(info[3] as u32))?;
        fcntl(writing, libc::F_SETLEASE, F_UNLCK)?;
        lease().map(drop)
    })
    .spoiled_by(move || fcntl(reading, libc::F_SETLEASE, F_UNLCK).map(drop)))
}

/// The process that the kernel has noted for the lock of a whole file (fdinfo).
fn noted(file: i32) -> Result<i32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{file}"))?;
    let lock = info.lines().find(|line| line.starts_with("lock:"));
    let lock = lock.context("it is not locked")?;
    let pid = lock.split_whitespace().nth(5).context("no process")?;
    Ok(pid.parse()?)
}

fn lock(file: i32) -> Result<()> {
    // SAFETY: takes numbers.
    sys("flock", unsafe { libc::flock(file, LOCK_EX) }).map(drop)
}

/// Three locks: of a child that has the file still, of one that does not, and of one that has ended.
pub(crate) fn taker(setting: &Setting) -> Result<Watch> {
    let files = ["one", "two", "three"].map(|name| open(&file(setting, name)?, O_RDWR));
    let [one, two, three] = files;
    let (one, two, three) = (one?, two?, three?);
    let mut child = Kin::start(setting, "child", move |_| {
        lock(one)?;
        lock(two)?;
        close(two);
        Ok(Watch::new(move || {
            same("the child's lock", &true, &(noted(one)? > 0))
        }))
    })?;
    // SAFETY: the child makes system calls only.
    let ended = unsafe { libc::fork() };
    if ended == 0 {
        // SAFETY: takes numbers.
        unsafe { libc::_exit(libc::flock(three, LOCK_EX)) }
    }
    // SAFETY: the status is not asked for.
    sys("waitpid", unsafe {
        libc::waitpid(ended, core::ptr::null_mut(), 0)
    })?;
    let pid = child.pid;
    // Who has ended is known in the first PID namespace only, and after an upgrade this is another one.
    let boot = || fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let (first, same_boot) = (noted(three)? == ended, boot()?);
    Ok(Watch::new(move || {
        child.check()?;
        same("who took the first", &pid, &noted(one)?)?;
        same("who took the second", &pid, &noted(two)?)?;
        let third = noted(three)?;
        if first && boot()? == same_boot {
            same("who took the third", &ended, &third)?;
        }
        Ok(())
    })
    .spoiled_by(move || {
        // SAFETY: takes numbers.
        sys("flock", unsafe { libc::flock(two, LOCK_UN) })?;
        lock(two)
    }))
}
