//! Entries of directories with their offsets, which the libraries do not tell.

use crate::{Result, raw};
use std::os::fd::{AsFd, AsRawFd};

/// `d_off` and `d_reclen` of `struct linux_dirent64` (include/linux/dirent.h).
const OFFSET: usize = 8;
const LENGTH: usize = 16;

/// Reads a directory from where it is to its end: for each entry the offset behind it
/// (getdents64(2)).
///
/// # Errors
/// `ENOTDIR`, `EBADF` for an `O_PATH`.
pub fn offsets(directory: impl AsFd) -> Result<Vec<u64>> {
    let mut bytes = [0_u8; 32 << 10];
    let fd = i64::from(directory.as_fd().as_raw_fd()).cast_unsigned();
    let mut out = Vec::new();
    loop {
        let args = [fd, bytes.as_mut_ptr() as u64, bytes.len() as u64, 0, 0, 0];
        // SAFETY: the kernel writes no more than the length that is given.
        let got = unsafe { raw::syscall(libc::SYS_getdents64, args) }?;
        let mut rest = bytes
            .get(..usize::try_from(got).unwrap_or(0))
            .unwrap_or(&[]);
        if rest.is_empty() {
            return Ok(out);
        }
        while let Some((offset, length)) = entry(rest) {
            out.push(offset);
            rest = rest.get(length..).unwrap_or(&[]);
        }
    }
}

/// The offset behind the first entry, and its length.
fn entry(bytes: &[u8]) -> Option<(u64, usize)> {
    let offset = bytes.get(OFFSET..)?.first_chunk()?;
    let length = bytes.get(LENGTH..)?.first_chunk()?;
    let length = usize::from(u16::from_ne_bytes(*length));
    (length > 0).then(|| (u64::from_ne_bytes(*offset), length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fds;

    #[test]
    fn each_offset_leads_to_the_rest() {
        let path = std::env::temp_dir().join(format!("kup-dirents-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        for number in 0..2000 {
            std::fs::write(path.join(format!("{number}")), b"").unwrap();
        }
        let directory = std::fs::File::open(&path).unwrap();
        let all = offsets(&directory).unwrap();
        assert_eq!(all.len(), 2002);
        assert!(offsets(&directory).unwrap().is_empty());
        for read in [1, 2, 700, 2001] {
            fds::seek(&directory, all[read - 1]).unwrap();
            assert_eq!(offsets(&directory).unwrap(), all[read..], "{read}");
        }
        std::fs::remove_dir_all(&path).unwrap();
    }
}
