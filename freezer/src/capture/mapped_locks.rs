//! Locks of whole files (flock(2)) that only mappings hold: the descriptor that they were taken by is closed, as in every
//! Java program.

use crate::proc;
use persist_mem::manifest::{Backing, DescriptionKind, Lock, LockHolder, Manifest, Vma};
use sys::Pid;

/// Those that processes of the manifest have taken, and no description of it has.
pub(super) fn capture(manifest: &Manifest) -> Vec<Lock> {
    // To read the list stops all locking of the host, which takes some ten milliseconds (fs/locks.c, locks_start).
    let mut lives = manifest.processes.iter().filter_map(|one| one.live());
    if !lives.any(|live| live.mm.vmas.iter().any(is_shared)) {
        return Vec::new();
    }
    let text = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let taken = text.lines().filter_map(Taken::parse);
    let of_tree = taken.filter(|taken| {
        let mut processes = manifest.processes.iter();
        processes.any(|process| process.pid == taken.by && process.live().is_some())
    });
    let lock = |taken: Taken<'_>| {
        let maps = std::fs::read_to_string(proc::path(taken.by, "maps")).ok()?;
        let start = maps.lines().find_map(|line| mapped(line, taken.place))?;
        let pid = taken.by;
        if is_held(manifest, &taken, object_at(manifest, pid, start)) {
            return None;
        }
        Some(Lock {
            holder: LockHolder::Mapping { pid, start },
            write: taken.write,
            range: (0, None),
            taker: pid,
        })
    };
    of_tree.filter_map(lock).collect()
}

/// The object that a process has mapped at an address.
fn object_at(manifest: &Manifest, pid: Pid, start: u64) -> Option<u32> {
    let process = |pid: Pid| manifest.processes.iter().find(|one| one.pid == pid)?.live();
    let live = process(pid)?;
    let live = live.mm_of.map_or(Some(live), process)?;
    let at = |vma: &&Vma| (vma.start..vma.end).contains(&start);
    match live.mm.vmas.iter().find(at)?.backing {
        Backing::Object { object, .. } => Some(object),
        _ => None,
    }
}

/// Whether it may be of a file that has a lock.
fn is_shared(vma: &Vma) -> bool {
    let shared = matches!(
        vma.backing,
        Backing::File { shared: true, .. } | Backing::Object { shared: true, .. }
    );
    shared || vma.has(b"sh") || vma.has(b"ms")
}

/// Whether a description holds it: of the file, or of the object that it is mapped as.
fn is_held(manifest: &Manifest, taken: &Taken<'_>, mapped: Option<u32>) -> bool {
    let inode = taken.place.rsplit(':').next();
    let inode: Option<u64> = inode.and_then(|inode| inode.parse().ok());
    manifest.locks.iter().any(|lock| {
        let LockHolder::Whole(id) = lock.holder else {
            return false;
        };
        let file = match manifest.description(id).map(|found| &found.kind) {
            Some(DescriptionKind::Path(file) | DescriptionKind::Handle { file, .. }) => file,
            Some(DescriptionKind::Deleted { object } | DescriptionKind::Memfd { object }) => {
                let same = Some(*object) == mapped;
                return same && (lock.taker, lock.write) == (taken.by, taken.write);
            }
            _ => return false,
        };
        // 0 stands for a number that will be another one.
        (lock.taker, lock.write) == (taken.by, taken.write)
            && (file.inode == 0 || Some(file.inode) == inode)
    })
}

/// A line of `/proc/locks`.
struct Taken<'a> {
    by: Pid,
    write: bool,
    /// Device and inode, as `/proc/PID/maps` has them but for what is between.
    place: &'a str,
}

impl Taken<'_> {
    /// `1: FLOCK  ADVISORY  WRITE 123 08:01:456 0 EOF`
    fn parse(line: &str) -> Option<Taken<'_>> {
        let mut words = line.split_whitespace().skip(1);
        if (words.next()?, words.next()?) != ("FLOCK", "ADVISORY") {
            return None;
        }
        Some(Taken {
            write: words.next()? == "WRITE",
            by: Pid(words.next()?.parse().ok()?),
            place: words.next()?,
        })
    }
}

/// Where a mapping begins, if it is a shared one of this file.
fn mapped(line: &str, place: &str) -> Option<u64> {
    let mut words = line.split_whitespace();
    let (range, permissions) = (words.next()?, words.next()?);
    let (device, inode) = (words.nth(1)?, words.next()?);
    let same = place.strip_prefix(device)?.strip_prefix(':')? == inode;
    let start = range.split('-').next()?;
    (same && permissions.ends_with('s')).then(|| u64::from_str_radix(start, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_and_mappings() {
        let taken = Taken::parse("2: FLOCK  ADVISORY  WRITE 123 fe:00:456 0 EOF").unwrap();
        assert_eq!((taken.by, taken.write), (Pid(123), true));
        assert!(Taken::parse("2: -> FLOCK  ADVISORY  WRITE 123 fe:00:456 0 EOF").is_none());
        assert!(Taken::parse("3: POSIX  ADVISORY  WRITE 123 fe:00:456 0 9").is_none());
        for (line, wanted) in [
            ("7f00-7f10 rw-s 00000000 fe:00 456    /a file", Some(0x7f00)),
            ("7f00-7f10 rw-p 00000000 fe:00 456    /a file", None),
            ("7f00-7f10 rw-s 00000000 fe:00 4567   /a file", None),
            ("7f00-7f10 rw-s 00000000 fe:01 456    /a file", None),
        ] {
            assert_eq!(mapped(line, taken.place), wanted, "{line}");
        }
    }
}
