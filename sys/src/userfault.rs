//! userfaultfd(2), to put pages into another process's memory: they are copied into new frames that nobody clears
//! or pins first (ioctl_userfaultfd(2), `UFFDIO_COPY`). And what makes one for a program that handles faults itself.

use crate::raw::syscall;
use crate::vm::Source;
use crate::{Errno, Pid, Result};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Flags to make one with: it is never to answer faults, so those of the kernel itself fail instead of waiting.
pub const FLAGS: i32 = libc::O_CLOEXEC | UFFD_USER_MODE_ONLY;

// include/uapi/linux/userfaultfd.h
/// Faults of the kernel itself are not told.
pub const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFD_API: u64 = 0xaa;
/// Faults where no page is.
pub const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
/// Writes to pages that are protected ([`protect`]).
pub const UFFDIO_REGISTER_MODE_WP: u64 = 2;
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1;
const UFFDIO_COPY_MODE_DONTWAKE: u64 = 1;

/// `struct uffdio_api`
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    /// Bytes copied, or the error as a negative number.
    copy: i64,
}

/// `struct uffdio_zeropage`
#[repr(C)]
struct Zeros {
    start: u64,
    len: u64,
    mode: u64,
    /// Bytes put in, or the error as a negative number.
    done: i64,
}

/// `struct uffdio_writeprotect`
#[repr(C)]
struct Protect {
    start: u64,
    len: u64,
    mode: u64,
}

/// `_IOWR(0xaa, NUMBER, T)`
const fn request<T>(number: u64) -> u64 {
    3 << 30 | (size_of::<T>() as u64) << 16 | UFFD_API << 8 | number
}

/// Memory of another process, as long as none of it is used: no fault is ever answered. When the value is dropped, and
/// the process has closed its own descriptor, the memory is what it was before.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl Userfault {
    /// Takes descriptor `fd` of the process, made there with [`FLAGS`].
    ///
    /// # Errors
    /// As pidfd_getfd(2), and `EINVAL` when it is something else.
    pub fn take(pid: Pid, fd: i32) -> Result<Userfault> {
        let pidfd = crate::process::pidfd_open(pid)?;
        let this = Userfault(crate::process::pidfd_getfd(pidfd.as_fd(), fd)?);
        set_up(&this.0, 0)?;
        Ok(this)
    }

    /// Names memory that pages are to be put into: private anonymous mappings, the whole of each.
    ///
    /// # Errors
    /// `EINVAL` and `EPERM` for other memory, `EBUSY` when it has another one.
    pub fn register(&self, start: u64, len: u64) -> Result<()> {
        register(&self.0, (start, len), UFFDIO_REGISTER_MODE_MISSING)
    }

    /// Copies each source, whole pages, to its address in the process, whatever the protection there is.
    ///
    /// # Errors
    /// `EEXIST` where a page is already, `ENOENT` where nothing is registered, `EFAULT` when a source is not mapped.
    pub fn copy(&self, pieces: &[(Source, u64)]) -> Result<()> {
        for (source, va) in pieces {
            let mut done = 0;
            while done < source.len() as u64 {
                let mut copy = Copy {
                    dst: va + done,
                    src: source.address() + done,
                    len: source.len() as u64 - done,
                    mode: UFFDIO_COPY_MODE_DONTWAKE,
                    copy: 0,
                };
                let failed = ioctl(&self.0, request::<Copy>(3), &mut copy).err();
                // Some may have been copied before that.
                match (failed, u64::try_from(copy.copy)) {
                    (Some(Errno::EAGAIN) | None, Ok(copied)) if copied > 0 => done += copied,
                    (failed, _) => return Err(failed.unwrap_or(Errno::EIO)),
                }
            }
        }
        Ok(())
    }
}

/// Makes one for this process, which is not set up yet.
///
/// # Errors
/// `EPERM` and `ENOSYS` where that is not allowed.
pub fn make() -> Result<OwnedFd> {
    // SAFETY: no pointers.
    let made = unsafe { syscall(libc::SYS_userfaultfd, [FLAGS as u64, 0, 0, 0, 0, 0]) }?;
    // SAFETY: the kernel has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(made as i32) })
}

