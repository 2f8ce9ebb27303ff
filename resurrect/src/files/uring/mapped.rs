//! A ring's memory, and entries in it.

use super::at;
use persist_mem::manifest::Ring;
use std::os::fd::OwnedFd;
use sys::uring::{Memory, OFFSET_ENTRIES, OFFSET_RINGS, flags};

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

/// `struct io_uring_sqe`.
#[derive(Clone, Copy, Default)]
pub(super) struct Entry {
    pub(super) opcode: u8,
    /// `IOSQE_*`
    pub(super) flags: u8,
    pub(super) fd: i32,
}

impl Entry {
    fn bytes(self) -> [u8; 64] {
        let mut bytes = [0; 64];
        (bytes[0], bytes[1]) = (self.opcode, self.flags);
        bytes[4..8].copy_from_slice(&self.fd.to_le_bytes());
        bytes
    }
}
