//! A ring's memory, and entries in it.

use super::at;
use persist_mem::manifest::Ring;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use sys::Errno;
use sys::uring::{Entry, Memory, OFFSET_ENTRIES, OFFSET_RINGS, flags};

/// How long a thread of the kernel's may take to take entries.
const WITHIN: Duration = Duration::from_secs(10);

/// Memory of a new ring.
pub(super) struct Mapped {
    pub(super) rings: Memory,
    pub(super) sqes: Memory,
    /// [`Ring::offsets`]
    pub(super) offsets: [u32; 14],
    pub(super) entries: u32,
    /// Bytes of an entry.
    pub(super) size: u32,
}

impl Mapped {
    pub(super) fn of(ring: &Ring, opened: &OwnedFd) -> sys::Result<Mapped> {
        Ok(Mapped {
            rings: Memory::map(opened, OFFSET_RINGS, ring.rings.len())?,
            sqes: Memory::map(opened, OFFSET_ENTRIES, ring.sqes.len())?,
            offsets: ring.offsets,
            entries: ring.entries,
            size: 64 << u32::from(ring.flags & flags::SQE128 != 0),
        })
    }

    /// Writes the same request into every entry.
    pub(super) fn fill(&self, entry: &Entry) {
        for index in 0..self.entries {
            self.sqes.write(index * self.size, &entry.bytes());
            if self.offsets[at::ARRAY] != 0 {
                self.rings
                    .set_word(self.offsets[at::ARRAY] + index * 4, index);
            }
        }
    }

    /// Puts entries behind those that the kernel has taken.
    pub(super) fn add(&self, entries: &[Entry]) {
        let taken = self.rings.word(self.offsets[at::SQ_HEAD]);
        let (mask, array) = (self.entries - 1, self.offsets[at::ARRAY]);
        for (number, entry) in (taken..=u32::MAX).zip(entries) {
            let index = number & mask;
            self.sqes.write(index * self.size, &entry.bytes());
            if array != 0 {
                self.rings.set_word(array + index * 4, index);
            }
        }
        let tail = taken.wrapping_add(u32::try_from(entries.len()).unwrap_or(0));
        self.rings.set_word(self.offsets[at::SQ_TAIL], tail);
    }

    /// Writes all memory of the rings as it was; what a thread of the kernel's looks at last, when the entries are there.
    pub(super) fn write_all(&self, ring: &Ring) {
        let kept = match ring.poller {
            Some(_) => vec![self.offsets[at::SQ_TAIL], self.offsets[at::SQ_FLAGS]],
            None => Vec::new(),
        };
        for (place, word) in (0..).step_by(4).zip(ring.rings.as_chunks::<4>().0) {
            if !kept.contains(&place) {
                self.rings.set_word(place, u32::from_ne_bytes(*word));
            }
        }
    }

    /// Waits until all entries are taken, where a thread of the kernel's does that.
    pub(super) fn wait_until_taken(&self) -> sys::Result<()> {
        let begun = Instant::now();
        let word = |index: usize| self.rings.word(self.offsets[index]);
        while word(at::SQ_HEAD) != word(at::SQ_TAIL) {
            if begun.elapsed() > WITHIN {
                return Err(Errno::ETIMEDOUT);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// Writes the memory of its entries as it was.
    pub(super) fn write_entries(&self, ring: &Ring) {
        self.sqes.write(0, &ring.sqes);
        let array = ring.offsets[at::ARRAY];
        if let Some(bytes) = ring.rings.get(array as usize..).filter(|_| array != 0) {
            self.rings.write(array, bytes);
        }
        let tail = ring.offsets[at::SQ_TAIL];
        if let Some(bytes) = ring.rings.get(tail as usize..tail as usize + 4) {
            self.rings.write(tail, bytes);
        }
    }

    pub(super) fn add_to_tail(&self, count: u32) {
        let tail = self.offsets[at::SQ_TAIL];
        self.rings
            .set_word(tail, self.rings.word(tail).wrapping_add(count));
    }

    /// Takes the completions before this one.
    pub(super) fn take(&self, head: u32) {
        self.rings.set_word(self.offsets[at::CQ_HEAD], head);
    }

    /// Completions so far.
    pub(super) fn completed(&self) -> u32 {
        self.rings.word(self.offsets[at::CQ_TAIL])
    }
}
