//! The kernel's shared pages of zeros: what a read of memory never written to maps. They are
//! nobody's data.

use super::Pagemap;
use memmap2::MmapMut;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use sys::Pid;

/// Pages in a huge page.
const HUGE: u64 = 512;
/// `KPF_THP` and `KPF_ZERO_PAGE` (include/uapi/linux/kernel-page-flags.h).
const HUGE_ZERO: u64 = 1 << 22 | 1 << 24;

/// Knows them by frame.
#[derive(Debug)]
pub(crate) struct ZeroPages {
    small: Option<u64>,
    /// `/proc/kpageflags`, None where it cannot be read.
    flags: Option<File>,
    /// Whether the huge page a frame is in is one of zeros, by frame / 512.
    huge: RefCell<BTreeMap<u64, bool>>,
}

impl ZeroPages {
    pub(crate) fn find() -> ZeroPages {
        ZeroPages {
            small: small().filter(|pfn| *pfn != 0),
            flags: File::open("/proc/kpageflags").ok(),
            huge: RefCell::default(),
        }
    }

    pub(crate) fn contains(&self, pfn: u64) -> bool {
        Some(pfn) == self.small || (pfn != 0 && self.in_huge(pfn / HUGE))
    }

    fn in_huge(&self, number: u64) -> bool {
        let Some(flags) = &self.flags else {
            return false;
        };
        *self.huge.borrow_mut().entry(number).or_insert_with(|| {
            let mut word = [0; 8];
            let read = flags.read_exact_at(&mut word, number * HUGE * 8);
            read.is_ok() && u64::from_le_bytes(word) & HUGE_ZERO == HUGE_ZERO
        })
    }
}

/// The frame behind a page of ours that was read and never written to.
fn small() -> Option<u64> {
    let page = MmapMut::map_anon(sys::PAGE_SIZE).ok()?;
    let start = page.as_ptr() as u64;
    // The read makes the kernel map it.
    if std::hint::black_box(page[0]) != 0 {
        return None;
    }
    let me = Pid(nix::unistd::getpid().as_raw());
    let mut found = None;
    Pagemap::open(me)
        .ok()?
        .scan(start, start + sys::PAGE_SIZE_U64, |_, state| {
            found = Some(state.pfn());
        })
        .ok()?;
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_not_taken_for_zeros() {
        let zero = ZeroPages::find();
        let mut page = MmapMut::map_anon(sys::PAGE_SIZE).unwrap();
        page[5] = 1;
        let start = page.as_ptr() as u64;
        let me = Pid(nix::unistd::getpid().as_raw());
        let pagemap = Pagemap::open(me).unwrap();
        let mut pfns = Vec::new();
        pagemap
            .scan(start, start + sys::PAGE_SIZE_U64, |_, state| {
                pfns.push(state.pfn());
            })
            .unwrap();
        assert_eq!(pfns.len(), 1);
        assert!(!zero.contains(pfns[0]));
        // Frame numbers are only told to the privileged.
        if pfns[0] != 0 {
            assert!(zero.contains(small().unwrap()));
        }
    }
}
