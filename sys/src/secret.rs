//! Memory that nobody but its processes reaches (memfd_secret(2)): the kernel reads it for nobody else, and only through
//! a mapping of their own.

use crate::{Errno, PAGE_SIZE, Result};
use memmap2::{MmapOptions, MmapRaw};
use nix::sys::statfs::fstatfs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// include/uapi/linux/magic.h
const SECRETMEM_MAGIC: i64 = 0x5345_434d;

/// New secret memory, without any size yet, closed on exec.
///
/// # Errors
/// `ENOSYS` where the kernel has none, or it is switched off.
pub fn new() -> Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Whether a descriptor is of secret memory.
#[must_use]
pub fn is_one(fd: BorrowedFd<'_>) -> bool {
    fstatfs(fd).is_ok_and(|found| found.filesystem_type().0 == SECRETMEM_MAGIC)
}

/// Copies the pages that are there to a file, where the others stay holes.
///
/// # Errors
/// As mmap(2) and pwrite(2).
pub fn copy_out(secret: BorrowedFd<'_>, size: u64, to: &OwnedFd) -> Result<()> {
    let Some(mapped) = map(secret, size)? else {
        return Ok(());
    };
    let mut there = vec![0_u8; mapped.len().div_ceil(PAGE_SIZE)];
    // SAFETY: the kernel writes a byte for each page of the mapping, for which there is room.
    let done =
        unsafe { libc::mincore(mapped.as_mut_ptr().cast(), mapped.len(), there.as_mut_ptr()) };
    Errno::result(done)?;
    for (page, _) in there
        .iter()
        .enumerate()
        .filter(|(_, there)| **there & 1 != 0)
    {
        let at = page * PAGE_SIZE;
        // SAFETY: the page is in the mapping, and only the kernel reads it.
        let wrote = unsafe {
            let from = mapped.as_ptr().add(at).cast();
            libc::pwrite64(to.as_raw_fd(), from, PAGE_SIZE, at as i64)
        };
        whole(wrote, PAGE_SIZE)?;
    }
    Ok(())
}

/// Copies parts of a file, offsets and lengths, to the same places.
///
/// # Errors
/// As mmap(2) and pread(2).
pub fn copy_in(
    secret: BorrowedFd<'_>,
    size: u64,
    from: &OwnedFd,
    parts: impl Iterator<Item = (u64, u64)>,
) -> Result<()> {
    let Some(mapped) = map(secret, size)? else {
        return Ok(());
    };
    for (start, len) in parts {
        let (start, len) = (start as usize, len as usize);
        let end = start.checked_add(len).ok_or(Errno::EOVERFLOW)?;
        if end > mapped.len() {
            return Err(Errno::ERANGE);
        }
        // SAFETY: the part lies in the mapping, to which nothing refers.
        let read = unsafe {
            let to = mapped.as_mut_ptr().add(start).cast();
            libc::pread64(from.as_raw_fd(), to, len, start as i64)
        };
        whole(read, len)?;
    }
    Ok(())
}

fn whole(done: isize, wanted: usize) -> Result<()> {
    match Errno::result(done)?.cast_unsigned() == wanted {
        true => Ok(()),
        false => Err(Errno::EIO),
    }
}

/// A mapping of all of it; None when it has no size.
fn map(secret: BorrowedFd<'_>, size: u64) -> Result<Option<MmapRaw>> {
    let len = usize::try_from(size).map_err(|_| Errno::EOVERFLOW)?;
    if len == 0 {
        return Ok(None);
    }
    let len = len.next_multiple_of(PAGE_SIZE);
    let mapped = MmapOptions::new().len(len).map_raw(&secret.as_fd());
    let errno = |e: std::io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    mapped.map(Some).map_err(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_and_go() {
        let Ok(secret) = new() else { return };
        let size = 3 * PAGE_SIZE as u64;
        nix::unistd::ftruncate(&secret, size as i64).unwrap();
        let file = crate::vm::memfd(c"test", 1).unwrap();
        nix::sys::uio::pwrite(&file, &[7; PAGE_SIZE], PAGE_SIZE as i64).unwrap();
        let part = (PAGE_SIZE as u64, PAGE_SIZE as u64);
        copy_in(secret.as_fd(), size, &file, [part].into_iter()).unwrap();
        assert!(copy_in(secret.as_fd(), size, &file, [(size, 1)].into_iter()).is_err());
        let out = crate::vm::memfd(c"test", 1).unwrap();
        copy_out(secret.as_fd(), size, &out).unwrap();
        let found = nix::sys::stat::fstat(&out).unwrap();
        assert_eq!((found.st_size, found.st_blocks), (2 * PAGE_SIZE as i64, 8));
        let mut bytes = [0; PAGE_SIZE];
        nix::sys::uio::pread(&out, &mut bytes, PAGE_SIZE as i64).unwrap();
        assert_eq!(bytes, [7; PAGE_SIZE]);
        assert!(is_one(secret.as_fd()) && !is_one(out.as_fd()));
    }
}
