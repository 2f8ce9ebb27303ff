//! Locks and leases of files (`lock:` lines of fdinfo, fs/locks.c).

use super::Open;
use super::known::Copies;
use crate::FreezerError;
use crate::kernel::{self, Kernel, RangeLock, Unreadable};
use crate::proc;
use nix::sys::stat::fstat;
use persist_mem::manifest::{DescriptionId, Lock, LockHolder};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use sys::{Pid, Tid};

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
        // Whoever maps it again has it open by another description, which is in the way of such a lease.
        if first && lock.write && matches!(holder, LockHolder::Lease(_)) && is_mapped(open) {
            let why = "a lease for writing of a file that is mapped as well is not carried";
            return Err(open.refuse(why));
        }
        if of_process || first {
            locks.push(lock);
        }
    }
    Ok(())
}

/// Whether any process has the file mapped.
fn is_mapped(open: &Open<'_>) -> bool {
    let file = (open.stat.st_dev, open.stat.st_ino);
    let maps = |pid: Pid| {
        proc::read(pid, "maps")
            .ok()
            .and_then(|text| proc::parse_smaps(&text))
    };
    proc::everyone().is_ok_and(|all| {
        let mut all = all.into_iter().filter_map(maps).flatten();
        all.any(|map| (map.device, map.inode) == file)
    })
}

/// Puts locks of ranges of one file into the order in which the kernel has them, where several have some: whoever
/// asks for one that is in the way (`F_GETLK`) is told of the first.
pub(super) fn order(
    locks: &mut [Lock],
    numbers: &BTreeMap<(Pid, i32), DescriptionId>,
    copies: &Copies,
) {
    let mut by_file: BTreeMap<(u64, u64), Vec<(usize, &OwnedFd)>> = BTreeMap::new();
    for (index, lock) in locks.iter().enumerate() {
        let description = match lock.holder {
            LockHolder::Ofd(id) => Some(id),
            LockHolder::Process { pid, fd } => numbers.get(&(pid, fd)).copied(),
            LockHolder::Whole(_) | LockHolder::Lease(_) | LockHolder::Mapping { .. } => None,
        };
        let copy = description.and_then(|id| copies.get(&id));
        if let Some((copy, stat)) = copy.and_then(|copy| Some((copy, fstat(copy).ok()?))) {
            let file = (stat.st_dev, stat.st_ino);
            by_file.entry(file).or_default().push((index, copy));
        }
    }
    for of_file in by_file.into_values() {
        let (first, _) = of_file[0];
        let mut others = of_file.iter().map(|(index, _)| owner(&locks[*index]));
        if others.all(|other| other == owner(&locks[first])) {
            continue;
        }
        let places = kernel::look(|kernel| places(kernel, locks, &of_file));
        match places {
            Ok(places) => {
                let mut placed: Vec<(usize, Lock)> = of_file
                    .iter()
                    .zip(places)
                    .map(|((index, _), place)| (place, locks[*index]))
                    .collect();
                placed.sort_by_key(|(place, _)| *place);
                for ((index, _), (_, lock)) in of_file.iter().zip(placed) {
                    locks[*index] = lock;
                }
            }
            Err(why) => log::debug!("the order of locks of a file: {why}"),
        }
    }
}

fn owner(lock: &Lock) -> (Option<Pid>, Option<DescriptionId>) {
    match lock.holder {
        LockHolder::Process { pid, .. } | LockHolder::Mapping { pid, .. } => (Some(pid), None),
        LockHolder::Whole(id) | LockHolder::Ofd(id) | LockHolder::Lease(id) => (None, Some(id)),
    }
}

/// Where each of some locks of one file is in the kernel's list; each comes with a descriptor that it is held through.
fn places(
    kernel: &mut Kernel,
    locks: &[Lock],
    of_file: &[(usize, &OwnedFd)],
) -> Result<Vec<usize>, Unreadable> {
    const WRONG: Unreadable = Unreadable::Inconsistent("the locks of a file");
    let mut listed = None;
    let mut found = Vec::new();
    for (index, copy) in of_file {
        let lock = &locks[*index];
        let file = kernel.own_file(copy.as_fd())?;
        let listed = match &listed {
            Some(listed) => listed,
            None => {
                let all = kernel.range_locks(file)?.into_iter().zip(0..);
                listed.insert(all.collect::<HashMap<RangeLock, usize>>())
            }
        };
        let owner = match lock.holder {
            LockHolder::Process { pid, .. } => {
                let tables = kernel.tables(&[Tid(pid.0)], "files")?;
                tables.first().copied().flatten().ok_or(WRONG)?
            }
            _ => file,
        };
        let start = lock.range.0;
        found.push(*listed.get(&RangeLock { owner, start }).ok_or(WRONG)?);
    }
    Ok(found)
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