/// Says which features are wanted (`UFFD_FEATURE_*`), before anything else.
///
/// # Errors
/// `EINVAL` for those that the kernel does not know, or when that has been said.
pub fn set_up(fd: &OwnedFd, features: u64) -> Result<()> {
    let mut api = Api {
        api: UFFD_API,
        features,
        ioctls: 0,
    };
    ioctl(fd, request::<Api>(0x3f), &mut api)
}

/// Has faults of a range told, address and bytes, of the kinds `modes` names.
///
/// # Errors
/// `EINVAL` and `EPERM` for memory that it cannot be, `EBUSY` when another one has it.
pub fn register(fd: &OwnedFd, (start, len): (u64, u64), modes: u64) -> Result<()> {
    let mut range = Register {
        start,
        len,
        mode: modes,
        ioctls: 0,
    };
    ioctl(fd, request::<Register>(0), &mut range)
}

/// Maps the page of zeros where no page is, in a range that is registered.
///
/// # Errors
/// `EEXIST` where a page is already.
pub fn put_zeros(fd: &OwnedFd, (start, len): (u64, u64)) -> Result<()> {
    let mut done = 0;
    while done < len {
        let mut zeros = Zeros {
            start: start + done,
            len: len - done,
            mode: 0,
            done: 0,
        };
        let failed = ioctl(fd, request::<Zeros>(4), &mut zeros).err();
        // Some may have been mapped before that.
        match (failed, u64::try_from(zeros.done)) {
            (Some(Errno::EAGAIN) | None, Ok(some)) if some > 0 => done += some,
            (failed, _) => return Err(failed.unwrap_or(Errno::EIO)),
        }
    }
    Ok(())
}

/// Has writes to a range told that is registered for that, until it is taken back.
///
/// # Errors
/// `ENOENT` where it is not registered.
pub fn protect(fd: &OwnedFd, (start, len): (u64, u64)) -> Result<()> {
    let mut range = Protect {
        start,
        len,
        mode: UFFDIO_WRITEPROTECT_MODE_WP,
    };
    ioctl(fd, request::<Protect>(6), &mut range)
}

fn ioctl<T>(fd: &OwnedFd, request: u64, argument: &mut T) -> Result<()> {
    let args = [
        fd.as_raw_fd() as u64,
        request,
        core::ptr::from_mut(argument) as u64,
        0,
        0,
        0,
    ];
    // SAFETY: every request names the size of its argument, which lives through the call; a source is only
    // read, by the kernel, which checks it, and what is written is memory without pages, which nobody refers to.
    unsafe { syscall(libc::SYS_ioctl, args) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_SIZE;

    /// In this process itself: nobody else maps the memory before it is there.
    #[test]
    fn pages_are_put_in_once() {
        // SAFETY: no pointers.
        let made = unsafe { syscall(libc::SYS_userfaultfd, [FLAGS as u64, 0, 0, 0, 0, 0]) };
        let Ok(fd) = made else {
            return;
        };
        let me = Pid(nix::unistd::getpid().as_raw());
        let fault = Userfault::take(me, i32::try_from(fd).unwrap()).unwrap();
        let map = memmap2::MmapMut::map_anon(4 * PAGE_SIZE).unwrap();
        let to = map.as_ptr() as u64;
        let page = vec![7_u8; 2 * PAGE_SIZE];
        let pieces = [(Source::from(&page[..]), to + PAGE_SIZE as u64)];
        assert_eq!(fault.copy(&pieces), Err(Errno::ENOENT));
        fault.register(to, map.len() as u64).unwrap();
        fault.copy(&pieces).unwrap();
        assert_eq!(fault.copy(&pieces), Err(Errno::EEXIST));
        drop(fault);
        nix::unistd::close(i32::try_from(fd).unwrap()).unwrap();
        assert_eq!(map[PAGE_SIZE..3 * PAGE_SIZE], page);
        assert_eq!(map[..PAGE_SIZE], [0; PAGE_SIZE]);
    }
}
