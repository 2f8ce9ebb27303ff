//! Frames of our own outside of the boot window: for the manifest, and for carried pages that lie
//! in the window.

use crate::ranges::RangeSet;
use crate::superblock::{Superblock, SuperblockError};
use std::collections::BTreeMap;
use std::ops::Range;
use sys::held::HeldPages;
use sys::{Errno, PAGE_SIZE, PAGE_SIZE_U64};

/// Pages taken from the kernel at once: a huge page.
const CHUNK: usize = 512;

/// Why there are no frames.
#[derive(Debug, thiserror::Error)]
pub enum FramesError {
    /// The kernel gives no memory.
    #[error("no memory for {wanted} pages outside of the boot window: {errno}")]
    NoMemory {
        /// How many were wanted.
        wanted: usize,
        /// The kernel's answer.
        errno: Errno,
    },
    /// What the kernel gives lies in the window.
    #[error("of {taken} pages taken all but {found} lie in the boot window; {wanted} are needed")]
    AllInside {
        /// How many were taken.
        taken: usize,
        /// How many lie outside.
        found: usize,
        /// How many are wanted.
        wanted: usize,
    },
    /// The kernel moved a page meanwhile.
    #[error("page frame {frame:#x} was moved by the kernel; nothing may move memory now")]
    Moved {
        /// The frame.
        frame: u64,
    },
    /// More was asked for than was taken.
    #[error("the frames taken before are used up")]
    UsedUp,
}

/// Locked pages of this process outside of the window, known by frame.
#[derive(Debug)]
pub struct Frames {
    avoid: RangeSet,
    chunks: Vec<HeldPages>,
    /// Where each frame that may be used is mapped: chunk and page in it.
    places: BTreeMap<u64, (usize, usize)>,
    /// Those not handed out yet, the next one last.
    free: Vec<u64>,
}

impl Frames {
    /// None yet. `avoid` are the physical bytes of the window.
    #[must_use]
    pub fn new(avoid: RangeSet) -> Frames {
        Frames {
            avoid,
            chunks: Vec::new(),
            places: BTreeMap::new(),
            free: Vec::new(),
        }
    }

    /// Makes sure that `wanted` frames are there to be handed out. Pages that lie in the window
    /// are kept, so that the kernel does not give them again.
    ///
    /// # Errors
    /// [`FramesError`].
    pub fn reserve(&mut self, wanted: usize) -> Result<(), FramesError> {
        let mut taken = 0;
        while self.free.len() < wanted {
            let found = self.free.len();
            if taken > 8 * wanted + 64 * CHUNK {
                return Err(FramesError::AllInside {
                    taken,
                    found,
                    wanted,
                });
            }
            let pages = (wanted - found).next_multiple_of(CHUNK);
            let no_memory = |errno| FramesError::NoMemory { wanted, errno };
            let chunk = HeldPages::new(pages.min(16 * CHUNK)).map_err(no_memory)?;
            taken += chunk.pages();
            let mut outside = Vec::new();
            for (page, frame) in chunk.frames().map_err(no_memory)?.into_iter().enumerate() {
                if !self.avoid.contains(frame * PAGE_SIZE_U64) {
                    self.places.insert(frame, (self.chunks.len(), page));
                    outside.push(frame);
                }
            }
            self.chunks.push(chunk);
            // In runs: ascending within a chunk, chunks in the order they came.
            outside.sort_unstable_by_key(|frame| std::cmp::Reverse(*frame));
            outside.append(&mut self.free);
            self.free = outside;
        }
        Ok(())
    }

    /// Hands out a frame.
    ///
    /// # Errors
    /// [`FramesError::UsedUp`].
    pub fn take(&mut self) -> Result<u64, FramesError> {
        self.free.pop().ok_or(FramesError::UsedUp)
    }

    /// Fills a frame that was handed out, from its start.
    ///
    /// # Errors
    /// [`FramesError::UsedUp`] for a frame that is none of ours or more than a page.
    pub fn write(&mut self, frame: u64, bytes: &[u8]) -> Result<(), FramesError> {
        let (chunk, page) = *self.places.get(&frame).ok_or(FramesError::UsedUp)?;
        if bytes.len() > PAGE_SIZE {
            return Err(FramesError::UsedUp);
        }
        self.chunks[chunk]
            .write(page * PAGE_SIZE, bytes)
            .map_err(|_| FramesError::UsedUp)
    }

