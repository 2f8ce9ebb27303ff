//! memfd_create(2)

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};

use anyhow::Result;
use libc::{
    F_ADD_SEALS, F_GET_SEALS, F_SEAL_GROW, F_SEAL_SHRINK, F_SEAL_WRITE, MAP_SHARED, PROT_READ,
    PROT_WRITE,
};

use crate::kit::files::close;
use crate::kit::{Area, PAGE, SOON, Setting, Watch, errno, fd, fork, same, sys, until};

fn create(name: &CStr, pages: usize) -> Result<i32> {
    // SAFETY: the name is a C string; the descriptor is ours.
    let file =
        unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    fd("memfd_create", file)?;
    // SAFETY: a call on a descriptor of ours.
    sys("ftruncate", unsafe {
        libc::ftruncate(file, (pages * PAGE) as i64)
    })?;
    Ok(file)
}

/// Contents with a hole, a position, a name, a mapping of it.
pub(crate) fn start(_: &Setting) -> Result<Watch> {
    let file = create(c"some name", 16)?;
    let area = Area::map(16, PROT_READ | PROT_WRITE, MAP_SHARED, file)?;
    area.part(0, 4).fill(16);
    area.part(12, 4).fill(17);
    // SAFETY: a call on a descriptor of ours.
    sys("lseek", unsafe { libc::lseek(file, 12345, libc::SEEK_SET) })?;
    let mut watch = Watch::keep(move || {
        let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: the kernel fills the structure; zeros are a valid one as well.
        let stat = unsafe {
            sys("fstat", libc::fstat(file, stat.as_mut_ptr()))?;
            stat.assume_init()
        };
        // SAFETY: calls on a descriptor of ours.
        let (place, flags) = unsafe {
            (
                libc::lseek(file, 0, libc::SEEK_CUR),
                libc::fcntl(file, libc::F_GETFD),
            )
        };
        let name = std::fs::read_link(format!("/proc/self/fd/{file}"))?;
        Ok((
            stat.st_size,
            stat.st_mode,
            stat.st_blocks,
            place,
            flags,
            name,
        ))
    })?;
    watch = watch.spoiled_by(move || {
        // SAFETY: a call on a descriptor of ours.
        sys("lseek", unsafe { libc::lseek(file, 0, libc::SEEK_SET) }).map(drop)
    });
    Ok(watch.and(Watch::new(move || {
        area.part(0, 4).check(16)?;
        area.part(12, 4).check(17)?;
        let mut word = [0; 8];
        // SAFETY: the buffer has the length that is given.
        sys("pread", unsafe {
            libc::pread(file, word.as_mut_ptr().cast(), 8, 13 * PAGE as i64)
        })?;
        same(
            "what the descriptor reads",
            &area.get(13, 0),
            &u64::from_ne_bytes(word),
        )
    })))
}

/// What a mapping has behind the end of a file, in its last page. The file itself does not have it.
pub(crate) fn tail(_: &Setting) -> Result<Watch> {
    const INSIDE: i64 = 100;
    let file = create(c"with a tail", 2)?;
    let area = Area::map(2, PROT_READ | PROT_WRITE, MAP_SHARED, file)?;
    area.put(0, 0, 18);
    let end = PAGE as i64 + INSIDE;
    // SAFETY: a call on a descriptor of ours.
    sys("ftruncate", unsafe { libc::ftruncate(file, end) })?;
    area.put(1, 2, 19);
    area.put(1, 500, 20);
    Ok(Watch::new(move || {
        let found = (area.get(0, 0), area.get(1, 2), area.get(1, 500));
        same("what is mapped", &(18, 19, 20), &found)?;
        // SAFETY: a call on a descriptor of ours.
        let size = unsafe { libc::lseek(file, 0, libc::SEEK_END) };
        same("the size of the file", &end, &size)
    })
    .spoiled_by(move || {
        area.put(1, 500, 0);
        Ok(())
    }))
}

