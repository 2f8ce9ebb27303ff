//! userfaultfd(2), to put pages into another process's memory: they are copied into new frames that nobody clears
//! or pins first (ioctl_userfaultfd(2), `UFFDIO_COPY`).

use crate::raw::syscall;
use crate::vm::Source;
use crate::{Errno, Pid, Result};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Flags to make one with: it is never to answer faults, so those of the kernel itself fail instead of waiting.
pub const FLAGS: i32 = libc::O_CLOEXEC | UFFD_USER_MODE_ONLY;

// include/uapi/linux/userfaultfd.h
const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFD_API: u64 = 0xaa;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
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
        let mut api = Api {
            api: UFFD_API,
            features: 0,
            ioctls: 0,
        };
        this.ioctl(request::<Api>(0x3f), &mut api)?;
        Ok(this)
    }

    /// Names memory that pages are to be put into: private anonymous mappings, the whole of each.
    ///
    /// # Errors
    /// `EINVAL` and `EPERM` for other memory, `EBUSY` when it has another one.
    pub fn register(&self, start: u64, len: u64) -> Result<()> {
        let mut range = Register {
            start,
            len,
            mode: UFFDIO_REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        self.ioctl(request::<Register>(0), &mut range)
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
                let failed = self.ioctl(request::<Copy>(3), &mut copy).err();
                // Some may have been copied before that.
                match (failed, u64::try_from(copy.copy)) {
                    (Some(Errno::EAGAIN) | None, Ok(copied)) if copied > 0 => done += copied,
                    (failed, _) => return Err(failed.unwrap_or(Errno::EIO)),
                }
            }
        }
        Ok(())
    }

    fn ioctl<T>(&self, request: u64, argument: &mut T) -> Result<()> {
        let fd = self.0.as_raw_fd() as u64;
        let args = [fd, request, core::ptr::from_mut(argument) as u64, 0, 0, 0];
        // SAFETY: every request names the size of its argument, which lives through the call; a source is only
        // read, by the kernel, which checks it, and what is written is another process's memory.
        unsafe { syscall(libc::SYS_ioctl, args) }.map(drop)
    }
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
