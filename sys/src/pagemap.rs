//! `PAGEMAP_SCAN` on `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst, since 6.7): which
//! pages a process has, without reading a word for every page it could have.

use crate::raw::syscall;
use crate::{Errno, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `PAGE_IS_*` (include/uapi/linux/fs.h).
pub mod category {
    /// A page of a file or of shared memory.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// In swap.
    pub const SWAPPED: u64 = 1 << 4;
    /// The shared zero page.
    pub const ZERO: u64 = 1 << 5;
    /// Mapped by a huge page.
    pub const HUGE: u64 = 1 << 6;
    /// A guard page, `MADV_GUARD_INSTALL` (since 6.15).
    pub const GUARD: u64 = 1 << 8;
}

/// A run of pages with the same categories (`struct page_region`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// [`category`] bits, of those asked for.
    pub categories: u64,
}

/// `struct pm_scan_arg`.
#[derive(Default)]
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: u64 = 3 << 30 | (size_of::<ScanArg>() as u64) << 16 | (b'f' as u64) << 8 | 16;

const AT_ONCE: usize = 4096;

/// Every run of pages from `start` to `end` that has one of the categories `any`, in ascending
/// order, told apart by the categories `tell`. A run may go over the border of two mappings.
///
/// # Errors
/// `ENOTTY` before 6.7; `EINVAL` for a category the kernel does not know.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    any: u64,
    tell: u64,
) -> Result<Vec<Region>> {
    let mut found: Vec<Region> = Vec::new();
    let mut buffer = vec![Region::default(); AT_ONCE];
    let mut at = start;
    while at < end {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            start: at,
            end,
            vec: buffer.as_mut_ptr() as u64,
            vec_len: buffer.len() as u64,
            category_anyof_mask: any,
            return_mask: tell,
            ..ScanArg::default()
        };
        let call = [
            pagemap.as_raw_fd() as u64,
            PAGEMAP_SCAN,
            (&raw mut arg) as u64,
            0,
            0,
            0,
        ];
        // SAFETY: `arg` and the buffer it names live through the call and have the lengths it says.
        let count = unsafe { syscall(libc::SYS_ioctl, call) }?;
        let count = usize::try_from(count).unwrap_or(0);
        found.extend_from_slice(buffer.get(..count).ok_or(Errno::EIO)?);
        if arg.walk_end <= at {
            break;
        }
        at = arg.walk_end;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_SIZE_U64;
    use std::os::fd::AsFd;

    #[test]
    fn touched_pages_are_found() {
        let mut map = memmap2::MmapMut::map_anon(64 << 12).unwrap();
        let file = std::fs::File::open("/proc/self/pagemap").unwrap();
        for page in [3, 4, 9] {
            map[page << 12] = 1;
        }
        let start = map.as_ptr() as u64;
        let bits = category::PRESENT | category::SWAPPED;
        let found = match scan(file.as_fd(), start, start + (64 << 12), bits, bits) {
            Err(Errno::ENOTTY) => return,
            found => found.unwrap(),
        };
        let pages: Vec<(u64, u64)> = found
            .iter()
            .map(|r| {
                (
                    (r.start - start) / PAGE_SIZE_U64,
                    (r.end - r.start) / PAGE_SIZE_U64,
                )
            })
            .collect();
        assert_eq!(pages, [(3, 2), (9, 1)]);
    }
}