    /// Puts bytes into frames handed out one after the other; gives the physical bytes in order.
    ///
    /// # Errors
    /// [`FramesError`].
    pub fn store(&mut self, bytes: &[u8]) -> Result<Vec<Range<u64>>, FramesError> {
        self.reserve(bytes.len().div_ceil(PAGE_SIZE))?;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for page in bytes.chunks(PAGE_SIZE) {
            let frame = self.take()?;
            self.write(frame, page)?;
            let start = frame * PAGE_SIZE_U64;
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end += PAGE_SIZE_U64,
                _ => ranges.push(start..start + PAGE_SIZE_U64),
            }
        }
        Ok(ranges)
    }

    /// Looks whether every frame is still where it was.
    ///
    /// # Errors
    /// [`FramesError::Moved`].
    pub fn check(&self) -> Result<(), FramesError> {
        let mut now = Vec::new();
        for chunk in &self.chunks {
            let frames = chunk.frames().map_err(|errno| FramesError::NoMemory {
                wanted: chunk.pages(),
                errno,
            })?;
            now.push(frames);
        }
        let moved = self
            .places
            .iter()
            .find(|(frame, (chunk, page))| now[*chunk].get(*page) != Some(*frame));
        match moved {
            Some((frame, _)) => Err(FramesError::Moved { frame: *frame }),
            None => Ok(()),
        }
    }
}

/// A manifest that is about to be written: its first page has its place already.
#[derive(Debug)]
pub struct ManifestPlace {
    first: u64,
}

/// Why a manifest cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// There are no frames for it.
    #[error(transparent)]
    Frames(#[from] FramesError),
    /// A defect.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
}

impl ManifestPlace {
    /// Takes the frame of the first page.
    ///
    /// # Errors
    /// [`FramesError`].
    pub fn reserve(frames: &mut Frames) -> Result<ManifestPlace, FramesError> {
        frames.reserve(1)?;
        Ok(ManifestPlace {
            first: frames.take()?,
        })
    }

    /// Its physical address, for the command line.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.first * PAGE_SIZE_U64
    }

    /// Writes the body and returns what its first page will say, but for `sealed`.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn write_body(&self, frames: &mut Frames, body: &[u8]) -> Result<Superblock, PlaceError> {
        let extents = frames.store(body)?;
        let more = Superblock::pages_for(extents.len()) - 1;
        frames.reserve(more)?;
        let mut pages = vec![self.address()];
        for _ in 0..more {
            pages.push(frames.take()? * PAGE_SIZE_U64);
        }
        Ok(Superblock {
            pages,
            extents,
            length: body.len() as u64,
            sealed: 0,
        })
    }

    /// Writes the pages that make it valid, the first one last.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn seal(&self, frames: &mut Frames, block: &Superblock) -> Result<(), PlaceError> {
        for (address, bytes) in block.encode()? {
            frames.write(address / PAGE_SIZE_U64, &bytes)?;
        }
        Ok(frames.check()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frame numbers are only told to the privileged.
    fn privileged() -> bool {
        HeldPages::new(1).is_ok_and(|page| page.frames().is_ok())
    }

    #[test]
    fn frames_in_the_window_are_not_handed_out() {
        if !privileged() {
            return;
        }
        let mut frames = Frames::new(RangeSet::default());
        frames.reserve(10).unwrap();
        // Pretend that the window covers half of what there is.
        let mut all: Vec<u64> = frames.places.keys().copied().collect();
        all.sort_unstable();
        let middle = all[all.len() / 2] * PAGE_SIZE_U64;
        drop(frames);
        let mut frames = Frames::new(RangeSet::from_range(0..middle));
        if frames.reserve(700).is_err() {
            return;
        }
        for _ in 0..700 {
            let frame = frames.take().unwrap();
            assert!(frame * PAGE_SIZE_U64 >= middle);
            frames.write(frame, b"some bytes").unwrap();
        }
        frames.check().unwrap();
        assert!(frames.write(frames.avoid.end() / 4096 - 1, b"").is_err());
    }

    #[test]
    fn a_window_over_everything_ends_the_search() {
        if !privileged() {
            return;
        }
        let mut frames = Frames::new(RangeSet::from_range(0..u64::MAX));
        assert!(matches!(
            frames.reserve(1),
            Err(FramesError::AllInside { found: 0, .. })
        ));
    }

    #[test]
    fn a_manifest_is_laid_out_in_frames() {
        if !privileged() {
            return;
        }
        let mut frames = Frames::new(RangeSet::default());
        let place = ManifestPlace::reserve(&mut frames).unwrap();
        let body = vec![9; 3_000_001];
        let block = place.write_body(&mut frames, &body).unwrap();
        assert_eq!(block.pages[0], place.address());
        assert!(block.room() >= block.length && block.length == 3_000_001);
        assert!(!block.extents.iter().any(|e| e.contains(&place.address())));
        place.seal(&mut frames, &block).unwrap();
    }
}
