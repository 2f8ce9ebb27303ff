//! Rings of io_uring(7) on a kernel that lays them out otherwise: from Linux 6.6 on their fields are closer together
//! (`struct io_rings`).
//!
//! A program is told once where they are (`struct io_uring_params`). What it keeps of that are addresses of fields, or
//! the offsets in the order of that structure; both are found in its memory and changed. Nothing else has such
//! addresses: they lie in a mapping that the kernel writes to.

use crate::manifest::{AddressSpace, Description, DescriptionKind, Ring};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use sys::uring::{OFFSET_COMPLETIONS, OFFSET_RINGS, flags};

/// How kernels lay out rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Before Linux 6.6.
    Wide,
    /// Since then.
    Close,
}

impl Layout {
    /// That of a kernel.
    #[must_use]
    pub fn of(since_6_6: bool) -> Layout {
        match since_6_6 {
            true => Layout::Close,
            false => Layout::Wide,
        }
    }

    fn offsets(self) -> Offsets {
        match self {
            Layout::Close => CLOSE,
            Layout::Wide => WIDE,
        }
    }

    /// Whether a number is the place of a field that another kernel has elsewhere, of some ring.
    #[must_use]
    pub fn is_offset(self, word: u64) -> bool {
        /// Completions are 2 to this at most, those of IORING_SETUP_CQE32 are two each.
        const MOST: u32 = 17;
        let Ok(word) = u32::try_from(word) else {
            return false;
        };
        let offsets = self.offsets();
        let array = |shift: u32| (offsets[CQES] + (16_u32 << shift)).next_multiple_of(BORDER);
        word != 0 && (offsets.contains(&word) || (0..=MOST).any(|shift| array(shift) == word))
    }
}

/// Where fields of a ring are ([`Ring::offsets`]).
pub type Offsets = [u32; 14];

/// Bytes behind a place that belong to it, at most.
pub const REACH: usize = 28;
/// Offsets of the submission queue; behind them are those of the completion queue.
const OF_SUBMISSIONS: usize = 7;
// Indices of offsets.
const SQ_TAIL: usize = 1;
const ARRAY: usize = 6;
const CQ_HEAD: usize = 7;
const CQ_TAIL: usize = 8;
const CQES: usize = 12;

/// Since Linux 6.6.
const CLOSE: Offsets = [0, 4, 16, 24, 36, 32, 0, 8, 12, 20, 28, 44, 64, 40];
/// Before.
const WIDE: Offsets = [
    0, 64, 256, 264, 276, 272, 0, 128, 192, 260, 268, 284, 320, 280,
];
/// The array of entries begins at a border of so many bytes.
const BORDER: u32 = 64;

impl Ring {
    /// Where its fields are on a kernel of Linux 6.6 or later, or on an earlier one.
    #[must_use]
    pub fn offsets_on(&self, since_6_6: bool) -> Offsets {
        let mut found = Layout::of(since_6_6).offsets();
        if self.flags & flags::NO_SQARRAY == 0 {
            let end = found[CQES].saturating_add(self.completion_bytes());
            found[ARRAY] = end.next_multiple_of(BORDER);
        }
        found
    }

    fn completion_bytes(&self) -> u32 {
        self.completions
            .saturating_mul(16 << u32::from(self.flags & flags::CQE32 != 0))
    }

    /// What has moved: old places, and the new ones of their first bytes.
    fn pieces(&self, to: &Offsets) -> Vec<(Range<u32>, u32)> {
        let mut found = Vec::new();
        for (index, (old, new)) in self.offsets.iter().zip(to).enumerate() {
            let len = match index {
                ARRAY if *old == 0 => 0,
                ARRAY => self.entries.saturating_mul(4),
                CQES => self.completion_bytes(),
                _ => 4,
            };
            found.push((*old..old.saturating_add(len), *new));
        }
        found
    }

