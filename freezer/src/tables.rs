//! Tables that threads and processes share (clone(2)). They are carried when processes share them with
//! their parents, which make them so again.

pub(crate) mod threads;

use crate::files::apart;
use crate::freeze::vfork::{self, waiting_threads};
use crate::{FreezerError, Refusal, capture, kernel, proc};
use core::cmp::Ordering;
use nix::sched::CloneFlags;
use std::collections::BTreeMap;
use sys::process::{KcmpKind, kcmp};
use sys::{Errno, Pid, Tid};

const TABLES: [(KcmpKind, &str, &str); 5] = [
    (KcmpKind::Vm, "memory", "CLONE_VM"),
    (KcmpKind::Files, "descriptor table", "CLONE_FILES"),
    (KcmpKind::Fs, "current directory", "CLONE_FS"),
    (KcmpKind::Sighand, "signal actions", "CLONE_SIGHAND"),
    (KcmpKind::Sysvsem, "semaphore undo list", "CLONE_SYSVSEM"),
];

fn refusal(pid: Pid, resource: &str, reason: String) -> Refusal {
    Refusal {
        pid,
        comm: proc::comm(pid),
        resource: resource.into(),
        reason,
    }
}

/// What the processes `pids` share with each other or with anybody else.
///
/// # Errors
/// When the processes cannot be listed.
pub fn shared(pids: &[Pid]) -> Result<Vec<Refusal>, FreezerError> {
    let everyone = proc::everyone()?;
    let mut found = Vec::new();
    for (kind, resource, flag) in TABLES {
        for run in families(&everyone, kind) {
            if owner(&run, pids).is_some() {
                continue;
            }
            for pid in run.iter().filter(|pid| run.len() > 1 && pids.contains(pid)) {
                // A child in vfork(2) of a process outside has that one's memory for a moment, and so has one that was
                // born since.
                if kind == KcmpKind::Vm && (in_vfork(&run) || is_newly_born(&run, pids)) {
                    continue;
                }
                let others = run.iter().filter(|other| *other != pid);
                let list: Vec<_> = others.map(ToString::to_string).collect();
                let reason = format!(
                    "it is shared with process {} ({flag}): that is not carried",
                    list.join(", ")
                );
                found.push(refusal(*pid, resource, reason));
            }
        }
    }
    found.extend(with_threads(&everyone, pids));
    found.extend(capture::io_context_refusals(pids));
    Ok(found)
}

/// Tables that threads of a process have and its leader has not, and another process has.
fn with_threads(everyone: &[Pid], pids: &[Pid]) -> Vec<Refusal> {
    let first = |pid: &Pid| Some((*pid, proc::representative(*pid)?));
    let firsts: Vec<(Pid, Tid)> = everyone.iter().filter_map(first).collect();
    let mut found = Vec::new();
    for (kind, resource, flag) in [TABLES[1], TABLES[2], TABLES[4]] {
        let own = |pid: Pid| {
            let own = apart::first_of_each(pid, kind);
            own.into_iter().map(move |tid| (pid, tid))
        };
        let of_threads: Vec<(Pid, Tid)> = everyone.iter().copied().flat_map(own).collect();
        for (pid, tid) in &of_threads {
            let same = |(other, its): &&(Pid, Tid)| {
                other != pid && kcmp(*tid, *its, kind, 0, 0).is_ok_and(Ordering::is_eq)
            };
            for (other, _) in firsts.iter().chain(&of_threads).filter(same) {
                let reason = format!(
                    "that of thread {tid} is shared with process {other} ({flag}): that is not carried"
                );
                let ours = [pid, other].into_iter().find(|pid| pids.contains(pid));
                found.extend(ours.map(|pid| refusal(*pid, resource, reason)));
            }
        }
    }
    found
}

/// The member whose table the others have got from their parents, or from a brother, where all of them are among
/// `pids`.
fn owner(family: &[Pid], pids: &[Pid]) -> Option<Pid> {
    if !family.iter().all(|pid| pids.contains(pid)) {
        return None;
    }
    let parent = |pid: Pid| proc::Stat::read(pid, "stat").map(|stat| stat.pid(4)).ok();
    let first = family
        .iter()
        .filter(|pid| parent(**pid).is_none_or(|parent| !family.contains(&parent)));
    let mut first: Vec<Pid> = first.copied().collect();
    first.sort_unstable();
    match first[..] {
        [owner] => Some(owner),
        [owner, ..] if is_made_by_first(&first, pids) => Some(owner),
        _ => None,
    }
}

