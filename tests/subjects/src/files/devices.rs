//! Devices.

use anyhow::Result;
use libc::{O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY};

use crate::kit::files::{open, read, seen, write};
use crate::kit::{Setting, Watch, not_here, same, sys};

/// Those without a state of their own.
pub(crate) fn start(setting: &Setting) -> Result<Watch> {
    let names = ["null", "zero", "full", "random", "urandom"];
    let mut devices = Vec::new();
    for (name, flags) in
        names
            .into_iter()
            .zip([O_RDWR, O_RDONLY, O_RDWR, O_RDONLY | O_NONBLOCK, O_RDONLY])
    {
        devices.push(open(format!("/dev/{name}"), flags)?);
    }
    let removed = removed(setting)?;
    let [null, zero, full, random, urandom] = devices[..] else {
        return not_here("five devices");
    };
    let observe = move || {
        devices
            .iter()
            .map(|device| seen(*device))
            .collect::<Result<Vec<_>>>()
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || {
            crate::kit::files::close(full);
            open("/dev/zero", O_RDWR).map(drop)
        })
        .and(removed)
        .and(Watch::new(move || {
            write(null, b"x")?;
            same("null", &0, &read(null, 1)?.len())?;
            same("zero", &vec![0; 9], &read(zero, 9)?)?;
            same("full", &true, &write(full, b"x").is_err())?;
            same(
                "random",
                &(8, 8),
                &(read(random, 8)?.len(), read(urandom, 8)?.len()),
            )
        })))
}

/// By a node that was removed since.
fn removed(setting: &Setting) -> Result<Watch> {
    let path = setting.fresh("node");
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: the path is a C string.
    sys("mknod", unsafe {
        libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o640, libc::makedev(1, 5))
    })?;
    let Ok(zero) = open(&path, O_RDWR) else {
        return Ok(Watch::new(|| Ok(())));
    };
    std::os::unix::fs::chown(&path, Some(12), Some(34))?;
    std::fs::remove_file(&path)?;
    let kept = Watch::keep(move || stat_of(zero))?;
    Ok(kept.and(Watch::new(move || {
        same("a removed node", &vec![0; 5], &read(zero, 5)?)
    })))
}

/// By a node that user space has made in `/dev`, in a directory of its own; another one leads to no device.
pub(crate) fn made(_: &Setting) -> Result<Watch> {
    let directory = format!("/dev/kupgrade-subject-{}", std::process::id());
    let (path, other) = (format!("{directory}/zero"), format!("{directory}/none"));
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir(&directory)?;
    for (path, minor) in [(&path, 5), (&other, 250)] {
        let name = std::ffi::CString::new(path.as_str())?;
        // SAFETY: the path is a C string.
        let made = unsafe {
            let device = libc::makedev(1, minor);
            libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o640, device)
        };
        if made != 0 {
            return not_here("no devices may be made");
        }
    }
    let zero = open(&path, O_RDWR)?;
    let observe = move || {
        use std::os::unix::fs::MetadataExt;
        let node = |path: &str| Ok::<_, anyhow::Error>(std::fs::metadata(path)?.rdev());
        Ok((seen(zero)?, stat_of(zero)?, node(&path)?, node(&other)?))
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || Ok(std::fs::remove_dir_all(&directory)?))
        .and(Watch::new(move || {
            same("what it holds", &vec![0; 5], &read(zero, 5)?)
        })))
}

/// Mode, links, owner and device.
fn stat_of(fd: i32) -> Result<(u32, u64, (u32, u32), u64)> {
    use std::os::unix::fs::MetadataExt;
    let file = std::mem::ManuallyDrop::new(held(fd));
    let found = file.metadata()?;
    Ok((
        found.mode(),
        found.nlink(),
        (found.uid(), found.gid()),
        found.rdev(),
    ))
}

/// References (`O_PATH`) to nodes that are removed, one of them with another in its place.
pub(crate) fn references(setting: &Setting) -> Result<Watch> {
    let (link, device) = (setting.fresh("link"), setting.fresh("device"));
    std::os::unix::fs::symlink("leads/nowhere", &link)?;
    let name = std::ffi::CString::new(device.as_os_str().as_encoded_bytes())?;
    // SAFETY: the path is a C string.
    sys("mknod", unsafe {
        libc::mknod(name.as_ptr(), libc::S_IFBLK | 0o604, libc::makedev(7, 99))
    })?;
    std::os::unix::fs::lchown(&link, Some(56), Some(78))?;
    let fds = [
        open(&link, libc::O_PATH | libc::O_NOFOLLOW)?,
        open(&device, libc::O_PATH | libc::O_CLOEXEC)?,
    ];
    std::fs::remove_file(&link)?;
    std::fs::remove_file(&device)?;
    std::fs::write(&device, "another file")?;
    let target = move || {
        let mut text = [0_u8; 99];
        // SAFETY: an empty path, and a buffer of this size.
        let len = sys("readlinkat", unsafe {
            libc::readlinkat(fds[0], c"".as_ptr(), text.as_mut_ptr().cast(), text.len())
        })?;
        anyhow::Ok(String::from_utf8_lossy(&text[..len as usize]).into_owned())
    };
    let observe = move || {
        let paths = fds.map(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok());
        Ok((fds.map(|fd| stat_of(fd).ok()), paths, target()?))
    };
    Ok(Watch::keep(observe)?
        .spoiled_by(move || {
            crate::kit::files::close(fds[1]);
            open("/dev/null", libc::O_PATH).map(drop)
        })
        .and(Watch::new(move || {
            let now = std::fs::read_to_string(&device)?;
            same("the other file", "another file", now.as_str())
        })))
}

/// Devices that only answer requests.
pub(crate) fn controls(_: &Setting) -> Result<Watch> {
    let Ok(control) = open("/dev/loop-control", O_RDWR) else {
        return not_here("/dev/loop-control");
    };
    Ok(
        Watch::keep(move || Ok((stat_of(control)?, seen(control)?)))?.spoiled_by(move || {
            crate::kit::files::fcntl(control, libc::F_SETFL, O_NONBLOCK).map(drop)
        }),
    )
}

fn held(fd: i32) -> std::fs::File {
    use std::os::fd::FromRawFd;
    // SAFETY: the descriptor stays open: its only user forgets the file.
    unsafe { std::fs::File::from_raw_fd(fd) }
}

/// The kernel's log: the next record is the one after those that were read.
pub(crate) fn kmsg(_: &Setting) -> Result<Watch> {
    let Ok(log) = open("/dev/kmsg", O_RDONLY | O_NONBLOCK) else {
        return not_here("/dev/kmsg may not be read");
    };
    // SAFETY: takes numbers; SEEK_END is behind the last record.
    sys("lseek", unsafe { libc::lseek(log, 0, libc::SEEK_END) })?;
    let Ok(writer) = open("/dev/kmsg", O_WRONLY) else {
        return not_here("/dev/kmsg may not be written");
    };
    let hear = move || {
        // Without its end a record waits for more of the same line.
        write(writer, b"a subject says hello\n")?;
        let mut found = false;
        while let Ok(record) = read(log, 8192) {
            found |= String::from_utf8_lossy(&record).contains("a subject says hello");
        }
        anyhow::Ok(found)
    };
    if !hear()? {
        return not_here("the kernel's log takes no records of programs");
    }
    Ok(Watch::new(move || same("the record", &true, &hear()?)))
}