/// Times of long ago and far ahead (behind what fits into nanoseconds), an attribute, and blocks behind the end and in a hole (fallocate(2)).
pub(crate) fn attributes(setting: &Setting) -> Result<Watch> {
    let memfd = create(c"with attributes", 3)?;
    let directory = setting.path("directory");
    let directory = directory.parent().unwrap_or(&directory).to_path_buf();
    let nameless = crate::kit::files::open(directory, libc::O_TMPFILE | libc::O_RDWR)?;
    let time = |tv_sec| libc::timespec { tv_sec, tv_nsec: 7 };
    for file in [memfd, nameless] {
        crate::kit::files::write(file, b"first")?;
        let (keep, punch) = (
            libc::FALLOC_FL_KEEP_SIZE,
            libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE,
        );
        let times = [time(1_000_000_000), time(12_000_000_000)];
        let value = b"value";
        // SAFETY: calls on descriptors of ours with strings and structures that live.
        unsafe {
            sys("fallocate", libc::fallocate(file, keep, 0, 1 << 20))?;
            if file == memfd {
                sys("fallocate", libc::fallocate(file, punch, 8192, 8192))?;
            }
            sys(
                "fsetxattr",
                libc::fsetxattr(
                    file,
                    c"trusted.subject".as_ptr(),
                    value.as_ptr().cast(),
                    value.len(),
                    0,
                ),
            )?;
            sys("futimens", libc::futimens(file, times.as_ptr()))?;
            // So that it is written, and its blocks are counted as they will be.
            sys("fsync", libc::fsync(file))?;
        }
    }
    let state = |file| {
        let mut value = [0_u8; 16];
        // SAFETY: zeros are a valid structure, which the kernel fills; the buffer has the length that is given.
        unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            sys("fstat", libc::fstat(file, &raw mut stat))?;
            let at = value.as_mut_ptr().cast();
            let name = c"trusted.subject".as_ptr();
            let len = libc::fgetxattr(file, name, at, value.len());
            let times = (stat.st_atime, stat.st_mtime, stat.st_mtime_nsec);
            anyhow::Ok((stat.st_size, stat.st_blocks, times, len, value))
        }
    };
    Ok(
        Watch::keep(move || Ok((state(memfd)?, state(nameless)?)))?.spoiled_by(move || {
            // SAFETY: a call on a descriptor of ours.
            sys("futimens", unsafe {
                libc::futimens(memfd, std::ptr::null())
            })
            .map(drop)
        }),
    )
}

/// Three seals: they are the same, and they work.
pub(crate) fn seals(_: &Setting) -> Result<Watch> {
    let file = create(c"sealed", 2)?;
    // SAFETY: calls on a descriptor of ours; the buffer has the length that is given.
    unsafe {
        sys(
            "write",
            libc::write(file, b"sealed".as_ptr().cast(), 6) as i64,
        )?;
        sys(
            "seals",
            libc::fcntl(
                file,
                F_ADD_SEALS,
                F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE,
            ),
        )?;
    }
    let mut expected = F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE;
    let area = Area::map(2, PROT_READ, MAP_SHARED, file)?;
    let first = area.get(0, 0);
    Ok(Watch::new(move || {
        // SAFETY: calls on a descriptor of ours; the buffer has the length that is given.
        let (seals, written) = unsafe {
            (
                libc::fcntl(file, F_GET_SEALS),
                libc::pwrite(file, b"x".as_ptr().cast(), 1, 0),
            )
        };
        same("a write", &(-1, libc::EPERM), &(written, errno()))?;
        same("the seals", &expected, &seals)?;
        same("the contents", &first, &area.get(0, 0))?;
        // Not sealed against more seals: one more works, once.
        expected |= libc::F_SEAL_SEAL;
        // SAFETY: a call on a descriptor of ours.
        let more = unsafe { libc::fcntl(file, F_ADD_SEALS, libc::F_SEAL_SEAL) };
        if seals & libc::F_SEAL_SEAL == 0 {
            sys("one more seal", more)?;
        }
        Ok(())
    }))
}

/// Two programs that run from memfds: one that lost it, one that has it open for writing, with seals.
pub(crate) fn program(_: &Setting) -> Result<Watch> {
    let one = run(false, 0)?;
    let other = run(
        true,
        F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | libc::F_SEAL_SEAL,
    )?;
    let look = |(pid, file): (i32, i32)| {
        let text = |what: &str| std::fs::read(format!("/proc/{pid}/{what}"));
        let link = |what: String| std::fs::read_link(format!("/proc/{pid}/{what}")).ok();
        let program = std::fs::File::open(format!("/proc/{pid}/exe"))?;
        // SAFETY: a call on a descriptor of ours.
        let seals = unsafe { libc::fcntl(program.as_raw_fd(), F_GET_SEALS) };
        let opened = text(&format!("fdinfo/{file}")).unwrap_or_default();
        let flags = String::from_utf8_lossy(&opened);
        let flags = flags.lines().find(|line| line.starts_with("flags:"));
        anyhow::Ok((
            (text("exe")?.len(), seals, text("cmdline")?),
            (link("exe".into()), link(format!("fd/{file}"))),
            flags.map(str::to_owned),
        ))
    };
    Ok(
        Watch::keep(move || Ok((look(one)?, look(other)?)))?.spoiled_by(move || {
            // SAFETY: a child of ours that nobody has waited for.
            sys("kill", unsafe { libc::kill(other.0, libc::SIGKILL) }).map(drop)
        }),
    )
}

