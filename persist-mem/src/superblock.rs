//! Where the manifest lies in physical memory: a page whose address the new kernel's command line
//! carries (`kupgrade.manifest=0x...`), and what it points to.
//!
//! ```text
//! page   := magic[8] | version u16 | flags u16 | count u32 | length u64 | sealed u64 | next u64
//!           | crc u32 | zero u32 | extent[count]                                (little endian)
//! extent := address u64 | bytes u64
//! ```
//!
//! Extents of the body follow each other in the order of the pages; `next` is the address of a
//! further page of extents, 0 for none. `length` and `sealed` are those of the first page. The CRC
//! covers the whole page with its own field as zero. The body has CRCs of its own
//! ([`crate::format`]).

use crate::format;
use crate::physmem::{PhysMem, PhysMemError};
use crate::ranges::RangeSet;
use std::ops::Range;
use sys::{PAGE_SIZE, PAGE_SIZE_U64};

/// First bytes of the page.
pub const MAGIC: [u8; 8] = *b"kupgrade";
/// Word of the kernel command line with the page's physical address, hexadecimal.
pub const CMDLINE_KEY: &str = "kupgrade.manifest";

const HEADER: usize = 48;
const CRC_AT: usize = 40;
/// Extents in one page.
pub const EXTENTS_PER_PAGE: usize = (PAGE_SIZE - HEADER) / 16;
/// A body of 4 GiB in single pages needs this many; more is damage.
const MOST_PAGES: usize = 4096;

/// Why no manifest is found.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    /// The address cannot be one.
    #[error("there is no manifest at {address:#x}: that is no address of a page")]
    Address {
        /// The address.
        address: u64,
    },
    /// Something else lies there.
    #[error("there is no manifest at {address:#x}: the page does not begin with its mark")]
    Missing {
        /// The address.
        address: u64,
    },
    /// Written by another version of kupgrade.
    #[error(
        "the manifest at {address:#x} has format version {found}, this kupgrade reads version {reads}",
        reads = format::VERSION
    )]
    Version {
        /// The address.
        address: u64,
        /// The version found.
        found: u16,
    },
    /// The page's checksum is wrong.
    #[error("the manifest's page at {address:#x} is damaged: its CRC does not match")]
    Damaged {
        /// The address.
        address: u64,
    },
    /// The pages contradict each other: a defect of the writer.
    #[error("the manifest's page at {address:#x} is not understood: {what}")]
    Inconsistent {
        /// The address.
        address: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Physical memory cannot be read.
    #[error("reading the manifest: {0}")]
    Memory(#[from] PhysMemError),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, SuperblockError>;

/// Where a manifest lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Physical addresses of the pages of extents, the first one first.
    pub pages: Vec<u64>,
    /// Physical bytes of the body, in its order. They may hold more than [`Superblock::length`].
    pub extents: Vec<Range<u64>>,
    /// Bytes of the body.
    pub length: u64,
    /// Time stamp counter when the first page was written, the last thing before the jump.
    pub sealed: u64,
}

impl Superblock {
    /// Pages needed for a body in `extents` extents.
    #[must_use]
    pub fn pages_for(extents: usize) -> usize {
        extents.div_ceil(EXTENTS_PER_PAGE).max(1)
    }

    /// The pages' contents with their addresses, the first page last: it makes the manifest valid.
    ///
    /// # Errors
    /// [`SuperblockError::Inconsistent`]: too few pages, or extents too small for the body.
    pub fn encode(&self) -> Result<Vec<(u64, Vec<u8>)>> {
        let address = self.pages.first().copied().unwrap_or(0);
        let fail = |what| Err(SuperblockError::Inconsistent { address, what });
        if self.pages.len() != Superblock::pages_for(self.extents.len()) {
            return fail("the number of its pages is wrong");
        }
        if self.room() < self.length {
            return fail("its extents are smaller than the body");
        }
        let mut chunks = self.extents.chunks(EXTENTS_PER_PAGE);
        let mut out = Vec::new();
        for (index, &page) in self.pages.iter().enumerate() {
            let next = self.pages.get(index + 1).copied().unwrap_or(0);
            out.push((page, self.page(chunks.next().unwrap_or(&[]), next)));
        }
        out.reverse();
        Ok(out)
    }

    fn page(&self, extents: &[Range<u64>], next: u64) -> Vec<u8> {
        let mut page = Vec::with_capacity(PAGE_SIZE);
        page.extend_from_slice(&MAGIC);
        page.extend_from_slice(&format::VERSION.to_le_bytes());
        page.extend_from_slice(&0u16.to_le_bytes());
        page.extend_from_slice(&(extents.len() as u32).to_le_bytes());
        page.extend_from_slice(&self.length.to_le_bytes());
        page.extend_from_slice(&self.sealed.to_le_bytes());
        page.extend_from_slice(&next.to_le_bytes());
        page.extend_from_slice(&[0; HEADER - CRC_AT]);
        for extent in extents {
            page.extend_from_slice(&extent.start.to_le_bytes());
            page.extend_from_slice(&(extent.end - extent.start).to_le_bytes());
        }
        page.resize(PAGE_SIZE, 0);
        seal_page(&mut page);
        page
    }

    /// Bytes the extents hold.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.extents.iter().map(|e| e.end - e.start).sum()
    }

    /// Reads and checks the pages, from the one at `address` on.
    ///
    /// # Errors
    /// As the variants of [`SuperblockError`] say.
    pub fn read(memory: &PhysMem, address: u64) -> Result<Superblock> {
        let mut found = Superblock {
            pages: Vec::new(),
            extents: Vec::new(),
            length: 0,
            sealed: 0,
        };
        let mut at = address;
        while at != 0 || found.pages.is_empty() {
            let inconsistent = |what| SuperblockError::Inconsistent { address: at, what };
            if found.pages.len() >= MOST_PAGES || found.pages.contains(&at) {
                return Err(inconsistent("its pages form a ring"));
            }
            let (head, extents) = read_page(memory, at)?;
            if found.pages.is_empty() {
                (found.length, found.sealed) = (head.length, head.sealed);
            }
            found.pages.push(at);
            found.extents.extend(extents);
            at = head.next;
        }
        if found.room() < found.length {
            let what = "its extents are smaller than the body";
            return Err(SuperblockError::Inconsistent { address, what });
        }
        Ok(found)
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`SuperblockError::Memory`].
    pub fn read_body(&self, memory: &PhysMem) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        for extent in &self.extents {
            let bytes = (extent.end - extent.start).min(self.length - body.len() as u64);
            if bytes == 0 {
                break;
            }
            let start = body.len();
            body.resize(start + bytes as usize, 0);
            memory
                .map(extent.start..extent.start + bytes)?
                .copy_to(extent.start, &mut body[start..])?;
        }
        Ok(body)
    }

    /// All physical bytes it occupies: to be left alone, and wiped when it is needed no more.
    #[must_use]
    pub fn ranges(&self) -> RangeSet {
        let pages = self.pages.iter().map(|page| *page..page + PAGE_SIZE_U64);
        self.extents.iter().cloned().chain(pages).collect()
    }
}

