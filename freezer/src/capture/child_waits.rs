//! Threads in vfork(2) that a restore cannot have wait there again: they wait by themselves ([`sys::child_wait`]).
//!
//! A restored thread that makes its child in vfork(2) makes it as somebody who may do everything, and can give nothing
//! up before that child is gone. So who had less than that is made as every thread, and waits in room of its own in its
//! memory for what the kernel does at the same moment: it clears a word of the child's.

use super::kept::{self, Confined};
use crate::freeze::rest;
use persist_mem::filters;
use persist_mem::manifest::{AddressSpace, Backing, ChildWait, Live, Process, State, Thread, Vma};
use std::collections::BTreeMap;
use sys::{PAGE_SIZE_U64, Pid, child_wait, remainder};

/// Bytes that a processor's extended state may have more than a thread's was.
const MORE_STATE: usize = 4096;
/// No mapping begins below this (`vm.mmap_min_addr`), as a rule.
const LOWEST: u64 = 0x1_0000;
const PROT_READ_WRITE: u32 = 3;

/// Why a thread that has these filters cannot wait for `child` so.
pub(super) fn obstacle(pid: Pid, child: Pid, confined: &Confined) -> Option<&'static str> {
    let word = kept::look((child, child.leader()), |reader, _| {
        reader.pointer("clear_child_tid")
    });
    match word {
        Ok(0) => {}
        Ok(_) => return Some("its child has a word that the kernel clears at its end"),
        Err(_) => return Some("what the kernel clears at the end of its child cannot be read"),
    }
    let Some(code) = rest::room(pid) else {
        return Some("its vdso has no room for a wait of its own");
    };
    let Confined::Filters(all) = confined else {
        return None;
    };
    let allows = |nr: &u32| all.iter().all(|one| filters::allows(&one.code, *nr, code));
    (!child_wait::CALLS.iter().all(allows))
        .then_some("its seccomp filters forbid what a wait of its own needs")
}

/// Makes ordinary threads of those that wait so, and gives each room in the memory.
pub(super) fn settle(processes: &mut [Process]) {
    let mut children = BTreeMap::new();
    for at in 0..processes.len() {
        while let Some((parent, thread)) = next(&mut processes[at]) {
            let (tid, Some(wait)) = (thread.tid, thread.child_wait) else {
                continue;
            };
            let room = make_room(processes, parent, thread.xstate.len());
            let Some(live) = live(&mut processes[at]) else {
                continue;
            };
            let child_wait = Some(ChildWait { room, ..wait });
            let place = live.threads.partition_point(|other| {
                (other.tid != parent.leader(), other.tid) < (tid != parent.leader(), tid)
            });
            live.threads.insert(
                place,
                Thread {
                    child_wait,
                    ..thread
                },
            );
            children.insert(wait.child, (parent, tid, room.0));
        }
    }
    for process in processes {
        let Some((parent, tid, word)) = children.get(&process.pid).copied() else {
            continue;
        };
        if tid != parent.leader() {
            process.parent_thread = Some(tid);
        }
        let leader = process.pid.leader();
        if let Some(live) = live(process) {
            let waiting = live.vforks.iter_mut().map(|waiting| &mut waiting.thread);
            let mut threads = live.threads.iter_mut().chain(waiting);
            if let Some(first) = threads.find(|thread| thread.tid == leader) {
                first.clear_child_tid = word;
            }
        }
    }
}

fn live(process: &mut Process) -> Option<&mut Live> {
    match &mut process.state {
        State::Live(live) => Some(live),
        _ => None,
    }
}

/// Takes a thread that waits so from those that wait in vfork(2).
fn next(process: &mut Process) -> Option<(Pid, Thread)> {
    let pid = process.pid;
    let vforks = &mut live(process)?.vforks;
    let at = vforks
        .iter()
        .position(|waiting| waiting.thread.child_wait.is_some())?;
    Some((pid, vforks.remove(at).thread))
}

/// Room, and the code of the wait, in the memory of a process, for all who have it.
fn make_room(processes: &mut [Process], pid: Pid, xstate: usize) -> (u64, u64) {
    let of = |process: &Process| process.live().map(|live| live.mm_of.unwrap_or(process.pid));
    let owner = processes
        .iter()
        .find(|process| process.pid == pid)
        .and_then(of);
    let len = child_wait::room(xstate + MORE_STATE);
    let mut room = None;
    for process in processes.iter_mut().filter(|process| of(process) == owner) {
        let Some(live) = live(process) else { continue };
        let at = *room.get_or_insert_with(|| free(&live.mm.vmas, len));
        add(&mut live.mm, (at, len));
    }
    (room.unwrap_or(0), len)
}

/// Where no mapping is near: in the middle of the largest gap.
fn free(vmas: &[Vma], len: u64) -> u64 {
    let ends = core::iter::once(LOWEST).chain(vmas.iter().map(|vma| vma.end));
    let gaps = ends.zip(vmas.iter().map(|vma| vma.start));
    let gaps = gaps.filter(|(end, start)| end < start);
    let (end, start) = gaps
        .max_by_key(|(end, start)| start - end)
        .unwrap_or((LOWEST, LOWEST));
    (end + (start - end).saturating_sub(len) / 2) & !(PAGE_SIZE_U64 - 1)
}

fn add(mm: &mut AddressSpace, (at, len): (u64, u64)) {
    let vma = Vma {
        start: at,
        end: at + len,
        prot: PROT_READ_WRITE,
        flags: [*b"rd", *b"wr", *b"mr", *b"mw", *b"me", *b"ac"].to_vec(),
        protection_key: 0,
        page_size: PAGE_SIZE_U64,
        lock_on_fault: false,
        backing: Backing::Anonymous { name: Vec::new() },
    };
    let place = mm.vmas.partition_point(|other| other.start < at);
    mm.vmas.insert(place, vma);
    if let Some(at) = remainder::place(&mm.vdso) {
        let code = remainder::code();
        mm.vdso[at..at + code.len()].copy_from_slice(code);
    }
}

/// What is noted of a thread that waits so for `child` as long as it has no room.
pub(super) fn without_room(child: Pid) -> ChildWait {
    ChildWait {
        child,
        room: (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_far_from_all_mappings() {
        let mut mm = AddressSpace::default();
        let mut taken = |start, end| add(&mut mm, (start, end - start));
        taken(0x40_0000, 0x50_0000);
        taken(0x7fff_0000_0000, 0x7fff_0010_0000);
        let at = free(&mm.vmas, 0x3000);
        assert!(
            (0x3000_0000_0000..0x5000_0000_0000).contains(&at) && at.is_multiple_of(PAGE_SIZE_U64)
        );
        add(&mut mm, (at, 0x3000));
        assert!(mm.vmas.is_sorted_by_key(|vma| vma.start) && mm.vmas.len() == 3);
    }
}
