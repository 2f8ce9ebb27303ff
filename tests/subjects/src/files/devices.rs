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
        libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 5))
    })?;
    let Ok(zero) = open(&path, O_RDWR) else {
        return Ok(Watch::new(|| Ok(())));
    };
    std::fs::remove_file(&path)?;
    Ok(Watch::new(move || {
        same("a removed node", &vec![0; 5], &read(zero, 5)?)
    }))
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
