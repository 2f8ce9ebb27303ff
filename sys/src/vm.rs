//! Memory of other processes.

use crate::{Pid, Result, Tid};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// `/proc/PID/mem`: reads and writes another process's memory, also where its own protection
/// forbids it (`FOLL_FORCE`; proc_pid_mem(5)).
#[derive(Debug)]
pub struct ProcMem {
    file: File,
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

impl ProcMem {
    /// Opens the memory of a process.
    ///
    /// # Errors
    /// `ENOENT` when it is gone, `EACCES` without ptrace access.
    pub fn open(pid: Pid) -> Result<ProcMem> {
        crate::procdir::open(pid, "mem", OFlag::O_RDWR).map(|file| ProcMem { file })
    }

    /// Opens the memory of a process through one of its threads: a leader that has ended has none.
    ///
    /// # Errors
    /// As [`ProcMem::open`].
    pub fn of_thread(pid: Pid, tid: Tid) -> Result<ProcMem> {
        crate::procdir::open(pid, &format!("task/{tid}/mem"), OFlag::O_RDWR)
            .map(|file| ProcMem { file })
    }

    /// Fills `buffer` from address `va`.
    ///
    /// # Errors
    /// `EIO` when part of the range is not mapped.
    pub fn read(&self, va: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, va).map_err(|e| errno(&e))
    }

    /// Reads `len` bytes from address `va`.
    ///
    /// # Errors
    /// As [`ProcMem::read`].
    pub fn read_vec(&self, va: u64, len: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; len];
        self.read(va, &mut buffer)?;
        Ok(buffer)
    }

    /// Reads a 64-bit word.
    ///
    /// # Errors
    /// As [`ProcMem::read`].
    pub fn read_u64(&self, va: u64) -> Result<u64> {
        let mut word = [0; 8];
        self.read(va, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Writes `bytes` to address `va`, breaking copy-on-write where needed.
    ///
    /// # Errors
    /// `EIO` when part of the range is not mapped or cannot be written even by force.
    pub fn write(&self, va: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, va).map_err(|e| errno(&e))
    }
}

/// A range of this process's address space that may be read by the kernel as the source of a
/// copy. It is an address, not a reference: what lies there (old physical pages, a file) may be
/// changed by others.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    address: usize,
    len: usize,
}

impl Source {
    /// Describes `len` bytes at `address`. Safe because it is only ever handed to the kernel as
    /// something to read from, which answers EFAULT where nothing is mapped.
    #[must_use]
    pub fn new(address: usize, len: usize) -> Source {
        Source { address, len }
    }

    /// Bytes in the range.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where it begins.
    pub(crate) fn address(&self) -> u64 {
        self.address as u64
    }

    /// Its first `len` bytes, or all of it.
    #[must_use]
    pub fn first(&self, len: usize) -> Source {
        Source {
            len: self.len.min(len),
            ..*self
        }
    }

    /// What lies behind its first `len` bytes.
    #[must_use]
    pub fn behind(&self, len: usize) -> Source {
        let len = self.len.min(len);
        Source {
            address: self.address + len,
            len: self.len - len,
        }
    }

    /// Whether the range is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl From<&[u8]> for Source {
    fn from(bytes: &[u8]) -> Source {
        Source {
            address: bytes.as_ptr() as usize,
            len: bytes.len(),
        }
    }
}

/// process_vm_writev(2): copies each source to its address in the process. The targets must be
/// writable there. Up to 1024 pieces a call (`UIO_MAXIOV`); longer lists are split.
///
/// # Errors
/// `EFAULT` when a target (or source) is not mapped so; `EIO` for a short copy.
pub fn write_process(pid: Pid, pieces: &[(Source, u64)]) -> Result<()> {
    for chunk in pieces.chunks(1024) {
        let local: Vec<libc::iovec> = chunk
            .iter()
            .map(|(source, _)| libc::iovec {
                iov_base: source.address as *mut _,
                iov_len: source.len,
            })
            .collect();
        let remote: Vec<libc::iovec> = chunk
            .iter()
            .map(|(source, va)| libc::iovec {
                iov_base: *va as *mut _,
                iov_len: source.len,
            })
            .collect();
        let total: usize = chunk.iter().map(|(source, _)| source.len).sum();
        // SAFETY: the local ranges are only read, by the kernel, which checks them; the remote
        // ranges are in another process.
        let done = unsafe {
            libc::process_vm_writev(
                pid.0,
                local.as_ptr(),
                local.len() as u64,
                remote.as_ptr(),
                remote.len() as u64,
                0,
            )
        };
        if done == -1 {
            return Err(Errno::last());
        }
        if done.cast_unsigned() != total {
            return Err(Errno::EIO);
        }
    }
    Ok(())
}

