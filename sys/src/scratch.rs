//! The memory that batches run from, made in this process for its children to inherit.

use crate::tracee::Scratch;
use crate::{Errno, PAGE_SIZE, PAGE_SIZE_U64, Result, batch};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// A scratch mapping of this process: one page with the batch loop, then room for tables and data.
/// Children made while it lives have it too, at the same address.
#[derive(Debug)]
pub struct OwnScratch {
    address: NonNull<c_void>,
    len: usize,
}

impl OwnScratch {
    /// Maps `len` bytes at exactly `address` (multiples of the page size) and puts the loop there.
    ///
    /// # Errors
    /// `EEXIST` when something is mapped there.
    pub fn map(address: u64, len: usize) -> Result<OwnScratch> {
        let at = usize::try_from(address).ok().and_then(NonZeroUsize::new);
        let size = NonZeroUsize::new(len).filter(|len| len.get() > PAGE_SIZE);
        let size = size.ok_or(Errno::EINVAL)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: with FIXED_NOREPLACE nothing that exists is touched.
        let address = unsafe { mmap_anonymous(at, size, prot, flags) }?;
        let code = batch::page();
        // SAFETY: the new mapping is longer than a page, the code a page, and nobody else knows it.
        unsafe {
            core::ptr::copy_nonoverlapping(code.as_ptr(), address.as_ptr().cast(), code.len())
        };
        let run = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
        // SAFETY: the first page of our mapping, to which no reference exists.
        unsafe { mprotect(address, PAGE_SIZE, run) }?;
        Ok(OwnScratch { address, len })
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> Scratch {
        Scratch {
            address: self.address.as_ptr() as u64,
            len: self.len,
        }
    }

    /// First address behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        (self.address.as_ptr() as u64 + self.len as u64).next_multiple_of(PAGE_SIZE_U64)
    }
}

impl Drop for OwnScratch {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference into it exists.
        let _ = unsafe { munmap(self.address, self.len) };
    }
}
