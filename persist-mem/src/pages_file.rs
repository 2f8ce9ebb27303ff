//! Pages kept in a plain file: the store of `kupgrade checkpoint`.
//!
//! Page number `n` of the store lies at byte `n * 4096`.

use crate::manifest::PageSums;
use crate::page_sums::PagesError;
use crate::store::PageStore;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use sys::PAGE_SIZE;
use sys::mapped::MappedFile;
use sys::urgent::Urgent;
use sys::vm::Source;

/// Pages that are written in one go: what stays in the processor's caches meanwhile.
const AT_ONCE: usize = 128;
/// Buffers that wait to be written, at most.
const WAITING: usize = 4;

/// Writes pages one after the other. What does not fit in one buffer is written by a thread of its own: while it
/// writes some the next are read.
#[derive(Debug)]
pub struct PagesWriter {
    /// None after a failure.
    writer: Option<Writer>,
    /// Pages that are read, and room for more.
    buffer: Vec<u8>,
    /// Bytes of it that are in use.
    used: usize,
    pages: u64,
}

#[derive(Debug)]
enum Writer {
    /// Nothing is written yet.
    Idle(File),
    Busy(WriterThread),
}

/// The thread that writes.
#[derive(Debug)]
struct WriterThread {
    full: SyncSender<Vec<u8>>,
    /// Buffers that have been written.
    empty: Receiver<Vec<u8>>,
    thread: JoinHandle<io::Result<(File, Vec<u32>)>>,
}

impl WriterThread {
    fn start(mut file: File) -> io::Result<WriterThread> {
        let (full, to_write) = sync_channel::<Vec<u8>>(WAITING);
        let (written, empty) = channel();
        let work = move || {
            // Whoever stands still waits for this thread as much as for the one that reads.
            let _urgent = Urgent::begin();
            let mut crcs = Vec::new();
            for buffer in to_write {
                crcs.push(write(&mut file, &buffer)?);
                // Nobody wants it when all is read.
                let _ = written.send(buffer);
            }
            Ok((file, crcs))
        };
        Ok(WriterThread {
            full,
            empty,
            thread: std::thread::Builder::new().spawn(work)?,
        })
    }

    /// Waits until everything is written.
    fn end(self) -> io::Result<(File, Vec<u32>)> {
        drop(self.full);
        self.thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that writes has panicked")))
    }
}

/// Writes a buffer and returns its sum.
fn write(file: &mut File, buffer: &[u8]) -> io::Result<u32> {
    file.write_all(buffer)?;
    Ok(crc32fast::hash(buffer))
}

impl Writer {
    fn end(self) -> io::Result<(File, Vec<u32>)> {
        match self {
            Writer::Idle(file) => Ok((file, Vec::new())),
            Writer::Busy(thread) => thread.end(),
        }
    }
}

