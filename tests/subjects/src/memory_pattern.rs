//! Anonymous memory with a known value in every word, some of it never touched, some of it
//! read-only.

use anyhow::{Result, bail};
use libc::{MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE};

const PAGE: usize = 4096;

/// Pages of each range.
const PAGES: usize = 2048;

/// One mapping and what its pages must hold.
struct Range {
    start: *mut u64,
    /// The seed of a page's words; `None`: the page was never written and must be zero.
    seed: fn(usize) -> Option<u64>,
}

/// Fills three ranges and returns their check.
pub(crate) fn start() -> Result<Box<dyn FnMut() -> Result<()>>> {
    let every = Range {
        start: map()?,
        seed: |page| Some(0x1111_0000 + page as u64),
    };
    // Two of three pages are holes.
    let holes = Range {
        start: map()?,
        seed: |page| (page % 3 == 0).then_some(0x2222_0000 + page as u64),
    };
    let read_only = Range {
        start: map()?,
        seed: |page| Some(0x3333_0000 + page as u64),
    };
    for range in [&every, &holes, &read_only] {
        range.fill();
    }
    // SAFETY: the range was mapped above with this length and nothing else points into it.
    let done = unsafe { libc::mprotect(read_only.start.cast(), PAGES * PAGE, PROT_READ) };
    if done != 0 {
        bail!("mprotect: {}", std::io::Error::last_os_error());
    }
    let mut round = 0;
    Ok(Box::new(move || {
        round += 1;
        for (name, range) in [
            ("every page", &every),
            ("holes", &holes),
            ("read-only", &read_only),
        ] {
            range.check(name)?;
        }
        // Still writable, and the next check sees it.
        every.write(0, 0x1111_0000);
        if every.word(0, 1) != word(0x1111_0000, 1) {
            bail!("a write in round {round} did not stay");
        }
        Ok(())
    }))
}

fn map() -> Result<*mut u64> {
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGES * PAGE,
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        bail!("mmap: {}", std::io::Error::last_os_error());
    }
    Ok(at.cast())
}

/// The value of a word: no two words of a range are equal.
fn word(seed: u64, place: usize) -> u64 {
    (seed << 16 | place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Range {
    fn fill(&self) {
        for page in 0..PAGES {
            if let Some(seed) = (self.seed)(page) {
                self.write(page, seed);
            }
        }
    }

    fn write(&self, page: usize, seed: u64) {
        for place in 0..PAGE / 8 {
            // SAFETY: page < PAGES and place < 512, so the word is in the mapping.
            unsafe {
                self.start
                    .add(page * (PAGE / 8) + place)
                    .write_volatile(word(seed, place))
            };
        }
    }

    fn word(&self, page: usize, place: usize) -> u64 {
        // SAFETY: as in `write`.
        unsafe { self.start.add(page * (PAGE / 8) + place).read_volatile() }
    }

    fn check(&self, name: &str) -> Result<()> {
        for page in 0..PAGES {
            for place in 0..PAGE / 8 {
                let expected = (self.seed)(page).map_or(0, |seed| word(seed, place));
                let found = self.word(page, place);
                if found != expected {
                    bail!("{name}: page {page} word {place} is {found:#x}, not {expected:#x}");
                }
            }
        }
        Ok(())
    }
}
