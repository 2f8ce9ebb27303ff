//! Reading the old kernel's pages: soft-reserved memory through `/dev/mem`.
//!
//! The kernel checks a mapping page by page when it is made, so map what is read, not whole
//! banks. A view outlives the return of *other* memory; where its own memory was handed back,
//! copies fail with `EFAULT`.

use crc32fast::Hasher;
use std::ops::Range;
use std::path::{Path, PathBuf};
use sys::physmap::{DevMem, PhysWindow};
use sys::vm::Source;
use sys::{Errno, PAGE_SIZE, PAGE_SIZE_U64};

/// The device all of physical memory is read through.
pub const DEV_MEM: &str = "/dev/mem";

/// Why old pages cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum PhysMemError {
    /// The device cannot be opened.
    #[error("{path}: {errno}; under kernel lockdown /dev/mem stays closed", path = path.display())]
    Open {
        /// What was opened.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A range cannot be mapped: it is RAM of the running kernel, or a driver has it.
    #[error("physical memory {start:#x}-{end:#x} cannot be mapped: {errno}")]
    Map {
        /// First byte.
        start: u64,
        /// Byte after the last.
        end: u64,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A copy failed, or lies outside of the view.
    #[error("{len} bytes of physical memory at {at:#x} cannot be copied: {errno}")]
    Copy {
        /// Physical address.
        at: u64,
        /// Bytes.
        len: usize,
        /// The kernel's answer; ERANGE for what lies outside of the view.
        errno: Errno,
    },
}

/// Physical memory, not yet mapped.
#[derive(Debug)]
pub struct PhysMem {
    device: DevMem,
    path: PathBuf,
}

impl PhysMem {
    /// Opens `/dev/mem` for reading.
    ///
    /// # Errors
    /// [`PhysMemError::Open`].
    pub fn open() -> Result<PhysMem, PhysMemError> {
        PhysMem::open_path(Path::new(DEV_MEM))
    }

    /// Opens a file that is laid out like physical memory (offset = physical address).
    ///
    /// # Errors
    /// [`PhysMemError::Open`].
    pub fn open_path(path: &Path) -> Result<PhysMem, PhysMemError> {
        let device = DevMem::open(path, false).map_err(|errno| PhysMemError::Open {
            path: path.to_owned(),
            errno,
        })?;
        Ok(PhysMem {
            device,
            path: path.to_owned(),
        })
    }

    /// Maps a range of physical bytes, widened to whole pages, read-only and cached.
    ///
    /// # Errors
    /// [`PhysMemError::Map`].
    pub fn map(&self, range: Range<u64>) -> Result<PhysView, PhysMemError> {
        view(&self.device, &range)
    }

    /// Overwrites a range with zeros: for what holds secrets and is needed no more. Do it
    /// before the range is handed back.
    ///
    /// # Errors
    /// [`PhysMemError::Open`], [`PhysMemError::Map`], [`PhysMemError::Copy`].
    pub fn wipe(&self, range: Range<u64>) -> Result<(), PhysMemError> {
        const PIECE: u64 = 256 * 1024;
        let device = DevMem::open(&self.path, true).map_err(|errno| PhysMemError::Open {
            path: self.path.clone(),
            errno,
        })?;
        let zeros = vec![0; 256 * 1024];
        let mut at = range.start;
        while at < range.end {
            let end = (at + PIECE).min(range.end);
            let piece = view(&device, &(at..end))?;
            let len = usize::try_from(end - at).unwrap_or(zeros.len());
            piece
                .window
                .write(piece.offset(at, len)?, &zeros[..len])
                .map_err(|errno| PhysMemError::Copy { at, len, errno })?;
            at = end;
        }
        Ok(())
    }
}

fn view(device: &DevMem, range: &Range<u64>) -> Result<PhysView, PhysMemError> {
    let start = range.start - range.start % PAGE_SIZE_U64;
    let fail = |errno| PhysMemError::Map {
        start: range.start,
        end: range.end,
        errno,
    };
    let end = range
        .end
        .checked_next_multiple_of(PAGE_SIZE_U64)
        .ok_or_else(|| fail(Errno::EINVAL))?;
    let len = end
        .checked_sub(start)
        .and_then(|len| usize::try_from(len).ok());
    let window = device
        .map(start, len.ok_or_else(|| fail(Errno::EINVAL))?)
        .map_err(fail)?;
    Ok(PhysView { window, start })
}

/// A mapped range of old pages. Addresses are physical.
#[derive(Debug)]
pub struct PhysView {
    window: PhysWindow,
    start: u64,
}

impl PhysView {
    /// Physical addresses covered.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.window.len() as u64
    }

    fn offset(&self, at: u64, len: usize) -> Result<usize, PhysMemError> {
        at.checked_sub(self.start)
            .and_then(|offset| usize::try_from(offset).ok())
            .filter(|offset| {
                offset
                    .checked_add(len)
                    .is_some_and(|end| end <= self.window.len())
            })
            .ok_or(PhysMemError::Copy {
                at,
                len,
                errno: Errno::ERANGE,
            })
    }

    /// Copies the bytes at physical address `at` into `buffer`.
    ///
    /// # Errors
    /// [`PhysMemError::Copy`].
    pub fn copy_to(&self, at: u64, buffer: &mut [u8]) -> Result<(), PhysMemError> {
        let len = buffer.len();
        self.window
            .copy_to(self.offset(at, len)?, buffer)
            .map_err(|errno| PhysMemError::Copy { at, len, errno })
    }

    /// The bytes at `at` as the source of a copy into another process
    /// ([`sys::vm::write_process`]).
    ///
    /// # Errors
    /// [`PhysMemError::Copy`] when they do not lie inside of the view.
    pub fn source(&self, at: u64, len: usize) -> Result<Source, PhysMemError> {
        self.window
            .source(self.offset(at, len)?, len)
            .map_err(|errno| PhysMemError::Copy { at, len, errno })
    }

    /// CRC-32 of each of the `count` pages from physical address `at`.
    ///
    /// # Errors
    /// [`PhysMemError::Copy`].
    pub fn page_crcs(&self, at: u64, count: usize) -> Result<Vec<u32>, PhysMemError> {
        const BATCH: usize = 64;
        let mut buffer = vec![0; BATCH.min(count) * PAGE_SIZE];
        let mut sums = Vec::with_capacity(count);
        while sums.len() < count {
            let pages = BATCH.min(count - sums.len());
            let bytes = &mut buffer[..pages * PAGE_SIZE];
            self.copy_to(at + sums.len() as u64 * PAGE_SIZE_U64, bytes)?;
            sums.extend(bytes.chunks(PAGE_SIZE).map(crc32fast::hash));
        }
        Ok(sums)
    }

    /// CRC-32 of the `len` bytes at `at`.
    ///
    /// # Errors
    /// [`PhysMemError::Copy`].
    pub fn crc(&self, at: u64, len: usize) -> Result<u32, PhysMemError> {
        let mut buffer = vec![0; len.min(256 * 1024)];
        let mut hasher = Hasher::new();
        let mut done = 0;
        while done < len {
            let now = buffer.len().min(len - done);
            self.copy_to(at + done as u64, &mut buffer[..now])?;
            hasher.update(&buffer[..now]);
            done += now;
        }
        Ok(hasher.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Image(PathBuf, Vec<u8>);

    impl Image {
        fn new(name: &str) -> Image {
            let bytes: Vec<u8> = (0..40 * PAGE_SIZE)
                .map(|n| (n / 3 + n / 4096) as u8)
                .collect();
            let path = std::env::temp_dir().join(format!("physmem-{name}-{}", std::process::id()));
            std::fs::write(&path, &bytes).unwrap();
            Image(path, bytes)
        }
    }

    impl Drop for Image {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn reads_copies_and_sums_by_physical_address() {
        let image = Image::new("read");
        let memory = PhysMem::open_path(&image.0).unwrap();
        let view = memory.map(8192 + 5..9 * 4096 + 1).unwrap();
        assert_eq!(view.range(), 8192..10 * 4096);
        let mut buffer = [0; 300];
        view.copy_to(9000, &mut buffer).unwrap();
        assert_eq!(buffer, image.1[9000..9300]);
        let sums = view.page_crcs(3 * 4096, 2).unwrap();
        assert_eq!(sums[1], crc32fast::hash(&image.1[4 * 4096..5 * 4096]));
        assert_eq!(
            view.crc(9000, 20000).unwrap(),
            crc32fast::hash(&image.1[9000..29000])
        );
        for (at, len) in [(8191, 1), (10 * 4096, 1), (9 * 4096, 4097)] {
            assert!(view.source(at, len).is_err(), "{at} {len}");
        }
        assert_eq!(view.source(8192, 8 * 4096).unwrap().len(), 8 * 4096);
    }

    #[test]
    fn wiping_clears_exactly_the_range() {
        let image = Image::new("wipe");
        let memory = PhysMem::open_path(&image.0).unwrap();
        memory.wipe(5000..150_000).unwrap();
        let now = std::fs::read(&image.0).unwrap();
        assert_eq!(now[..5000], image.1[..5000]);
        assert!(now[5000..150_000].iter().all(|b| *b == 0));
        assert_eq!(now[150_000..], image.1[150_000..]);
    }

    #[test]
    fn a_missing_device_is_named() {
        let error = PhysMem::open_path(Path::new("/nonexistent/mem"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/mem"), "{error}");
    }
}
