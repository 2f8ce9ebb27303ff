//! Looks whether the file of pages is what was written.

use crate::manifest::PageSums;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use sys::PAGE_SIZE;
use sys::mapped::MappedFile;

/// Why a file of pages is not restored from.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// It has another length.
    #[error("it has {found} bytes and not {wanted}: it was cut off or belongs to another image")]
    Length {
        /// Bytes it should have.
        wanted: u64,
        /// Bytes it has.
        found: u64,
    },
    /// The bytes are not those that were written.
    #[error(
        "it is damaged between byte {from} and byte {to}: the CRC does not match; restore from another copy of it"
    )]
    Damaged {
        /// The first byte of the run.
        from: u64,
        /// The byte after its last.
        to: u64,
    },
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
}

/// Threads that read, at most: one cannot keep up with the memory.
const READERS: usize = 4;

impl PageSums {
    /// Looks at the length of the file.
    ///
    /// # Errors
    /// [`PagesError::Length`], or when it cannot be told.
    pub fn check_len(&self, file: &File) -> Result<(), PagesError> {
        let (wanted, found) = (self.len(), file.metadata()?.len());
        let runs = self.pages.div_ceil(u64::from(self.run.max(1)));
        if found != wanted || runs != self.crcs.len() as u64 {
            return Err(PagesError::Length { wanted, found });
        }
        Ok(())
    }

    /// Reads the whole file, where the kernel has it: what comes out of it afterwards finds it mapped.
    ///
    /// # Errors
    /// As the variants of [`PagesError`] say.
    pub fn check(&self, file: &MappedFile) -> Result<(), PagesError> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let read = || {
            while !failed.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(crc) = self.crcs.get(number) else {
                    return Ok(());
                };
                self.check_run(file, number as u64, *crc)
                    .inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            }
            Ok(())
        };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let others = cpus.min(READERS).min(self.crcs.len()).saturating_sub(1);
        std::thread::scope(|scope| {
            // As many as there may be; this one reads what the others do not.
            let other = |_| std::thread::Builder::new().spawn_scoped(scope, read).ok();
            let others: Vec<_> = (0..others).map_while(other).collect();
            let mine = read();
            let theirs = others.into_iter().map(|one| {
                one.join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            theirs.fold(mine, Result::and)
        })
    }

    fn check_run(&self, file: &MappedFile, number: u64, crc: u32) -> Result<(), PagesError> {
        let run = u64::from(self.run) * PAGE_SIZE as u64;
        let from = number * run;
        let to = (from + run).min(self.len());
        let bytes = file.read(from as usize..to as usize);
        let bytes = bytes.map_err(|errno| io::Error::from_raw_os_error(errno as i32))?;
        if crc32fast::hash(bytes) == crc {
            Ok(())
        } else {
            Err(PagesError::Damaged { from, to })
        }
    }

    /// Bytes that the file has.
    fn len(&self) -> u64 {
        self.pages.saturating_mul(PAGE_SIZE as u64)
    }
}