    /// The same ring, laid out so.
    #[must_use]
    pub fn laid_out(&self, to: &Offsets) -> Ring {
        let pieces = self.pieces(to);
        let end = pieces.iter().map(|(old, new)| new + (old.end - old.start));
        let mut rings = vec![0; end.max().unwrap_or(0) as usize];
        for (old, new) in pieces {
            let (old, new) = (old.start as usize..old.end as usize, new as usize);
            let len = old.len();
            if let (Some(from), Some(into)) = (self.rings.get(old), rings.get_mut(new..new + len)) {
                into.copy_from_slice(from);
            }
        }
        Ring {
            offsets: *to,
            rings,
            ..self.clone()
        }
    }
}

/// A ring that a process has mapped.
#[derive(Debug)]
struct Moved {
    inode: u64,
    /// Where it is mapped.
    start: u64,
    /// [`Ring::pieces`].
    pieces: Vec<(Range<u32>, u32)>,
    from: Offsets,
    to: Offsets,
}

impl Moved {
    /// Which piece an address is in, and where that is now.
    fn place(&self, address: u64) -> Option<(usize, u64)> {
        let offset = u32::try_from(address.checked_sub(self.start)?).ok()?;
        let index = self
            .pieces
            .iter()
            .position(|(old, _)| old.contains(&offset))?;
        let (old, new) = &self.pieces[index];
        Some((index, self.start + u64::from(new + (offset - old.start))))
    }
}

/// The rings of a process that have moved.
#[derive(Debug)]
pub struct Moves {
    all: Vec<Moved>,
    /// All addresses that may have to be changed.
    range: Range<u64>,
}

/// Something that is to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hit {
    /// An address of a piece of a ring, and what it is now.
    Address(usize, usize, u64),
    /// Offsets of a queue of a ring.
    Submissions(usize),
    Completions(usize),
}

impl Moves {
    /// The rings that an address space has mapped and that are laid out otherwise: where, by their inodes. None when
    /// there are none.
    #[must_use]
    pub fn of(
        mm: &AddressSpace,
        descriptions: &[Description],
        to: &BTreeMap<u64, Offsets>,
    ) -> Option<Moves> {
        let ring = |inode: u64| {
            descriptions.iter().find_map(|found| match &found.kind {
                DescriptionKind::Ring(ring) if ring.inode == inode => Some(ring),
                _ => None,
            })
        };
        let mut all: Vec<Moved> = Vec::new();
        let rings = mm.rings.iter();
        for mapping in rings.filter(|map| [OFFSET_RINGS, OFFSET_COMPLETIONS].contains(&map.offset))
        {
            let Some((ring, to)) = ring(mapping.inode).zip(to.get(&mapping.inode)) else {
                continue;
            };
            if ring.offsets != *to {
                all.push(Moved {
                    inode: mapping.inode,
                    start: mapping.start,
                    pieces: ring.pieces(to),
                    from: ring.offsets,
                    to: *to,
                });
            }
        }
        let ends = all.iter().flat_map(|moved| {
            let pieces = moved.pieces.iter();
            pieces.map(|(old, _)| moved.start + u64::from(old.end))
        });
        let range = all.iter().map(|moved| moved.start).min()?..ends.max()?;
        Some(Moves { all, range })
    }

    /// An address as it is now.
    #[must_use]
    pub fn address(&self, word: u64) -> u64 {
        match self.hit(word) {
            Some(Hit::Address(_, _, now)) => now,
            _ => word,
        }
    }

    /// Whether a number is the place of a field that has moved.
    #[must_use]
    pub fn is_offset(&self, word: u64) -> bool {
        self.all.iter().any(|moved| {
            let mut pairs = moved.from.iter().zip(&moved.to);
            pairs.any(|(from, to)| from != to && u64::from(*from) == word)
        })
    }

    fn hit(&self, word: u64) -> Option<Hit> {
        if !self.range.contains(&word) {
            return None;
        }
        let mut all = self.all.iter().enumerate();
        all.find_map(|(ring, moved)| {
            let (piece, now) = moved.place(word)?;
            Some(Hit::Address(ring, piece, now))
        })
    }

