//! Locks and leases of files (`lock:` lines of fdinfo, fs/locks.c).

use super::Open;
use crate::FreezerError;
use persist_mem::manifest::{DescriptionId, Lock, LockHolder};
use sys::Pid;

/// Those that are held through a descriptor. What belongs to the description is taken when it is seen
/// first, what belongs to the process with every one of its descriptors.
pub(super) fn capture(
    open: &Open<'_>,
    id: DescriptionId,
    first: bool,
    locks: &mut Vec<Lock>,
) -> Result<(), FreezerError> {
    for line in open.info.values("lock") {
        let Some(found) = Line::parse(line) else {
            return Err(open.refuse(format!("a lock is not understood: {line}")));
        };
        let holder = match (found.interface, found.state) {
            ("FLOCK", "ADVISORY") => LockHolder::Whole(id),
            ("OFDLCK", "ADVISORY") => LockHolder::Ofd(id),
            ("LEASE", "ACTIVE") => LockHolder::Lease(id),
            ("POSIX", "ADVISORY") => LockHolder::Process {
                pid: open.pid,
                fd: open.fd,
            },
            ("LEASE", _) => return Err(open.refuse("its lease is being broken")),
            _ => return Err(open.refuse(format!("its lock is not carried: {line}"))),
        };
        let lock = Lock {
            holder,
            write: found.write,
            range: found.range,
            taker: found.taker,
        };
        let of_process = matches!(holder, LockHolder::Process { .. });
        if of_process || first {
            locks.push(lock);
        }
    }
    Ok(())
}

struct Line<'a> {
    interface: &'a str,
    state: &'a str,
    write: bool,
    range: (u64, Option<u64>),
    taker: Pid,
}

impl Line<'_> {
    /// `1: POSIX  ADVISORY  WRITE 123 08:01:456 0 EOF`, behind `lock:`.
    fn parse(line: &str) -> Option<Line<'_>> {
        let mut words = line.split_whitespace().skip(1);
        let (interface, state) = (words.next()?, words.next()?);
        let write = match words.next()? {
            "WRITE" => true,
            // A lease that is being broken shows what it will be.
            "READ" | "UNLCK" => false,
            _ => return None,
        };
        let taker = Pid(words.next()?.parse().ok()?);
        let mut words = words.skip(1);
        let start = words.next()?.parse().ok()?;
        let end = match words.next()? {
            "EOF" => None,
            // The last byte, here the first one behind it.
            last => Some(last.parse::<u64>().ok()? + 1),
        };
        Some(Line {
            interface,
            state,
            write,
            range: (start, end),
            taker,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn lines() {
        let line = Line::parse("1: POSIX  ADVISORY  WRITE 123 08:01:456 5 14").unwrap();
        assert_eq!(
            (line.interface, line.write, line.range, line.taker.0),
            ("POSIX", true, (5, Some(15)), 123)
        );
        let line = Line::parse("1: FLOCK  ADVISORY  READ  123 00:15:456 0 EOF").unwrap();
        assert_eq!(
            (line.interface, line.write, line.range),
            ("FLOCK", false, (0, None))
        );
        let line = Line::parse("1: LEASE  BREAKING  UNLCK 123 00:15:456 0 EOF").unwrap();
        assert_eq!((line.interface, line.state), ("LEASE", "BREAKING"));
        assert!(Line::parse("1: FLOCK  MSNFS").is_none());
    }
}
