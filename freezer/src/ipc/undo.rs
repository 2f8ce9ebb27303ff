//! `SEM_UNDO` of System V semaphores.
//!
//! The kernel keeps what it will undo in a list that no interface shows; it is read from the kernel's memory
//! (`task_struct.sysvsem`, ipc/sem.c). Where that cannot be read, kcmp(2) tells whether a process has a list at
//! all, which a process with threads always has (`CLONE_SYSVSEM` makes one): there the semaphores must
//! tell. Without a set, or when nobody of the process was the last to change any, nothing is assumed.

use super::{failed, gone, has_semaphores, ids, refuse};
use crate::kernel::{self, Kernel, Unreadable, half, word};
use crate::tables::has_no_undo_list;
use crate::{FreezerError, Frozen, Refusal, proc};
use persist_mem::manifest::{Undo, UndoMember, after_undo};
use std::collections::{BTreeMap, BTreeSet};
use sys::{Errno, Pid, Tid, ipc};

/// Most sets that one list can be about: more is no list (`IPCMNI_EXTEND`).
const MOST_SETS: usize = 1 << 24;
/// Tries while processes run and change their lists.
const TRIES: usize = 5;

/// What one list will do to one set.
struct Adjustments {
    set: i32,
    by: Vec<i16>,
}

/// Why a process's undo list is not carried, if it may have anything in it that cannot be known.
pub(crate) fn refusal(pid: Pid) -> Option<Refusal> {
    let representative = proc::representative(pid)?;
    if !has_semaphores() || has_no_undo_list(representative) {
        return None;
    }
    let threads = proc::threads(pid).unwrap_or_default();
    for _ in 0..TRIES {
        match read(&threads) {
            Ok(_) => return None,
            Err(Unreadable::Inconsistent(_)) => {}
            Err(_) => break,
        }
    }
    unknown(pid, threads.len())
}

/// The refusal of a process whose list cannot be read, unless it has certainly nothing in it.
fn unknown(pid: Pid, threads: usize) -> Option<Refusal> {
    let reason = "what it has changed with SEM_UNDO cannot be known";
    (threads == 1 || changed_any(pid)).then(|| refuse(pid, "semaphores", reason))
}

/// Whether the process was the last to change a semaphore.
fn changed_any(pid: Pid) -> bool {
    let sets = ids("sem").unwrap_or_default();
    sets.into_iter().any(|id| {
        let count = ipc::sem_stat(id).map_or(0, |(_, count)| count);
        let members = 0..i32::try_from(count).unwrap_or(0);
        members.into_iter().any(|n| ipc::sem_pid(id, n) == Ok(pid))
    })
}

/// What the ends of stopped processes will do. With `ends` they end here, while the sets stay.
pub(crate) fn capture(frozen: &Frozen, ends: bool) -> Result<Vec<Undo>, FreezerError> {
    if !has_semaphores() {
        return Ok(Vec::new());
    }
    let users = |pid: &Pid| {
        let mut threads = frozen.threads(*pid);
        // A thread may have a list of its own.
        threads.retain(|(tid, _)| !has_no_undo_list(*tid));
        threads.into_iter().map(|(tid, _)| (*pid, tid)).collect()
    };
    let threads: Vec<Vec<(Pid, Tid)>> = frozen.pids().map(|pid| users(&pid)).collect();
    let threads = threads.concat();
    let found = match describe(&threads) {
        Ok(found) => found?,
        Err(why) => {
            log::debug!("undo lists: {why}");
            let users: BTreeSet<Pid> = threads.iter().map(|(pid, _)| *pid).collect();
            let count = |pid: &Pid| frozen.threads(*pid).len();
            let refused = users.iter().filter_map(|pid| unknown(*pid, count(pid)));
            let refused: Vec<_> = refused.collect();
            if !refused.is_empty() {
                return Err(FreezerError::Refused(refused));
            }
            Vec::new()
        }
    };
    let refused = if ends { unclear(&found) } else { Vec::new() };
    if refused.is_empty() {
        Ok(found)
    } else {
        Err(FreezerError::Refused(refused))
    }
}

/// Why a tree cannot be ended and made again: what is undone at its end would be cut off.
pub(crate) fn cut_off(pids: &[Pid]) -> Vec<Refusal> {
    if !has_semaphores() {
        return Vec::new();
    }
    let has_none = |pid: Pid| proc::representative(pid).is_none_or(has_no_undo_list);
    let users = pids.iter().filter(|pid| !has_none(**pid));
    let threads: Vec<(Pid, Tid)> = users
        .flat_map(|pid| {
            let threads = proc::threads(*pid).unwrap_or_default();
            threads.into_iter().map(|tid| (*pid, tid))
        })
        .collect();
    // What cannot be read is refused for each process by itself.
    let found = describe(&threads).ok().and_then(Result::ok);
    unclear(&found.unwrap_or_default())
}