    /// Calls `each` for every place in the first `len` of these bytes, which begin at the border of a word; what is
    /// behind them belongs to the last places only.
    fn find(&self, bytes: &[u8], len: usize, mut each: impl FnMut(usize, Hit)) {
        let tails: Vec<(u32, u32)> = self.tails();
        let half = |at: usize| {
            let bytes = bytes.get(at..)?.first_chunk()?;
            Some(u32::from_le_bytes(*bytes))
        };
        let is = |at: usize, wanted: &[u32]| {
            let mut places = wanted.iter().zip((at..).step_by(4));
            places.all(|(wanted, at)| half(at) == Some(*wanted))
        };
        for (number, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let (at, word) = (number * 8, u64::from_le_bytes(*word));
            if at < len
                && let Some(hit) = self.hit(word)
            {
                each(at, hit);
            }
            for (at, half) in [(at, word as u32), (at + 4, (word >> 32) as u32)] {
                if !tails.iter().any(|(sq, cq)| [*sq, *cq].contains(&half)) {
                    continue;
                }
                // The tail is the second one of its queue.
                let Some(first) = at.checked_sub(4).filter(|first| *first < len) else {
                    continue;
                };
                for (ring, moved) in self.all.iter().enumerate() {
                    let (sq, cq) = moved.from.split_at(OF_SUBMISSIONS);
                    if is(first, sq) {
                        each(first, Hit::Submissions(ring));
                        break;
                    }
                    if is(first, cq) {
                        each(first, Hit::Completions(ring));
                        break;
                    }
                }
            }
        }
    }

