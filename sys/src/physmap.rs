//! Physical memory through `/dev/mem` (mem(4)).
//!
//! What is mapped here may vanish (the kernel takes a range back when a driver claims it), so
//! nothing in this module follows a pointer into it: every copy is made by the kernel, which
//! answers `EFAULT` where a load would be a SIGBUS.

use crate::vm::Source;
use crate::{PAGE_SIZE_U64, Result};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;

/// An open `/dev/mem`, or a file laid out like physical memory.
#[derive(Debug)]
pub struct DevMem {
    file: File,
    writable: bool,
}

impl DevMem {
    /// Opens `path`. Without `O_SYNC`: the mapping is cached like ordinary memory.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`; `EPERM` under lockdown(7).
    pub fn open(path: &Path, writable: bool) -> Result<DevMem> {
        OpenOptions::new()
            .read(true)
            .write(writable)
            .custom_flags(libc::O_CLOEXEC)
            .open(path)
            .map(|file| DevMem { file, writable })
            .map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    /// Maps `len` bytes at physical address `start`, both multiples of the page size.
    ///
    /// # Errors
    /// `EPERM` when a page of it is RAM of the running kernel or claimed by a driver
    /// (CONFIG_STRICT_DEVMEM); `EINVAL` for what is not aligned or empty.
    pub fn map(&self, start: u64, len: usize) -> Result<PhysWindow> {
        if !start.is_multiple_of(PAGE_SIZE_U64) || !(len as u64).is_multiple_of(PAGE_SIZE_U64) {
            return Err(Errno::EINVAL);
        }
        let size = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        let offset = i64::try_from(start).map_err(|_| Errno::EINVAL)?;
        let mut protection = ProtFlags::PROT_READ;
        if self.writable {
            protection |= ProtFlags::PROT_WRITE;
        }
        // SAFETY: a new mapping at an address the kernel picks; no reference into it is made.
        let address = unsafe {
            mmap(
                None,
                size,
                protection,
                MapFlags::MAP_SHARED,
                &self.file,
                offset,
            )?
        };
        Ok(PhysWindow { address, len })
    }
}

/// A mapped range of physical memory. Offsets are in bytes from its start.
#[derive(Debug)]
pub struct PhysWindow {
    address: NonNull<c_void>,
    len: usize,
}

// SAFETY: the mapping belongs to the whole process and is only handed to the kernel as an address.
unsafe impl Send for PhysWindow {}
// SAFETY: as above; concurrent copies out of it do not disturb each other.
unsafe impl Sync for PhysWindow {}

impl PhysWindow {
    /// Bytes mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true; a window has at least one page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn check(&self, offset: usize, len: usize) -> Result<usize> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.address.as_ptr() as usize + offset),
            _ => Err(Errno::ERANGE),
        }
    }

    /// The range as a source of [`crate::vm::write_process`].
    ///
    /// # Errors
    /// `ERANGE` when it does not lie inside the window.
    pub fn source(&self, offset: usize, len: usize) -> Result<Source> {
        self.check(offset, len)
            .map(|address| Source::new(address, len))
    }

    /// Copies from the window into `buffer`.
    ///
    /// # Errors
    /// `ERANGE` outside of the window; `EFAULT` when the kernel has taken the memory back.
    pub fn copy_to(&self, offset: usize, buffer: &mut [u8]) -> Result<()> {
        let address = self.check(offset, buffer.len())?;
        let (window, ours) = (address as *mut c_void, buffer.as_mut_ptr().cast());
        // process_vm_writev reads its local side with ordinary user accesses, which work on
        // memory without struct pages; only the remote side (ours) must be pageable.
        transfer(libc::SYS_process_vm_writev, window, ours, buffer.len())
    }

    /// Copies `bytes` into the window (opened writable).
    ///
    /// # Errors
    /// As [`PhysWindow::copy_to`]; `EFAULT` also for a window that is not writable.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let address = self.check(offset, bytes.len())?;
        let ours = bytes.as_ptr().cast_mut().cast();
        transfer(
            libc::SYS_process_vm_readv,
            address as *mut c_void,
            ours,
            bytes.len(),
        )
    }
}

/// One copy between a window and a buffer of ours by process_vm_readv(2)/process_vm_writev(2) on
/// ourselves, the window being the local side.
fn transfer(call: i64, window: *mut c_void, ours: *mut c_void, len: usize) -> Result<()> {
    let mut done = 0;
    while done < len {
        let piece = |base: *mut c_void| libc::iovec {
            iov_base: base.wrapping_byte_add(done),
            iov_len: len - done,
        };
        let (local, remote) = (piece(window), piece(ours));
        // SAFETY: the callers pass `ours` from a slice they borrow (mutably for writev, which
        // writes to it) and `window` from a checked range of the mapping, to which readv writes
        // and which no reference covers. The kernel checks every access.
        let moved = unsafe {
            libc::syscall(
                call,
                libc::getpid(),
                &raw const local,
                1_u64,
                &raw const remote,
                1_u64,
                0_u64,
            )
        };
        match usize::try_from(moved) {
            Ok(0) => return Err(Errno::EFAULT),
            Ok(moved) => done += moved,
            Err(_) => return Err(Errno::last()),
        }
    }
    Ok(())
}

impl Drop for PhysWindow {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        let _ = unsafe { munmap(self.address, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!(
            "physmap-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    }

    #[test]
    fn copies_both_ways_inside_the_window_only() {
        let bytes: Vec<u8> = (0..12288_u32).map(|n| (n / 7) as u8).collect();
        let path = file(&bytes);
        let memory = DevMem::open(&path, true).unwrap();
        let window = memory.map(4096, 8192).unwrap();
        let mut buffer = [0; 100];
        window.copy_to(50, &mut buffer).unwrap();
        assert_eq!(buffer, bytes[4146..4246]);
        window.write(4000, &[0xee; 200]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[8096..8296], [0xee; 200]);
        assert_eq!(window.copy_to(8100, &mut buffer), Err(Errno::ERANGE));
        assert_eq!(window.source(usize::MAX, 2).unwrap_err(), Errno::ERANGE);
        assert_eq!(memory.map(1, 4096).unwrap_err(), Errno::EINVAL);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn memory_that_vanished_is_an_error_not_a_signal() {
        let path = file(&[1; 8192]);
        let memory = DevMem::open(&path, false).unwrap();
        let window = memory.map(0, 8192).unwrap();
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(4096)
            .unwrap();
        let mut buffer = [0; 4096];
        window.copy_to(0, &mut buffer).unwrap();
        assert_eq!(window.copy_to(4096, &mut buffer), Err(Errno::EFAULT));
        assert_eq!(
            window.write(0, b"x"),
            Err(Errno::EFAULT),
            "opened read-only"
        );
        std::fs::remove_file(path).unwrap();
    }
}