/// Whether the first of some processes can make the others beside itself (`CLONE_PARENT`): they have one parent, one
/// session that none of them leads, and end with the same signal, and the first has all that they share with others.
fn is_made_by_first(all: &[Pid], pids: &[Pid]) -> bool {
    let place = |pid: &Pid| {
        let stat = proc::Stat::read(*pid, "stat").ok()?;
        Some((stat.pid(4), stat.pid(6), stat.exit_signal()))
    };
    let (Some(first), Some(Some(of_first))) = (all.first(), all.first().map(place)) else {
        return false;
    };
    let (parent, sid, _) = of_first;
    let same = |one: Pid, other: Pid, kind| {
        kcmp(one.leader(), other.leader(), kind, 0, 0).is_ok_and(Ordering::is_eq)
    };
    let has_more = |pid: &Pid| {
        let others = all.iter().chain([&parent]).filter(|other| *other != pid);
        let mut shared = others.flat_map(|other| TABLES.map(|(kind, ..)| (*other, kind)));
        shared.any(|(other, kind)| same(*pid, other, kind) && !same(*pid, *first, kind))
    };
    pids.contains(&parent)
        && all
            .iter()
            .all(|pid| place(pid) == Some(of_first) && *pid != sid)
        && !all[1..].iter().any(has_more)
}

/// Which processes have another's table.
pub(crate) struct Sharing(BTreeMap<Pid, Pid>);

impl Sharing {
    /// Of tables of one kind.
    pub(crate) fn find(pids: &[Pid], kind: KcmpKind) -> Sharing {
        let mut others = BTreeMap::new();
        for family in families(pids, kind).iter().filter(|all| all.len() > 1) {
            if let Some(owner) = owner(family, pids) {
                let rest = family.iter().filter(|pid| **pid != owner);
                others.extend(rest.map(|pid| (*pid, owner)));
            }
        }
        Sharing(others)
    }

    /// Whose table a process has, None when it is its own.
    pub(crate) fn of(&self, pid: Pid) -> Option<Pid> {
        self.0.get(&pid).copied()
    }
}

/// Those that share a table, together. A process that ends meanwhile is left out.
fn families(pids: &[Pid], kind: KcmpKind) -> Vec<Vec<Pid>> {
    let seat = |pid: &Pid| Some((*pid, proc::representative(*pid)?));
    let seats: Vec<(Pid, Tid)> = pids.iter().filter_map(seat).collect();
    let mut families = by_place(&seats, kind).unwrap_or_else(|| by_comparing(&seats, kind));
    if kind == KcmpKind::Sysvsem {
        families.retain(|family| !has_no_undo_list(family[0].1));
    }
    // Those that have given up their tables all seem to share one.
    for family in families.iter_mut().filter(|family| family.len() > 1) {
        family.retain(|(pid, tid)| !proc::is_ending(*pid, *tid));
    }
    let pids = |family: Vec<(Pid, Tid)>| family.into_iter().map(|(pid, _)| pid).collect();
    families.into_iter().map(pids).collect()
}

/// Families as the kernel's memory shows them, None where it cannot be read.
fn by_place(seats: &[(Pid, Tid)], kind: KcmpKind) -> Option<Vec<Vec<(Pid, Tid)>>> {
    let field = match kind {
        KcmpKind::Vm => "mm",
        KcmpKind::Files => "files",
        KcmpKind::Fs => "fs",
        KcmpKind::Sighand => "sighand",
        KcmpKind::Sysvsem => "sysvsem.undo_list",
        KcmpKind::File | KcmpKind::Io => return None,
    };
    let tids: Vec<Tid> = seats.iter().map(|(_, tid)| *tid).collect();
    let places = kernel::look(|kernel| kernel.tables(&tids, field)).ok()?;
    let mut families: BTreeMap<u64, Vec<(Pid, Tid)>> = BTreeMap::new();
    for (seat, place) in seats.iter().zip(places) {
        if let Some(place) = place {
            families.entry(place).or_default().push(*seat);
        }
    }
    Some(families.into_values().collect())
}

/// Families as kcmp(2) tells them.
fn by_comparing(seats: &[(Pid, Tid)], kind: KcmpKind) -> Vec<Vec<(Pid, Tid)>> {
    // Ascending in the kernel's order.
    let mut families: Vec<Vec<(Pid, Tid)>> = Vec::new();
    for seat in seats {
        let mut gone = false;
        let place = families.binary_search_by(|family| {
            kcmp(family[0].1, seat.1, kind, 0, 0).unwrap_or_else(|_| {
                gone = true;
                Ordering::Less
            })
        });
        match place {
            _ if gone => {}
            Ok(at) => families[at].push(*seat),
            Err(at) => families.insert(at, vec![*seat]),
        }
    }
    families
}

/// Whether a thread has no list of what `SEM_UNDO` will do, as this thread has none: two that have none have
/// the same. This program undoes nothing.
pub(crate) fn has_no_undo_list(tid: Tid) -> bool {
    if nix::sched::unshare(CloneFlags::CLONE_SYSVSEM).is_err() {
        return false;
    }
    let me = Tid(nix::unistd::gettid().as_raw());
    kcmp(me, tid, KcmpKind::Sysvsem, 0, 0).is_ok_and(Ordering::is_eq)
}

