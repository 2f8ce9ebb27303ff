//! Rings that this kernel lays out otherwise ([`persist_mem::rings`]).

use super::{make, wanted};
use crate::ResurrectError;
use persist_mem::manifest::{AddressSpace, DescriptionKind, Manifest, Process, State, Thread};
use persist_mem::rings::{Moves, Offsets};
use std::collections::BTreeMap;
use sys::uring::{Params, flags};
use sys::{Errno, Pid};

/// A thread of the kernel's that takes entries changes nothing.
const THREAD: u32 = flags::SQPOLL | flags::SQ_AFF;

/// The rings that have moved, of each process that has some mapped.
pub(crate) type Moved = BTreeMap<Pid, Moves>;

/// A manifest whose rings are laid out as this kernel does, and whose threads know where they are; None when they are
/// laid out so.
pub(crate) fn laid_out(manifest: &Manifest) -> Result<Option<(Manifest, Moved)>, ResurrectError> {
    let mut to: BTreeMap<u64, Offsets> = BTreeMap::new();
    for description in &manifest.descriptions {
        let DescriptionKind::Ring(ring) = &description.kind else {
            continue;
        };
        let made = make(ring.entries, ring.completions, wanted(ring) & !THREAD);
        let failed = super::super::failed(description, "looking how it is laid out");
        let sizes = (ring.entries, ring.completions);
        let fits = |(params, made): (Params, _)| match params.sizes() == sizes {
            true => Ok((params, made)),
            false => Err(Errno::EINVAL),
        };
        let (params, _) = made.and_then(fits).map_err(failed)?;
        if params.offsets() != ring.offsets {
            to.insert(ring.inode, params.offsets());
        }
    }
    if to.is_empty() {
        return Ok(None);
    }
    let descriptions = &manifest.descriptions;
    let moves = |mm: &AddressSpace| Moves::of(mm, descriptions, &to);
    let lives = manifest.processes.iter();
    let lives = lives.filter_map(|process| Some((process.pid, process.live()?)));
    let own = lives.filter(|(_, live)| live.mm_of.is_none());
    let moved: Moved = own
        .filter_map(|(pid, live)| Some((pid, moves(&live.mm)?)))
        .collect();
    let mut manifest = manifest.clone();
    for process in &mut manifest.processes {
        move_registers(process, &moved);
    }
    for description in &mut manifest.descriptions {
        if let DescriptionKind::Ring(ring) = &mut description.kind
            && let Some(to) = to.get(&ring.inode)
        {
            **ring = ring.laid_out(to);
        }
    }
    Ok(Some((manifest, moved)))
}

fn move_registers(process: &mut Process, moved: &Moved) {
    let State::Live(live) = &mut process.state else {
        return;
    };
    if let Some(moves) = moved.get(&live.mm_of.unwrap_or(process.pid)) {
        for thread in &mut live.threads {
            move_in(thread, moves);
        }
    }
}

fn move_in(thread: &mut Thread, moves: &Moves) {
    let regs = &mut thread.regs;
    for register in [
        &mut regs.r15,
        &mut regs.r14,
        &mut regs.r13,
        &mut regs.r12,
        &mut regs.rbp,
        &mut regs.rbx,
        &mut regs.r11,
        &mut regs.r10,
        &mut regs.r9,
        &mut regs.r8,
        &mut regs.rax,
        &mut regs.rcx,
        &mut regs.rdx,
        &mut regs.rsi,
        &mut regs.rdi,
    ] {
        *register = moves.address(*register);
    }
    for (at, bytes) in moves.changes(&thread.xstate, thread.xstate.len()) {
        if let Some(place) = thread.xstate.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(&bytes);
        }
    }
}
