//! memfd_create(2)

use std::ffi::CStr;

use anyhow::Result;
use libc::{
    F_ADD_SEALS, F_GET_SEALS, F_SEAL_GROW, F_SEAL_SHRINK, F_SEAL_WRITE, MAP_SHARED, PROT_READ,
    PROT_WRITE,
};

use crate::kit::{Area, PAGE, Setting, Watch, errno, fd, same, sys};

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