impl PagesWriter {
    /// Makes the file, readable by its owner only: it holds the memory of processes.
    ///
    /// # Errors
    /// When it cannot be made, or is there already.
    pub fn create(path: &Path) -> io::Result<PagesWriter> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(PagesWriter::to(file))
    }

    fn to(file: File) -> PagesWriter {
        // Written to, so that its memory is there when processes wait for it.
        let buffer = vec![1; AT_ONCE * PAGE_SIZE];
        PagesWriter {
            writer: Some(Writer::Idle(file)),
            buffer,
            used: 0,
            pages: 0,
        }
    }

    /// Adds `pages` whole pages, read by `read`: it is given buffers to fill, each with the number of the page
    /// that it begins with, counted from the first of these. Returns the number in the store of the first.
    ///
    /// # Errors
    /// What `read` returns, and when pages cannot be written; nothing can be added after that.
    pub fn append(
        &mut self,
        pages: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<u64> {
        if self.writer.is_none() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let first = self.pages;
        let mut done = 0;
        while done < pages {
            self.make_room()?;
            let free = &mut self.buffer[self.used..];
            let left = usize::try_from(pages - done).unwrap_or(usize::MAX);
            let now = left.min(free.len() / PAGE_SIZE);
            read(done, &mut free[..now * PAGE_SIZE])?;
            self.used += now * PAGE_SIZE;
            self.pages += now as u64;
            done += now as u64;
        }
        Ok(first)
    }

    /// Has a full buffer written.
    fn make_room(&mut self) -> io::Result<()> {
        if self.used < self.buffer.len() {
            return Ok(());
        }
        if self.used > 0 {
            self.hand_over()?;
        }
        let empty = match &self.writer {
            Some(Writer::Busy(thread)) => thread.empty.try_recv().ok(),
            _ => None,
        };
        self.buffer = empty.unwrap_or_default();
        self.buffer.resize(AT_ONCE * PAGE_SIZE, 0);
        self.used = 0;
        Ok(())
    }

    fn hand_over(&mut self) -> io::Result<()> {
        let mut full = core::mem::take(&mut self.buffer);
        full.truncate(self.used);
        self.used = 0;
        let thread = match self.writer.take().ok_or(io::ErrorKind::BrokenPipe)? {
            Writer::Idle(file) => WriterThread::start(file)?,
            Writer::Busy(thread) => thread,
        };
        if thread.full.send(full).is_ok() {
            self.writer = Some(Writer::Busy(thread));
            return Ok(());
        }
        // It has ended, which only an error makes it do.
        match thread.end() {
            Err(error) => Err(error),
            Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Ends it; the file is whole, but on the disk only when it is synchronised. The sums go into the manifest.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<(File, PageSums)> {
        let rest = core::mem::take(&mut self.buffer);
        let writer = self.writer.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (mut file, mut crcs) = writer.end()?;
        if self.used > 0 {
            crcs.push(write(&mut file, &rest[..self.used])?);
        }
        let sums = PageSums {
            pages: self.pages,
            run: AT_ONCE as u32,
            crcs,
        };
        Ok((file, sums))
    }
}

impl Drop for PagesWriter {
    fn drop(&mut self) {
        // After a failure nobody wants the file; the thread shall not go on.
        drop(self.writer.take().map(Writer::end));
    }
}

/// A file of pages, mapped.
#[derive(Debug)]
pub struct PagesFile {
    /// None for an empty file, which cannot be mapped.
    map: Option<MappedFile>,
}

impl PagesFile {
    /// Reads it once, to see that it holds what was written, and maps it.
    ///
    /// # Errors
    /// As the variants of [`PagesError`] say, or when it cannot be mapped.
    pub fn open(path: &Path, sums: &PageSums) -> Result<PagesFile, PagesError> {
        let file = File::open(path)?;
        sums.check_len(&file)?;
        let map = match sums.pages {
            0 => None,
            _ => Some(MappedFile::map(&file)?),
        };
        map.as_ref().map_or(Ok(()), |map| sums.check(map))?;
        Ok(PagesFile { map })
    }
}

impl PageStore for PagesFile {
    fn source(&self, frame: u64, pages: u64) -> Option<Source> {
        let map = self.map.as_ref()?;
        let start = usize::try_from(frame).ok()?.checked_mul(PAGE_SIZE)?;
        let len = usize::try_from(pages).ok()?.checked_mul(PAGE_SIZE)?;
        map.source(start..start.checked_add(len)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_numbered_and_bounded() {
        let path = std::env::temp_dir().join(format!("pages-file-{}", std::process::id()));
        let mut writer = PagesWriter::create(&path).unwrap();
        // Every page begins with its number; some appends end where a buffer does, others in the middle.
        let read = |from: u64| {
            move |first: u64, buffer: &mut [u8]| {
                for (page, number) in buffer.chunks_mut(PAGE_SIZE).zip(from + first..) {
                    page[..8].copy_from_slice(&number.to_le_bytes());
                }
                Ok(())
            }
        };
        let mut next = 0;
        for pages in [2, AT_ONCE as u64 - 2, 1, 10 * AT_ONCE as u64, 0, 5] {
            assert_eq!(writer.append(pages, read(next)).unwrap(), next);
            next += pages;
        }
        let (file, sums) = writer.finish().unwrap();
        assert_eq!(file.metadata().unwrap().len(), next * PAGE_SIZE as u64);
        let bytes = std::fs::read(&path).unwrap();
        for (page, number) in bytes.chunks(PAGE_SIZE).zip(0_u64..) {
            assert_eq!(page[..8], number.to_le_bytes());
        }
        let store = PagesFile::open(&path, &sums).unwrap();
        damage_is_told(&path, &sums);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(store.source(next - 1, 1).unwrap().len(), PAGE_SIZE);
        assert!(store.source(next - 1, 2).is_none(), "past the end");
        assert!(store.source(u64::MAX, 2).is_none());
    }

    /// One bit of any run, and a file that is too short or too long.
    fn damage_is_told(path: &Path, sums: &PageSums) {
        use std::os::unix::fs::FileExt;
        let file = File::options().read(true).write(true).open(path).unwrap();
        let len = file.metadata().unwrap().len();
        assert_eq!(sums.pages * PAGE_SIZE as u64, len);
        for at in [0, len / 2, len - 1] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
            match PagesFile::open(path, sums) {
                Err(PagesError::Damaged { from, to }) => assert!((from..to).contains(&at)),
                other => panic!("{other:?} at {at}"),
            }
            file.write_all_at(&byte, at).unwrap();
            PagesFile::open(path, sums).unwrap();
        }
        for wrong in [0, len - 1, len + PAGE_SIZE as u64] {
            file.set_len(wrong).unwrap();
            let opened = PagesFile::open(path, sums);
            assert!(matches!(opened, Err(PagesError::Length { .. })));
        }
    }

    fn to_full_device() -> PagesWriter {
        let full = File::options().write(true).open("/dev/full").unwrap();
        PagesWriter::to(full)
    }

    #[test]
    fn what_cannot_be_written_is_told() {
        let mut writer = to_full_device();
        let appended = writer.append(100 * AT_ONCE as u64, |_, _| Ok(()));
        assert_eq!(appended.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(writer.append(AT_ONCE as u64, |_, _| Ok(())).is_err());
        assert!(writer.finish().is_err());
        let mut writer = to_full_device();
        writer.append(1, |_, _| Ok(())).unwrap();
        assert_eq!(
            writer.finish().unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
    }
}
