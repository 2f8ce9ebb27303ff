//! Looks whether the file of pages is what was written.

use crate::manifest::PageSums;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use sys::PAGE_SIZE;

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
    /// Reads the whole file.
    ///
    /// # Errors
    /// As the variants of [`PagesError`] say.
    pub fn check(&self, file: &File) -> Result<(), PagesError> {
        let bytes = |pages: u64| pages.saturating_mul(PAGE_SIZE as u64);
        let (wanted, found) = (bytes(self.pages), file.metadata()?.len());
        let runs = self.pages.div_ceil(u64::from(self.run.max(1)));
        if found != wanted || runs != self.crcs.len() as u64 {
            return Err(PagesError::Length { wanted, found });
        }
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let read = || {
            let mut buffer = vec![0; self.run as usize * PAGE_SIZE];
            while !failed.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(crc) = self.crcs.get(number) else {
                    return Ok(());
                };
                self.check_run(file, number as u64, *crc, &mut buffer)
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

    fn check_run(
        &self,
        file: &File,
        number: u64,
        crc: u32,
        buffer: &mut [u8],
    ) -> Result<(), PagesError> {
        let run = buffer.len() as u64;
        let from = number * run;
        let to = (from + run).min(self.pages * PAGE_SIZE as u64);
        // At most a run, which fits in.
        let buffer = &mut buffer[..(to - from) as usize];
        file.read_exact_at(buffer, from)?;
        if crc32fast::hash(buffer) == crc {
            Ok(())
        } else {
            Err(PagesError::Damaged { from, to })
        }
    }
}