/// Who has a memfd from memfd_create(2) has it not open for writing, as the kernel counts: it can be executed, and a lease
/// for reading be taken. With a second description by open(2) neither works.
pub(crate) fn launched(_: &Setting) -> Result<Watch> {
    let make = || {
        let file = create(c"launched", 1)?;
        crate::kit::files::write(file, &std::fs::read("/bin/true")?)?;
        anyhow::Ok(file)
    };
    let (alone, opened) = (make()?, make()?);
    let again = crate::kit::files::open(format!("/proc/self/fd/{opened}"), libc::O_RDWR)?;
    let starts = |file: i32| {
        // SAFETY: calls on a descriptor of ours.
        let lease = unsafe {
            let taken = libc::fcntl(file, libc::F_SETLEASE, libc::F_RDLCK);
            libc::fcntl(file, libc::F_SETLEASE, libc::F_UNLCK);
            taken
        };
        let pid = fork(|| {
            let arguments = [c"true".as_ptr(), std::ptr::null()];
            // SAFETY: both end with a null pointer; the exit status is an error number.
            unsafe {
                libc::fexecve(file, arguments.as_ptr(), arguments[1..].as_ptr());
                libc::_exit(errno());
            }
        })?;
        let mut status = 0;
        // SAFETY: a child of ours.
        sys("waitpid", unsafe { libc::waitpid(pid, &raw mut status, 0) })?;
        anyhow::Ok((lease, libc::WEXITSTATUS(status)))
    };
    same("a memfd", &(0, 0), &starts(alone)?)?;
    let leased = create(c"leased", 1)?;
    // SAFETY: calls on a descriptor of ours.
    unsafe {
        sys("seals", libc::fcntl(leased, F_ADD_SEALS, F_SEAL_GROW))?;
        sys(
            "lease",
            libc::fcntl(leased, libc::F_SETLEASE, libc::F_RDLCK),
        )?;
    }
    // SAFETY: as above.
    let told = move || unsafe {
        let [seals, lease] = [F_GET_SEALS, libc::F_GETLEASE].map(|what| libc::fcntl(leased, what));
        (seals, lease)
    };
    let watch = Watch::keep(move || Ok((starts(alone)?, starts(opened)?, starts(again)?, told())))?;
    Ok(watch.spoiled_by(move || {
        let path = format!("/proc/self/fd/{alone}");
        crate::kit::files::open(path, libc::O_RDWR).map(drop)
    }))
}

/// Starts sleep(1) from a memfd.
fn run(kept: bool, seals: i32) -> Result<(i32, i32)> {
    let flags = if seals == 0 {
        0
    } else {
        libc::MFD_ALLOW_SEALING
    };
    let flags = if kept {
        flags
    } else {
        flags | libc::MFD_CLOEXEC
    };
    // SAFETY: the name is a C string; the descriptor is ours.
    let file = fd("memfd_create", unsafe {
        libc::memfd_create(c"program".as_ptr(), flags)
    })?;
    // SAFETY: the descriptor is ours alone.
    let mut writer = unsafe { std::fs::File::from_raw_fd(file) };
    writer.write_all(&std::fs::read("/bin/sleep")?)?;
    let file = writer.into_raw_fd();
    if seals != 0 {
        // SAFETY: a call on a descriptor of ours.
        sys("seals", unsafe { libc::fcntl(file, F_ADD_SEALS, seals) })?;
    }
    let pid = fork(|| {
        let arguments = [c"a name".as_ptr(), c"1000000".as_ptr(), std::ptr::null()];
        let environment = [std::ptr::null()];
        // SAFETY: both end with a null pointer; nothing of this program is used afterwards.
        unsafe { libc::fexecve(file, arguments.as_ptr(), environment.as_ptr()) };
    })?;
    let runs = || std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.starts_with(b"a"));
    until("it runs", SOON, runs)?;
    // Until then its loader opens libraries, with the number that the memfd had.
    let sleeps = || {
        let now = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        let number = now.split(' ').next().and_then(|word| word.parse().ok());
        [libc::SYS_clock_nanosleep, libc::SYS_nanosleep]
            .map(Some)
            .contains(&number)
    };
    until("it sleeps", SOON, sleeps)?;
    close(file);
    Ok((pid, file))
}