/// Semaphores whose value after the ends of all depends on their order.
fn unclear(found: &[Undo]) -> Vec<Refusal> {
    let mut changes: BTreeMap<(i32, u16), (Pid, u16, Vec<i16>)> = BTreeMap::new();
    for undo in found {
        for member in &undo.members {
            let change = changes.entry((undo.set, member.number));
            let (_, _, by) = change.or_insert((undo.pid, member.value, Vec::new()));
            by.push(member.adjustment);
        }
    }
    let unclear = changes.into_iter().filter_map(|((set, number), (pid, value, by))| {
        if after_undo(value, &by).is_some() {
            return None;
        }
        let reason = format!(
            "what several processes undo of semaphore {number} of set {set} (SEM_UNDO) goes beyond its range"
        );
        Some(refuse(pid, "semaphores", &reason))
    });
    unclear.collect()
}

/// What is in the lists of threads, each list once.
fn describe(threads: &[(Pid, Tid)]) -> Result<Result<Vec<Undo>, FreezerError>, Unreadable> {
    let tids: Vec<Tid> = threads.iter().map(|(_, tid)| *tid).collect();
    let lists = read(&tids)?;
    let mut found = Vec::new();
    for (tid, adjustments) in lists {
        let Some((pid, _)) = threads.iter().find(|(_, thread)| *thread == tid) else {
            continue;
        };
        for of in adjustments {
            match members(&of) {
                Ok(members) if members.is_empty() => {}
                Ok(members) => found.push(Undo {
                    pid: *pid,
                    tid,
                    set: of.set,
                    members,
                }),
                // The set has just been removed, and with it what was to be undone.
                Err(errno) if gone(errno) => {}
                Err(errno) => {
                    return Ok(Err(failed(of.set, "reading the semaphores")(errno)));
                }
            }
        }
    }
    Ok(Ok(found))
}

fn members(of: &Adjustments) -> Result<Vec<UndoMember>, Errno> {
    let changing = of.by.iter().zip(0_u16..).filter(|(by, _)| **by != 0);
    let changing: Vec<_> = changing.collect();
    if changing.is_empty() {
        return Ok(Vec::new());
    }
    let values = ipc::sem_values(of.set, of.by.len())?;
    let member = |(by, number): (&i16, u16)| {
        Ok(UndoMember {
            number,
            adjustment: *by,
            value: values
                .get(usize::from(number))
                .copied()
                .ok_or(Errno::EIDRM)?,
            last: ipc::sem_pid(of.set, i32::from(number))?,
        })
    };
    changing.into_iter().map(member).collect()
}

/// Where things are.
#[derive(Clone, Copy)]
struct Layout {
    /// `task_struct.sysvsem.undo_list`
    list: u64,
    /// `sem_undo_list.list_proc`
    head: u64,
    /// `sem_undo`
    size: u64,
    next: u64,
    owner: u64,
    set: u64,
    by: u64,
    /// `semadj` points to them; it is them since Linux 6.4.
    by_is_pointer: bool,
}

impl Layout {
    fn of(kernel: &Kernel) -> Result<Layout, Unreadable> {
        let btf = kernel.btf();
        let by = btf.field("sem_undo", "semadj")?;
        Ok(Layout {
            list: btf.field("task_struct", "sysvsem.undo_list")?.offset,
            head: btf.field("sem_undo_list", "list_proc")?.offset,
            size: btf.size_of("sem_undo")?,
            next: btf.field("sem_undo", "list_proc.next")?.offset,
            owner: btf.field("sem_undo", "ulp")?.offset,
            set: btf.field("sem_undo", "semid")?.offset,
            by: by.offset,
            by_is_pointer: by.pointer,
        })
    }
}

/// The lists of threads, each once, with the first thread that has it.
fn read(threads: &[Tid]) -> Result<Vec<(Tid, Vec<Adjustments>)>, Unreadable> {
    kernel::look(|kernel| {
        let layout = Layout::of(kernel)?;
        let tasks = kernel.tasks(threads)?;
        let places = tasks
            .iter()
            .map(|task| task.unwrap_or(0).wrapping_add(layout.list));
        let places: Vec<u64> = places.collect();
        let lists = kernel.words(&places)?;
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for ((tid, task), list) in threads.iter().zip(tasks).zip(lists) {
            // A thread that has ended has none.
            let (Some(_), Some(list)) = (task, list) else {
                continue;
            };
            if list != 0 && seen.insert(list) {
                found.push((*tid, layout.walk(kernel, list)?));
            }
        }
        Ok(found)
    })
}

