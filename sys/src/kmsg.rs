//! `/dev/kmsg`, the kernel's log (Documentation/ABI/testing/dev-kmsg): records with ascending numbers.

use crate::{Errno, Result};
use nix::unistd::{Whence, lseek64, read};
use std::os::fd::AsFd;

/// Room for a record (`PRINTKRB_RECORD_MAX`, kernel/printk/printk.c) with its dictionary.
const ROOM: usize = 8192;

/// Reads a record of a non-blocking description and gives its number; None at the end of the log.
///
/// # Errors
/// What read(2) gives; `EPROTO` for a record without a number.
pub fn read_number(log: &impl AsFd) -> Result<Option<u64>> {
    let mut record = [0; ROOM];
    loop {
        match read(log.as_fd(), &mut record) {
            Ok(len) => return number(&record[..len]).ok_or(Errno::EPROTO).map(Some),
            Err(Errno::EAGAIN) => return Ok(None),
            // Records that were not read yet have been overwritten: it goes on with the oldest.
            Err(Errno::EPIPE) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Sets the position before record `next`, or the first one that is still there.
///
/// # Errors
/// As [`read_number`].
pub fn seek_to(log: &impl AsFd, next: u64) -> Result<()> {
    seek_to_first(log)?;
    loop {
        match read_number(log)? {
            Some(number) if number >= next => return seek_to_first(log),
            Some(number) if number + 1 < next => {}
            Some(_) | None => return Ok(()),
        }
    }
}

/// Sets the position before the first record.
///
/// # Errors
/// As lseek(2).
pub fn seek_to_first(log: &impl AsFd) -> Result<()> {
    lseek64(log.as_fd(), 0, Whence::SeekSet).map(drop)
}

/// `PRIORITY,NUMBER,TIME,FLAGS;TEXT`.
fn number(record: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(record.split(|b| *b == b';').next()?).ok()?;
    text.split(',').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        assert_eq!(number(b"6,1234,5678,-;hello, you\n"), Some(1234));
        assert_eq!(number(b"hello"), None);
    }

    #[test]
    fn a_position_is_found_again() {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::File::options();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let Ok(log) = options.open("/dev/kmsg") else {
            return;
        };
        let Some(first) = read_number(&log).unwrap() else {
            return;
        };
        seek_to(&log, first + 2).unwrap();
        assert!(
            read_number(&log)
                .unwrap()
                .is_none_or(|number| number >= first + 2)
        );
        seek_to(&log, first).unwrap();
        assert_eq!(read_number(&log).unwrap(), Some(first));
    }
}
