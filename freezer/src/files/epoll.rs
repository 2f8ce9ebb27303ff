//! epoll_create(2): the interest list.

use super::Open;
use crate::FreezerError;
use persist_mem::manifest::{DescriptionKind, EpollTarget};
use std::os::unix::fs::MetadataExt;

pub(super) fn capture(open: &Open<'_>) -> Result<DescriptionKind, FreezerError> {
    let mut targets = Vec::new();
    for line in open.info.values("tfd") {
        let (target, inode) = parse(line).ok_or_else(|| open.format())?;
        check_same(open, target.fd, inode)?;
        targets.push(target);
    }
    Ok(DescriptionKind::Epoll { targets })
}

/// `TFD events: HEX data: HEX pos:N ino:HEX sdev:HEX`, behind `tfd:`.
fn parse(line: &str) -> Option<(EpollTarget, u64)> {
    let spaced = line.replace(':', " ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let after = |key: &str| {
        words
            .iter()
            .position(|w| *w == key)
            .and_then(|i| words.get(i + 1))
    };
    let target = EpollTarget {
        fd: words.first()?.parse().ok()?,
        events: u32::from_str_radix(after("events")?, 16).ok()?,
        data: u64::from_str_radix(after("data")?, 16).ok()?,
    };
    Some((target, u64::from_str_radix(after("ino")?, 16).ok()?))
}

/// A registration outlives the closing of its number while a duplicate lives; then the number is free,
/// or another file's.
fn check_same(open: &Open<'_>, fd: i32, inode: u64) -> Result<(), FreezerError> {
    let gone = || {
        open.refuse(format!(
            "it watches descriptor {fd}, which was closed since"
        ))
    };
    let path = format!("/proc/{}/fd/{fd}", open.pid);
    let now = std::fs::metadata(path).map_err(|_| gone())?;
    if now.ino() == inode {
        Ok(())
    } else {
        Err(gone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_and_without_blanks() {
        let line = "        5 events: 80000019 data: ffffffffffffffff  pos:0 ino:61af sdev:7";
        let (target, inode) = parse(line).unwrap();
        assert_eq!(
            (target.fd, target.events, target.data),
            (5, 0x8000_0019, u64::MAX)
        );
        assert_eq!(inode, 0x61af);
        assert!(parse("x events: 1").is_none());
    }
}
