//! Blocks of files that hold nothing (fallocate(2)).

use crate::{Errno, PAGE_SIZE_U64, Result};
use nix::fcntl::{FallocateFlags, fallocate};
use std::os::fd::AsFd;

/// Allocates so many bytes without data. Where such were nobody can tell: they are had in the first holes between what
/// is `filled`, offsets and lengths in ascending order. A file system that cannot, or has no room, is let be.
///
/// # Errors
/// As fallocate(2).
pub fn allocate(
    file: &impl AsFd,
    filled: impl IntoIterator<Item = (u64, u64)>,
    bytes: u64,
) -> Result<()> {
    for (offset, len) in places(filled, bytes) {
        let range = (i64::try_from(offset).ok(), i64::try_from(len).ok());
        let (Some(offset), Some(len)) = range else {
            return Ok(());
        };
        match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSPC | Errno::EFBIG) => return Ok(()),
            done => done?,
        }
    }
    Ok(())
}

/// Offsets and lengths. Less than a page is the file system's own.
fn places(filled: impl IntoIterator<Item = (u64, u64)>, bytes: u64) -> Vec<(u64, u64)> {
    let mut missing = bytes - bytes % PAGE_SIZE_U64;
    let (mut found, mut at) = (Vec::new(), 0);
    for (offset, filled) in filled {
        let hole = offset.saturating_sub(at);
        let len = missing.min(hole - hole % PAGE_SIZE_U64);
        if len > 0 {
            found.push((at, len));
        }
        missing -= len;
        at = offset.saturating_add(filled);
        at = at.checked_next_multiple_of(PAGE_SIZE_U64).unwrap_or(at);
    }
    if missing > 0 {
        found.push((at, missing));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn blocks_go_where_no_data_is() {
        let filled = [(8192, 4096), (16384, 100)];
        assert_eq!(places(filled, 0), []);
        assert_eq!(places(filled, 4096), [(0, 4096)]);
        assert_eq!(
            places(filled, 5 * 4096),
            [(0, 8192), (12288, 4096), (20480, 8192)]
        );
        assert_eq!(places([], 512), []);
    }

    #[test]
    fn as_many_are_had_as_were_asked_for() {
        let name = c"holes";
        let flags = nix::sys::memfd::MFdFlags::empty();
        let file = std::fs::File::from(nix::sys::memfd::memfd_create(name, flags).unwrap());
        file.set_len(65536).unwrap();
        file.write_all_at(&[1; 4096], 8192).unwrap();
        allocate(&file, [(8192, 4096)], 5 * 4096).unwrap();
        let seen = file.metadata().unwrap();
        assert_eq!((seen.blocks() * 512, seen.len()), (6 * 4096, 65536));
    }
}