struct Head {
    length: u64,
    sealed: u64,
    next: u64,
}

/// Computes the CRC of a page and puts it in.
fn seal_page(page: &mut [u8]) {
    page[CRC_AT..CRC_AT + 4].fill(0);
    let crc = crc32fast::hash(page);
    page[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

fn read_page(memory: &PhysMem, address: u64) -> Result<(Head, Vec<Range<u64>>)> {
    if address == 0 || !address.is_multiple_of(PAGE_SIZE_U64) {
        return Err(SuperblockError::Address { address });
    }
    let mut page = vec![0; PAGE_SIZE];
    memory
        .map(address..address.saturating_add(PAGE_SIZE_U64))?
        .copy_to(address, &mut page)?;
    if !page.starts_with(&MAGIC) {
        return Err(SuperblockError::Missing { address });
    }
    let found = u32_at(&page, 8) as u16;
    if found != format::VERSION {
        return Err(SuperblockError::Version { address, found });
    }
    let crc = u32_at(&page, CRC_AT);
    seal_page(&mut page);
    if u32_at(&page, CRC_AT) != crc {
        return Err(SuperblockError::Damaged { address });
    }
    let count = u32_at(&page, 12) as usize;
    let inconsistent = |what| SuperblockError::Inconsistent { address, what };
    if count > EXTENTS_PER_PAGE {
        return Err(inconsistent("it names more extents than fit"));
    }
    let mut extents = Vec::with_capacity(count);
    for index in 0..count {
        let start = u64_at(&page, HEADER + index * 16);
        let bytes = u64_at(&page, HEADER + index * 16 + 8);
        let end = start
            .checked_add(bytes)
            .filter(|_| bytes != 0)
            .ok_or_else(|| inconsistent("an extent is empty or wraps around"))?;
        extents.push(start..end);
    }
    let head = Head {
        length: u64_at(&page, 16),
        sealed: u64_at(&page, 24),
        next: u64_at(&page, 32),
    };
    Ok((head, extents))
}

fn u32_at(page: &[u8], at: usize) -> u32 {
    page[at..]
        .first_chunk()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(page: &[u8], at: usize) -> u64 {
    page[at..]
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A file laid out like physical memory.
    struct Memory(PathBuf, Vec<u8>);

    impl Memory {
        fn new(name: &str, pages: usize) -> Memory {
            let path =
                std::env::temp_dir().join(format!("superblock-{name}-{}", std::process::id()));
            Memory(path, vec![0; pages * PAGE_SIZE])
        }
        fn put(&mut self, at: u64, bytes: &[u8]) {
            self.1[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        }
        fn open(&self) -> PhysMem {
            std::fs::write(&self.0, &self.1).unwrap();
            PhysMem::open_path(&self.0).unwrap()
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn place(memory: &mut Memory, block: &Superblock, body: &[u8]) {
        let mut rest = body;
        for extent in &block.extents {
            let now = rest.len().min((extent.end - extent.start) as usize);
            memory.put(extent.start, &rest[..now]);
            rest = &rest[now..];
        }
        for (page, bytes) in block.encode().unwrap() {
            memory.put(page, &bytes);
        }
    }

    #[test]
    fn a_body_in_many_extents_comes_back() {
        // Every other page, so that nothing joins: more than one page of extents.
        let count = EXTENTS_PER_PAGE + 10;
        let extents: Vec<Range<u64>> = (0..count as u64)
            .map(|n| (4 + 2 * n) * 4096..(5 + 2 * n) * 4096)
            .collect();
        let body: Vec<u8> = (0..count * PAGE_SIZE - 77).map(|n| (n / 5) as u8).collect();
        let block = Superblock {
            pages: vec![4096, 3 * 4096],
            extents,
            length: body.len() as u64,
            sealed: 99,
        };
        let mut memory = Memory::new("many", 4 + 2 * count);
        place(&mut memory, &block, &body);
        let opened = memory.open();
        let found = Superblock::read(&opened, 4096).unwrap();
        assert_eq!(found, block);
        assert!(found.read_body(&opened).unwrap() == body);
        assert_eq!(found.ranges().total(), (count as u64 + 2) * 4096);
    }

    fn small() -> (Memory, Superblock) {
        let block = Superblock {
            pages: vec![4096],
            extents: std::iter::once(2 * 4096..3 * 4096).collect(),
            length: 100,
            sealed: 7,
        };
        let name = format!("small-{:?}", std::thread::current().id());
        let mut memory = Memory::new(&name, 4);
        place(&mut memory, &block, &[5; 100]);
        (memory, block)
    }

    #[test]
    fn what_is_not_there_is_told_apart_from_damage() {
        let (mut memory, _) = small();
        let message = |memory: &Memory, at| {
            Superblock::read(&memory.open(), at)
                .unwrap_err()
                .to_string()
        };
        assert!(message(&memory, 0).contains("no manifest"));
        assert!(message(&memory, 4097).contains("no manifest"));
        assert!(message(&memory, 2 * 4096).contains("no manifest"));
        memory.1[4096 + 60] ^= 4;
        assert!(message(&memory, 4096).contains("CRC"));
        let other = format::VERSION + 1;
        memory.1[4096 + 8..4096 + 10].copy_from_slice(&other.to_le_bytes());
        assert!(message(&memory, 4096).contains(&format!("version {other}")));
    }

    #[test]
    fn every_flipped_bit_of_the_page_is_found() {
        let (mut memory, _) = small();
        for bit in (0..PAGE_SIZE * 8).step_by(61).chain(0..48 * 8) {
            memory.1[4096 + bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::read(&memory.open(), 4096).is_err(), "bit {bit}");
            memory.1[4096 + bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_ring_of_pages_ends() {
        let (mut memory, mut block) = small();
        block.extents = Vec::new();
        let page = block.page(&[], 4096);
        memory.put(4096, &page);
        let error = Superblock::read(&memory.open(), 4096).unwrap_err();
        assert!(error.to_string().contains("ring"), "{error}");
    }

    #[test]
    fn too_little_room_is_refused() {
        let (_, mut block) = small();
        block.length = 5000;
        assert!(block.encode().is_err());
    }
}
