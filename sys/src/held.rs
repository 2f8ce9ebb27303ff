//! Pages of our own that stay in memory, written to by offset and known by frame.

use crate::{PAGE_SIZE, Result};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

/// `MADV_DONTNEED_LOCKED` (include/uapi/asm-generic/mman-common.h).
const DONTNEED_LOCKED: i32 = 24;

/// A range of anonymous memory, all of it present and locked (mlock(2)).
#[derive(Debug)]
pub struct HeldPages {
    address: NonNull<c_void>,
    len: usize,
}

impl HeldPages {
    /// Takes `pages` pages, zeroed, in huge pages where the kernel has them at hand.
    ///
    /// # Errors
    /// `ENOMEM` when there is not so much memory, or by RLIMIT_MEMLOCK without CAP_IPC_LOCK;
    /// `EINVAL` for none.
    pub fn new(pages: usize) -> Result<HeldPages> {
        HeldPages::with_advice(pages, MmapAdvise::MADV_HUGEPAGE)
    }

    /// As [`HeldPages::new`], each page by itself, so that each can be given back by itself.
    ///
    /// # Errors
    /// As [`HeldPages::new`].
    pub fn new_single(pages: usize) -> Result<HeldPages> {
        HeldPages::with_advice(pages, MmapAdvise::MADV_NOHUGEPAGE)
    }

    fn with_advice(pages: usize, advice: MmapAdvise) -> Result<HeldPages> {
        let len = pages.checked_mul(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        let size = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address the kernel picks; no reference into it is made.
        let address = unsafe { mmap_anonymous(None, size, protection, flags) }?;
        let held = HeldPages { address, len };
        // SAFETY: the range is the mapping just made; the advice changes no contents.
        let _ = unsafe { madvise(address, len, advice) };
        // SAFETY: as above.
        unsafe { mlock(address, len) }?;
        Ok(held)
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.len / PAGE_SIZE
    }

    /// Copies `bytes` to byte `offset`.
    ///
    /// # Errors
    /// `ERANGE` when they do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len()).ok_or(Errno::ERANGE)?;
        if end > self.len {
            return Err(Errno::ERANGE);
        }
        let to = self.address.cast::<u8>().as_ptr().wrapping_add(offset);
        // SAFETY: `to` and the bytes behind it lie inside of the mapping, which is writable and
        // which no reference covers; `bytes` cannot overlap it for the same reason.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Gives pages back to the kernel (`MADV_DONTNEED_LOCKED`, Linux 5.18). Their place stays: what
    /// is written there later lies in other frames.
    ///
    /// # Errors
    /// `ERANGE` for pages that are not ours; `EINVAL` before Linux 5.18.
    pub fn give_back(&mut self, pages: std::ops::Range<usize>) -> Result<()> {
        if pages.start > pages.end || pages.end > self.pages() {
            return Err(Errno::ERANGE);
        }
        let start = self
            .address
            .as_ptr()
            .wrapping_byte_add(pages.start * PAGE_SIZE);
        // SAFETY: the range lies in the mapping, which no reference covers.
        let done = unsafe { libc::madvise(start, pages.len() * PAGE_SIZE, DONTNEED_LOCKED) };
        Errno::result(done).map(drop)
    }

    /// The page frame of each page, in order (`/proc/self/pagemap`).
    ///
    /// # Errors
    /// `EPERM` when the kernel does not tell them (CAP_SYS_ADMIN is missing).
    pub fn frames(&self) -> Result<Vec<u64>> {
        let failed = |e: std::io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let pagemap = File::open("/proc/self/pagemap").map_err(failed)?;
        let mut words = vec![0; self.pages() * 8];
        let first = (self.address.as_ptr() as usize / PAGE_SIZE) as u64;
        pagemap
            .read_exact_at(&mut words, first * 8)
            .map_err(failed)?;
        let frame = |word: &[u8; 8]| u64::from_le_bytes(*word) & ((1 << 55) - 1);
        let frames: Vec<u64> = words.as_chunks().0.iter().map(frame).collect();
        if frames.contains(&0) {
            return Err(Errno::EPERM);
        }
        Ok(frames)
    }
}

impl Drop for HeldPages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        let _ = unsafe { munmap(self.address, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_stay_inside_and_frames_differ() {
        let mut held = HeldPages::new(8).unwrap();
        assert_eq!(held.pages(), 8);
        held.write(4090, &[7; 20]).unwrap();
        assert_eq!(held.write(8 * PAGE_SIZE - 1, &[1, 2]), Err(Errno::ERANGE));
        assert_eq!(held.write(usize::MAX, &[1, 2]), Err(Errno::ERANGE));
        match held.frames() {
            Ok(mut frames) => {
                frames.sort_unstable();
                frames.dedup();
                assert_eq!(frames.len(), 8);
            }
            Err(errno) => assert_eq!(errno, Errno::EPERM),
        }
        assert!(HeldPages::new(0).is_err());
    }

    #[test]
    fn pages_given_back_are_gone() {
        let mut held = HeldPages::new_single(8).unwrap();
        held.give_back(1..8).unwrap();
        assert_eq!(held.give_back(7..9), Err(Errno::ERANGE));
        // A page that is not there has no frame.
        assert_eq!(held.frames(), Err(Errno::EPERM));
    }
}
