//! Pages kept in a plain file: the store of `kupgrade checkpoint`.
//!
//! Page number `n` of the store lies at byte `n * 4096`.

use crate::store::PageStore;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use sys::PAGE_SIZE;
use sys::vm::Source;

/// Writes pages one after the other.
#[derive(Debug)]
pub struct PagesWriter {
    file: BufWriter<File>,
    pages: u64,
}

impl PagesWriter {
    /// Makes the file, readable by its owner only: it holds the memory of processes.
    ///
    /// # Errors
    /// When it cannot be made, or is there already.
    pub fn create(path: &Path) -> std::io::Result<PagesWriter> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(PagesWriter {
            file: BufWriter::with_capacity(1 << 20, file),
            pages: 0,
        })
    }

    /// Adds whole pages and returns the number of the first.
    ///
    /// # Errors
    /// When they cannot be written, or `bytes` is no whole number of pages.
    pub fn append(&mut self, bytes: &[u8]) -> std::io::Result<u64> {
        if !bytes.len().is_multiple_of(PAGE_SIZE) {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        self.file.write_all(bytes)?;
        let first = self.pages;
        self.pages += (bytes.len() / PAGE_SIZE) as u64;
        Ok(first)
    }

    /// Ends it; the file is whole, but on the disk only when it is synchronised.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> std::io::Result<File> {
        self.file
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
    }
}

/// A file of pages, mapped.
#[derive(Debug)]
pub struct PagesFile {
    /// None for an empty file, which cannot be mapped.
    map: Option<MmapRaw>,
}

impl PagesFile {
    /// Maps it.
    ///
    /// # Errors
    /// When it cannot be opened or mapped.
    pub fn open(path: &Path) -> std::io::Result<PagesFile> {
        let file = File::open(path)?;
        let map = if file.metadata()?.len() == 0 {
            None
        } else {
            Some(MmapOptions::new().map_raw_read_only(&file)?)
        };
        Ok(PagesFile { map })
    }
}

impl PageStore for PagesFile {
    fn source(&self, frame: u64, pages: u64) -> Option<Source> {
        let map = self.map.as_ref()?;
        let start = usize::try_from(frame).ok()?.checked_mul(PAGE_SIZE)?;
        let len = usize::try_from(pages).ok()?.checked_mul(PAGE_SIZE)?;
        let inside = start.checked_add(len)? <= map.len();
        inside.then(|| Source::new(map.as_ptr() as usize + start, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_numbered_and_bounded() {
        let path = std::env::temp_dir().join(format!("pages-file-{}", std::process::id()));
        let mut writer = PagesWriter::create(&path).unwrap();
        assert_eq!(writer.append(&[1; 2 * PAGE_SIZE]).unwrap(), 0);
        assert_eq!(writer.append(&[2; PAGE_SIZE]).unwrap(), 2);
        assert!(writer.append(&[3; 5]).is_err());
        let file = writer.finish().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3 * PAGE_SIZE as u64);
        let store = PagesFile::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(store.source(2, 1).unwrap().len(), PAGE_SIZE);
        assert!(store.source(2, 2).is_none(), "past the end");
        assert!(store.source(u64::MAX, 2).is_none());
    }
}