/// Why nobody can tell what threads of a process share: kcmp(2) is missing or not allowed. Those that have ended
/// share nothing.
pub(crate) fn incomparable(pid: Pid, representative: Tid, threads: &[Tid]) -> Option<Refusal> {
    let compared = |tid: &Tid| kcmp(representative, *tid, KcmpKind::Files, 0, 0);
    let failed = |tid: &Tid| compared(tid).err().map(|errno| (*tid, errno));
    let mut failed = threads.iter().filter_map(failed);
    let (tid, errno) = failed.find(|(_, errno)| *errno != Errno::ESRCH)?;
    let reason = format!("what thread {tid} shares cannot be asked (kcmp: {errno})");
    Some(refusal(pid, "threads", reason))
}

/// Whether those who are not among `pids` are children of those who are: they were not there when these were listed.
fn is_newly_born(family: &[Pid], pids: &[Pid]) -> bool {
    let parent = |pid: Pid| proc::Stat::read(pid, "stat").map(|stat| stat.pid(4));
    let mut others = family.iter().filter(|pid| !pids.contains(pid)).peekable();
    others.peek().is_some()
        && others.all(|pid| parent(*pid).map_or(true, |parent| pids.contains(&parent)))
}

fn in_vfork(family: &[Pid]) -> bool {
    family.iter().any(|pid| !waiting_threads(*pid).is_empty())
}

/// What threads of a process do not share with each other, and a vfork(2) that lasts.
///
/// # Errors
/// When the threads cannot be listed.
pub(crate) fn of_threads(pid: Pid, representative: Tid) -> Result<Vec<Refusal>, FreezerError> {
    let threads = proc::threads(pid)?;
    if let Some(why) = incomparable(pid, representative, &threads) {
        return Ok(vec![why]);
    }
    let mut found: Vec<Refusal> = threads::odd(pid, representative, &threads)
        .into_iter()
        .collect();
    for group in threads::groups(pid, representative, &threads, KcmpKind::Fs) {
        let tid = group[0];
        found.extend(crate::check::directories(pid, &format!("task/{tid}/"))?);
    }
    found.extend(in_vfork_for_long(pid)?);
    Ok(found)
}

/// Why a process whose threads wait in vfork(2) is refused. Usually that is over at once, so that one that would be is
/// given some time.
fn in_vfork_for_long(pid: Pid) -> Result<Option<Refusal>, FreezerError> {
    for _ in 0..20 {
        // They may go on, and their children end, while they are looked at.
        if let Ok(None) = refused_in_vfork(pid) {
            return Ok(None);
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    refused_in_vfork(pid)
}

fn refused_in_vfork(pid: Pid) -> Result<Option<Refusal>, FreezerError> {
    for tid in waiting_threads(pid) {
        // Nothing can be asked inside of it.
        let why = match vfork::child_of(pid, tid) {
            Some(_) => capture::vfork_obstacle(pid, tid)?,
            None if !vfork::waits(pid, tid) => None,
            None => {
                Some("for none of its own, or the kernel does not let its memory be read".into())
            }
        };
        if let Some(why) = why {
            let reason = format!(
                "thread {tid} waits in vfork(2) until its child ends or runs another program: {why}"
            );
            return Ok(Some(refusal(pid, "thread", reason)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::process;

    #[test]
    fn who_may_not_compare_is_told() {
        let me = Pid(std::process::id().cast_signed());
        assert_eq!(
            incomparable(me, me.leader(), &[me.leader(), Tid(i32::MAX)]),
            None
        );
        let child = process::spawn(0, &[], || {
            // The C library's call would wait for the other threads, which are not there.
            if process::become_user(65534, 65534).is_err() {
                return 2;
            }
            i32::from(incomparable(me, me.leader(), &[me.leader()]).is_some())
        })
        .unwrap();
        let ended = sys::wait::wait_for(child.leader()).unwrap();
        // Who is nobody in particular cannot become another.
        let root = nix::unistd::geteuid().is_root();
        assert_eq!(ended, sys::wait::Status::Exited(if root { 1 } else { 2 }));
    }

    #[test]
    fn the_kernels_memory_tells_what_kcmp_tells() {
        let flags = [
            CloneFlags::empty(),
            CloneFlags::CLONE_FILES,
            CloneFlags::CLONE_FS,
        ];
        let mut pids = vec![Pid(std::process::id().cast_signed())];
        for flags in flags {
            let child = process::spawn(flags.bits().cast_unsigned().into(), &[], || {
                nix::unistd::pause();
                0
            });
            pids.push(child.unwrap());
        }
        let seats: Vec<(Pid, Tid)> = pids.iter().map(|pid| (*pid, pid.leader())).collect();
        let both = |(kind, _, _)| (kind, by_place(&seats, kind), by_comparing(&seats, kind));
        let told = TABLES.map(both);
        // First, so that none outlives a failure.
        for child in &pids[1..] {
            sys::process::kill(*child, nix::sys::signal::Signal::SIGKILL as i32).unwrap();
            sys::wait::wait_for(child.leader()).unwrap();
        }
        for (kind, found, mut expected) in told {
            let Some(mut found) = found else {
                continue;
            };
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "{kind:?}");
            let shared = matches!(kind, KcmpKind::Files | KcmpKind::Fs);
            assert_eq!(found.len() == 3, shared, "{kind:?}");
        }
    }
}