/// process_vm_readv(2): fills `buffer` from the given ranges (address, length) of the process, one
/// after the other.
///
/// # Errors
/// `EFAULT` when a range is not readable; `EIO` for a short copy; `EINVAL` when the buffer does not
/// fit the ranges.
pub fn read_process(pid: Pid, ranges: &[(u64, usize)], buffer: &mut [u8]) -> Result<()> {
    if ranges.iter().map(|(_, len)| len).sum::<usize>() != buffer.len() {
        return Err(Errno::EINVAL);
    }
    let mut rest = buffer;
    for chunk in ranges.chunks(1024) {
        let total: usize = chunk.iter().map(|(_, len)| len).sum();
        let (now, later) = rest.split_at_mut(total);
        rest = later;
        let local = libc::iovec {
            iov_base: now.as_mut_ptr().cast(),
            iov_len: total,
        };
        let remote: Vec<libc::iovec> = chunk
            .iter()
            .map(|(va, len)| libc::iovec {
                iov_base: *va as *mut _,
                iov_len: *len,
            })
            .collect();
        // SAFETY: `local` describes a buffer this function borrows mutably.
        let done = unsafe {
            libc::process_vm_readv(
                pid.0,
                &raw const local,
                1,
                remote.as_ptr(),
                remote.len() as u64,
                0,
            )
        };
        if done == -1 {
            return Err(Errno::last());
        }
        if done.cast_unsigned() != total {
            return Err(Errno::EIO);
        }
    }
    Ok(())
}

/// madvise(2) `MADV_POPULATE_READ`: brings every page of a mapping of this process in.
///
/// # Errors
/// As madvise(2).
pub fn populate_read(address: u64, len: usize) -> Result<()> {
    // SAFETY: populating reads pages into the page table and changes no memory.
    let done = unsafe { libc::madvise(address as *mut _, len, libc::MADV_POPULATE_READ) };
    Errno::result(done).map(drop)
}

/// pwrite(2) from each source to its offset in the file.
///
/// # Errors
/// As pwrite(2); `EFAULT` when a source is not mapped; `EIO` for a short write.
pub fn write_file(file: impl AsFd, pieces: &[(Source, u64)]) -> Result<()> {
    for (source, offset) in pieces {
        let mut done = 0;
        while done < source.len {
            let at = offset + done as u64;
            let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
            let address = (source.address + done) as *const libc::c_void;
            let fd = file.as_fd().as_raw_fd();
            // SAFETY: the range is only read, by the kernel, which checks it.
            let wrote = unsafe { libc::pwrite64(fd, address, source.len - done, at) };
            match usize::try_from(wrote) {
                Ok(0) => return Err(Errno::EIO),
                Ok(wrote) => done += wrote,
                Err(_) if Errno::last() == Errno::EINTR => {}
                Err(_) => return Err(Errno::last()),
            }
        }
    }
    Ok(())
}

/// New shared memory as `mmap(MAP_SHARED | MAP_ANONYMOUS)` makes it, as a descriptor that can be mapped:
/// of `len` bytes, in huge pages of `huge_page` bytes when given.
///
/// # Errors
/// As mmap(2); `EPERM` without CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
pub fn shared_anonymous(len: usize, huge_page: Option<u64>) -> Result<OwnedFd> {
    let huge = huge_page.map_or(0, |bytes| {
        libc::MAP_HUGETLB | (bytes.trailing_zeros() << libc::MAP_HUGE_SHIFT).cast_signed()
    });
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | huge;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping where the kernel finds room touches no other memory.
    let address = unsafe { libc::mmap(core::ptr::null_mut(), len, prot, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let me = Pid(nix::unistd::getpid().as_raw());
    let start = address as usize;
    let link = format!("map_files/{start:x}-{:x}", start + len);
    let opened = crate::procdir::open(me, &link, nix::fcntl::OFlag::O_RDWR);
    // SAFETY: the mapping made above, to which nothing refers.
    unsafe { libc::munmap(address, len) };
    opened.map(OwnedFd::from)
}

/// memfd_create(2) with flags that libraries do not know yet.
///
/// # Errors
/// `EINVAL` for unknown flags, among others.
pub fn memfd(name: &core::ffi::CStr, flags: u32) -> Result<OwnedFd> {
    // SAFETY: the name is a terminated string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    Errno::result(fd)?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
