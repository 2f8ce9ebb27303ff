//! A mapping whose words hold known values.

use anyhow::{Result, bail};
use libc::{MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, c_int, c_void};

use super::sys;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// A mapping that stays for the life of the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    start: *mut u64,
    pages: usize,
}

// SAFETY: an area is an address; accesses are volatile and the subjects order them themselves.
unsafe impl Send for Area {}

impl Area {
    /// mmap(2) at an address of the kernel's choice.
    pub(crate) fn map(pages: usize, prot: c_int, flags: c_int, fd: c_int) -> Result<Self> {
        Self::map_at(std::ptr::null_mut(), pages, prot, flags, fd, 0)
    }

    /// mmap(2) with all that it takes. `pages` is the length, `from` the first page of the file.
    pub(crate) fn map_at(
        at: *mut c_void,
        pages: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        from: i64,
    ) -> Result<Self> {
        let offset = from * PAGE as i64;
        // SAFETY: the subjects ask for free addresses, or replace mappings of their own.
        let start = unsafe { libc::mmap(at, pages * PAGE, prot, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            bail!("mmap: {}", std::io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            pages,
        })
    }

    /// Private anonymous memory.
    pub(crate) fn anonymous(pages: usize) -> Result<Self> {
        Self::map(
            pages,
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS,
            -1,
        )
    }

    /// Memory that is there already, with a whole number of pages.
    pub(crate) fn at(start: *mut c_void, pages: usize) -> Self {
        Self {
            start: start.cast(),
            pages,
        }
    }

    /// Its length.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// The address of a page.
    pub(crate) fn page(&self, page: usize) -> *mut c_void {
        assert!(page <= self.pages, "page {page} of {}", self.pages);
        // SAFETY: inside of the mapping or just behind it.
        unsafe { self.start.add(page * (PAGE / 8)).cast() }
    }

    /// Some pages of it.
    pub(crate) fn part(&self, first: usize, pages: usize) -> Self {
        assert!(first + pages <= self.pages);
        Self::at(self.page(first), pages)
    }

    /// Gives every word of a page its value.
    pub(crate) fn fill_page(&self, page: usize, seed: u64) {
        for place in 0..PAGE / 8 {
            self.put(page, place, word(seed, page, place));
        }
    }

    /// Gives every word of every page its value.
    pub(crate) fn fill(&self, seed: u64) {
        (0..self.pages).for_each(|page| self.fill_page(page, seed));
    }

    /// Every word of a page must have its value.
    pub(crate) fn check_page(&self, page: usize, seed: u64) -> Result<()> {
        self.check_words(page, |place| word(seed, page, place))
    }

    /// Every word of every page must have its value.
    pub(crate) fn check(&self, seed: u64) -> Result<()> {
        (0..self.pages).try_for_each(|page| self.check_page(page, seed))
    }

    /// A page must hold zeros.
    pub(crate) fn check_zero(&self, page: usize) -> Result<()> {
        self.check_words(page, |_| 0)
    }

    fn check_words(&self, page: usize, expected: impl Fn(usize) -> u64) -> Result<()> {
        for place in 0..PAGE / 8 {
            let (found, expected) = (self.get(page, place), expected(place));
            if found != expected {
                bail!("page {page} word {place} is {found:#x}, not {expected:#x}");
            }
        }
        Ok(())
    }

    /// Writes a word.
    pub(crate) fn put(&self, page: usize, place: usize, value: u64) {
        assert!(page < self.pages && place < PAGE / 8);
        // SAFETY: inside of the mapping.
        unsafe {
            self.start
                .add(page * (PAGE / 8) + place)
                .write_volatile(value)
        };
    }

    /// Reads a word.
    pub(crate) fn get(&self, page: usize, place: usize) -> u64 {
        assert!(page < self.pages && place < PAGE / 8);
        // SAFETY: inside of the mapping.
        unsafe { self.start.add(page * (PAGE / 8) + place).read_volatile() }
    }

    /// mprotect(2)
    pub(crate) fn protect(&self, prot: c_int) -> Result<()> {
        // SAFETY: the mapping belongs to the subject.
        let done = unsafe { libc::mprotect(self.page(0), self.pages * PAGE, prot) };
        sys("mprotect", done).map(drop)
    }

    /// madvise(2)
    pub(crate) fn advise(&self, advice: c_int) -> Result<()> {
        // SAFETY: as in `protect`.
        let done = unsafe { libc::madvise(self.page(0), self.pages * PAGE, advice) };
        sys("madvise", done).map(drop)
    }

    /// munmap(2)
    pub(crate) fn unmap(&self) -> Result<()> {
        // SAFETY: as in `protect`; nobody uses the area afterwards.
        let done = unsafe { libc::munmap(self.page(0), self.pages * PAGE) };
        sys("munmap", done).map(drop)
    }
}

/// The value of a word: no two of an area are equal.
fn word(seed: u64, page: usize, place: usize) -> u64 {
    (seed << 40 | (page as u64) << 12 | place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
