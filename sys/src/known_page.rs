//! A page of memory whose number and contents are known: by it the kernel's map of all memory is found
//! (`freezer::kernel`).

use crate::{Errno, PAGE_SIZE, PAGE_SIZE_U64, Result};
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

/// A page of a file in memory (memfd_create(2)).
#[derive(Debug)]
pub struct KnownPage {
    /// The file, whose first page it is.
    pub file: File,
    /// Number of the page frame.
    pub number: u64,
    /// Bytes at its start that no other page has.
    pub contents: Vec<u8>,
    /// Keeps the page where it is looked up.
    _mapping: MmapRaw,
}

impl KnownPage {
    /// Makes one.
    ///
    /// # Errors
    /// `EPERM` when the kernel does not tell the number (CAP_SYS_ADMIN); as memfd_create(2) and mmap(2).
    pub fn make() -> Result<KnownPage> {
        const CONTENTS: u64 = 64;
        let io = |e: std::io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let mut file = File::from(crate::vm::memfd(c"known", libc::MFD_CLOEXEC)?);
        let mut contents = vec![0; usize::try_from(CONTENTS).unwrap_or(0)];
        let random = File::open("/dev/urandom").map_err(io)?;
        std::io::Read::read_exact(&mut &random, &mut contents).map_err(io)?;
        file.write_all(&contents).map_err(io)?;
        file.set_len(PAGE_SIZE_U64).map_err(io)?;
        let mapping = MmapOptions::new()
            .len(PAGE_SIZE)
            .populate()
            .map_raw(&file)
            .map_err(io)?;
        let pagemap = File::open("/proc/self/pagemap").map_err(io)?;
        let mut entry = [0; 8];
        let at = mapping.as_ptr().addr() / PAGE_SIZE * entry.len();
        pagemap.read_exact_at(&mut entry, at as u64).map_err(io)?;
        // Documentation/admin-guide/mm/pagemap.rst: present, and 55 bits of the number.
        let entry = u64::from_ne_bytes(entry);
        let number = entry & ((1 << 55) - 1);
        if entry >> 63 == 0 || number == 0 {
            return Err(Errno::EPERM);
        }
        Ok(KnownPage {
            file,
            number,
            contents,
            _mapping: mapping,
        })
    }
}