    fn tails(&self) -> Vec<(u32, u32)> {
        let of = |moved: &Moved| (moved.from[SQ_TAIL], moved.from[CQ_TAIL]);
        let mut found: Vec<_> = self.all.iter().map(of).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// What is to be changed in the first `len` of these bytes, which begin at the border of a word: where, and what
    /// is there afterwards.
    #[must_use]
    pub fn changes(&self, bytes: &[u8], len: usize) -> Vec<(usize, Vec<u8>)> {
        let mut found = Vec::new();
        self.find(bytes, len, |at, hit| {
            let halves = |halves: &[u32]| halves.iter().flat_map(|it| it.to_le_bytes()).collect();
            let now = match hit {
                Hit::Address(.., now) => now.to_le_bytes().to_vec(),
                Hit::Submissions(ring) => halves(&self.all[ring].to[..OF_SUBMISSIONS]),
                Hit::Completions(ring) => halves(&self.all[ring].to[OF_SUBMISSIONS..]),
            };
            found.push((at, now));
        });
        found
    }

    /// Whether this memory, one run after the other, shows how the program finds every one of these rings.
    #[must_use]
    pub fn are_traced(&self, runs: impl IntoIterator<Item = Vec<u8>>) -> bool {
        self.are_seen(runs, true)
    }

    /// Whether it shows that by addresses, so that the program needs no offsets.
    #[must_use]
    pub fn are_traced_by_address(&self, runs: impl IntoIterator<Item = Vec<u8>>) -> bool {
        self.are_seen(runs, false)
    }

    fn are_seen(&self, runs: impl IntoIterator<Item = Vec<u8>>, by_offsets: bool) -> bool {
        const NEEDED: u32 = 1 << SQ_TAIL | 1 << CQ_HEAD | 1 << CQ_TAIL;
        let mut addresses: BTreeMap<u64, u32> = BTreeMap::new();
        let (mut submissions, mut completions) = (BTreeSet::new(), false);
        for run in runs {
            self.find(&run, run.len(), |_, hit| match hit {
                Hit::Address(ring, piece, _) => {
                    *addresses.entry(self.all[ring].inode).or_default() |= 1 << piece;
                }
                Hit::Submissions(ring) => {
                    submissions.insert(self.all[ring].from);
                }
                Hit::Completions(_) => completions = true,
            });
            let known = |moved: &Moved| {
                let its = addresses.get(&moved.inode).copied().unwrap_or(0);
                let offsets = completions && submissions.contains(&moved.from);
                its & NEEDED == NEEDED || by_offsets && offsets
            };
            if self.all.iter().all(known) {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{DescriptionId, RingMapping};

    /// Of a ring with 8 entries and 16 completions, on Linux 6.1 and 6.12.
    const OLD: Offsets = [
        0, 64, 256, 264, 276, 272, 576, 128, 192, 260, 268, 284, 320, 280,
    ];
    const NEW: Offsets = [0, 4, 16, 24, 36, 32, 320, 8, 12, 20, 28, 44, 64, 40];
    const AT: u64 = 0x7f00_0000_1000;

    fn ring() -> Ring {
        let mut rings = vec![0; 608];
        for (number, offset) in OLD.iter().enumerate() {
            rings[*offset as usize] = number as u8 + 1;
        }
        Ring {
            inode: 7,
            entries: 8,
            completions: 16,
            offsets: OLD,
            rings,
            ..Ring::default()
        }
    }

    fn moves() -> Moves {
        let mm = AddressSpace {
            rings: vec![RingMapping {
                inode: 7,
                start: AT,
                end: AT + 0x1000,
                prot: 3,
                offset: OFFSET_RINGS,
                dont_fork: false,
                dont_dump: false,
            }],
            ..AddressSpace::default()
        };
        let description = Description {
            id: DescriptionId(0),
            flags: 2,
            pos: 0,
            unread: None,
            owner: None,
            hint: 0,
            denied: 0,
            kind: DescriptionKind::Ring(Box::new(ring())),
        };
        Moves::of(&mm, &[description], &BTreeMap::from([(7, NEW)])).unwrap()
    }

    fn bytes(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    fn params(offsets: &Offsets) -> Vec<u8> {
        let (sq, cq) = offsets.split_at(OF_SUBMISSIONS);
        let words = [8, 16, 0]
            .iter()
            .chain(sq)
            .chain(&[0, 0, 0])
            .chain(cq)
            .chain(&[0]);
        words.flat_map(|word| word.to_le_bytes()).collect()
    }

    fn changed(memory: &[u8], len: usize) -> Vec<u8> {
        let mut now = memory.to_vec();
        for (at, bytes) in moves().changes(memory, len) {
            now[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        now
    }

    #[test]
    fn a_ring_is_laid_out_anew() {
        assert_eq!(
            (ring().offsets_on(false), ring().offsets_on(true)),
            (OLD, NEW)
        );
        let now = ring().laid_out(&NEW);
        assert_eq!((now.offsets, now.rings.len()), (NEW, 352));
        let found = NEW.map(|offset| now.rings[offset as usize]);
        assert_eq!(found.to_vec(), (1..=14).collect::<Vec<u8>>());
    }

    #[test]
    fn addresses_and_offsets_are_changed() {
        let old = bytes([
            AT,
            AT + 64,
            1,
            AT + 192,
            AT + 336,
            AT + 580,
            AT + 608,
            64,
            AT + 60,
        ]);
        let new = bytes([
            AT,
            AT + 4,
            1,
            AT + 12,
            AT + 80,
            AT + 324,
            AT + 608,
            64,
            AT + 60,
        ]);
        assert_eq!(changed(&old, old.len()), new);
        assert_eq!(changed(&params(&OLD), 112), params(&NEW));
        // What belongs to the next run is not changed with this one.
        assert_eq!(changed(&old, 8), old);
    }

    #[test]
    fn what_shows_how_rings_are_found() {
        let traced = |memory: Vec<u8>| moves().are_traced([memory]);
        assert!(traced(params(&OLD)));
        assert!(traced(bytes([AT + 64, AT + 128, AT + 192])));
        assert!(!traced(bytes([AT + 64, AT + 128, AT])));
        assert!(!traced(params(&NEW)));
        let by_address = |memory: Vec<u8>| moves().are_traced_by_address([memory]);
        assert!(!by_address(params(&OLD)));
        assert!(by_address(bytes([AT + 64, AT + 128, AT + 192])));
    }

    #[test]
    fn numbers_that_are_places_of_fields() {
        let found: Vec<u64> = (0..640).filter(|it| moves().is_offset(*it)).collect();
        let mut moved = OLD.map(u64::from)[1..].to_vec();
        moved.retain(|it| *it > 0);
        moved.sort_unstable();
        assert_eq!(found, moved);
        assert!(moved.iter().all(|it| Layout::Wide.is_offset(*it)));
        let of_any = |layout: Layout| (0..640).filter(|it| layout.is_offset(*it)).count();
        assert_eq!((of_any(Layout::Wide), of_any(Layout::Close)), (15, 16));
    }
}
