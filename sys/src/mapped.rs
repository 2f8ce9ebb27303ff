//! Files that are read where the kernel has them in memory, by a mapping.

use crate::vm::{Source, populate_read};
use crate::{Errno, Result};
use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::io;
use std::ops::Range;

/// A file, mapped as long as it was then.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps a file, which must not be empty.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn map(file: &File) -> io::Result<MappedFile> {
        // SAFETY: the mapping is only lent as bytes, which may have any value, to who sums them up: that somebody
        // else writes to the file meanwhile gives another sum. A file that is made shorter meanwhile ends this
        // process (SIGBUS), as if it was killed.
        let map = unsafe { MmapOptions::new().map(file)? };
        Ok(MappedFile { map })
    }

    /// Bytes of it.
    ///
    /// # Errors
    /// `EFAULT` when they cannot be read or lie behind its end.
    pub fn read(&self, range: Range<usize>) -> Result<&[u8]> {
        let bytes = self.map.get(range).ok_or(Errno::EFAULT)?;
        // What cannot be read is told here, and many pages are mapped at once.
        populate_read(bytes.as_ptr().addr() as u64, bytes.len())?;
        Ok(bytes)
    }

    /// The same bytes, for the kernel to copy from.
    #[must_use]
    pub fn source(&self, range: Range<usize>) -> Option<Source> {
        self.map.get(range).map(Source::from)
    }
}