impl Layout {
    /// Goes through one list.
    fn walk(&self, kernel: &mut Kernel, list: u64) -> Result<Vec<Adjustments>, Unreadable> {
        const WHAT: Unreadable = Unreadable::Inconsistent("a semaphore undo list");
        let head = list.wrapping_add(self.head);
        let mut at = kernel.word(head, "a semaphore undo list")?;
        let mut found = Vec::new();
        for _ in 0..MOST_SETS {
            if at == head {
                return Ok(found);
            }
            let undo = at.wrapping_sub(self.next);
            let read = kernel.read(&[(undo, self.size as usize)])?.pop().flatten();
            let bytes = read.ok_or(WHAT)?;
            let set = half(&bytes, self.set).ok_or(WHAT)?.cast_signed();
            if word(&bytes, self.owner) != Some(list) {
                return Err(WHAT);
            }
            at = word(&bytes, self.next).ok_or(WHAT)?;
            // A set that has been removed has number -1 here.
            let Ok((_, count)) = ipc::sem_stat(set) else {
                continue;
            };
            let by = if self.by_is_pointer {
                word(&bytes, self.by).ok_or(WHAT)?
            } else {
                undo.wrapping_add(self.by)
            };
            let read = kernel.read(&[(by, count * 2)])?.pop().flatten();
            let pairs = read.ok_or(WHAT)?;
            let by = pairs
                .as_chunks::<2>()
                .0
                .iter()
                .map(|pair| i16::from_le_bytes(*pair));
            found.push(Adjustments {
                set,
                by: by.collect(),
            });
        }
        Err(WHAT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::ipc::SemOperation;

    fn operation(number: u16, by: i16, undo: bool) -> SemOperation {
        SemOperation { number, by, undo }
    }

    /// In a child, which has stopped when it is there.
    fn start(body: impl FnOnce()) -> Pid {
        let child = sys::process::spawn(0, &[], || {
            body();
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
            0
        });
        let child = child.unwrap();
        let text = || proc::Stat::read(child, "stat").map(|stat| stat.state());
        while text().unwrap() != 'T' {
            std::thread::yield_now();
        }
        child
    }

    fn end(child: Pid) {
        sys::process::kill(child, 9).unwrap();
        sys::wait::wait_for(child.leader()).unwrap();
    }

    /// Of this thread, and what it forks, alone.
    fn set_of(values: &[u16]) -> i32 {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
        let set = ipc::sem_get(0, values.len(), 0o1600).unwrap();
        ipc::sem_set_values(set, values).unwrap();
        set
    }

    #[test]
    fn a_process_that_undoes_nothing_is_not_refused_for_the_sets_of_others() {
        set_of(&[1]);
        let child = start(|| ());
        assert_eq!(refusal(child), None);
        end(child);
    }

    #[test]
    fn what_will_be_undone_is_found() {
        let set = set_of(&[10, 20, 30]);
        let child = start(|| {
            let all = [operation(0, -3, true), operation(2, 5, true)];
            ipc::sem_operate(set, &all).unwrap();
            ipc::sem_operate(set, &[operation(1, 1, false)]).unwrap();
        });
        let found = describe(&[(child, child.leader())]);
        let refused = refusal(child);
        end(child);
        match found {
            Err(Unreadable::NotAllowed(_) | Unreadable::NoTypes(_)) => assert!(refused.is_some()),
            found => {
                let found = found.unwrap().unwrap();
                let member = |number, adjustment, value| UndoMember {
                    number,
                    adjustment,
                    value,
                    last: child,
                };
                assert_eq!(found.len(), 1);
                assert_eq!((found[0].set, found[0].tid), (set, child.leader()));
                assert_eq!(found[0].members, [member(0, 3, 7), member(2, -5, 35)]);
                assert_eq!(refused, None);
            }
        }
        assert_eq!(ipc::sem_values(set, 3).unwrap(), [10, 21, 30]);
    }

    #[test]
    fn what_depends_on_the_order_of_ends_is_refused() {
        let undo = |pid, adjustment| Undo {
            pid: Pid(pid),
            tid: Tid(pid),
            set: 1,
            members: vec![UndoMember {
                number: 0,
                adjustment,
                value: 2,
                last: Pid(pid),
            }],
        };
        assert_eq!(unclear(&[undo(1, -5)]), []);
        assert_eq!(unclear(&[undo(1, -2), undo(2, 7)]), []);
        assert_eq!(unclear(&[undo(1, -5), undo(2, 7)]).len(), 1);
    }
}
