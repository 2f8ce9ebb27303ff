//! `/proc/kpagecount` (Documentation/admin-guide/mm/pagemap.rst): in how many places frames are mapped.
//!
//! What pagemap tells of pages that a huge page maps cannot be relied on: the kernel looks at the first of
//! them only (`pagemap_pmd_range` in fs/proc/task_mmu.c), and that one may have been given up elsewhere while
//! the others are still shared.

use super::PageState;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// How often frames are mapped.
#[derive(Debug)]
pub(crate) struct MapCounts {
    /// None where it cannot be read.
    file: Option<File>,
}

impl MapCounts {
    pub(crate) fn open() -> MapCounts {
        MapCounts {
            file: File::open("/proc/kpagecount").ok(),
        }
    }

    /// Corrects what is told of pages mapped by huge pages: those that others may have are not exclusive.
    /// Where the kernel does not tell, none is.
    pub(crate) fn correct(&self, states: &mut [PageState]) {
        let mut at = 0;
        while at < states.len() {
            let first = states[at].pfn();
            let follows = |(i, state): &(usize, &PageState)| state.pfn() == first + *i as u64;
            let rest = states[at..].iter().enumerate();
            let len = rest.take_while(follows).count().max(1);
            let counts = self.counts(first, len);
            for (i, state) in states[at..at + len].iter_mut().enumerate() {
                let alone = counts.as_ref().is_some_and(|counts| counts[i] <= 1);
                if !alone {
                    *state = state.not_exclusive();
                }
            }
            at += len;
        }
    }

    fn counts(&self, first: u64, len: usize) -> Option<Vec<u64>> {
        const WORD: usize = size_of::<u64>();
        let mut bytes = vec![0; len * WORD];
        let file = self.file.as_ref()?;
        file.read_exact_at(&mut bytes, first * WORD as u64).ok()?;
        let words = bytes.chunks_exact(WORD);
        Some(
            words
                .filter_map(|word| word.try_into().ok().map(u64::from_le_bytes))
                .collect(),
        )
    }
}
