//! Rings of io_uring that another kernel lays out otherwise ([`persist_mem::rings`]): the program must be seen to know
//! where their fields are in a way that can be changed.

use crate::freeze::ring_offsets::in_use;
use crate::{FreezerError, Refusal, proc};
use persist_mem::manifest::{
    AddressSpace, Backing, BufferRing, Description, DescriptionKind, Live, Manifest, Ring,
};
use persist_mem::rings::{Moves, Offsets};
use std::collections::BTreeMap;
use sys::uring::flags::{HYBRID_IOPOLL, NO_SQARRAY};
use sys::uring::op;
use sys::{PAGE_SIZE_U64, Pid};

/// Bytes that are looked through at once.
const AT_ONCE: u64 = 1 << 20;

/// Refuses what the other kernel cannot have, which is at least of the versions that `since` says, now that it is known
/// where pages are.
///
/// # Errors
/// [`FreezerError::Refused`]
pub fn refuse_lost_rings(
    manifest: &Manifest,
    since: impl Fn((u32, u32)) -> bool,
) -> Result<(), FreezerError> {
    let to = offsets_on(manifest, since((6, 6)));
    let mut found = Vec::new();
    let unknown = rings(manifest).find_map(|(it, ring)| Some((it, unknown(ring, &since)?)));
    if let Some((description, why)) = unknown {
        let mut processes = manifest.processes.iter();
        let holder = processes.find(|process| {
            let live = process.live();
            live.is_some_and(|live| {
                live.files
                    .iter()
                    .any(|file| file.description == description.id)
            })
        });
        let pid = holder.map_or(Pid(0), |holder| holder.pid);
        found.push(refusal(pid, why));
    }
    for process in &manifest.processes {
        let Some(live) = process.live().filter(|live| live.mm_of.is_none()) else {
            continue;
        };
        let Some(moves) = Moves::of(&live.mm, &manifest.descriptions, &to) else {
            continue;
        };
        if !is_traced(process.pid, &live.mm, &moves)? {
            let why = "the other kernel lays its ring out otherwise, and how it finds its way there is not seen";
            found.push(refusal(process.pid, why));
        }
    }
    match found.is_empty() {
        true => Ok(()),
        false => Err(FreezerError::Refused(found)),
    }
}

/// Refuses processes with a thread that has just an offset of a ring in a register, which no other number can be told
/// from. That is so while it uses the ring, not in its calls: who tries again finds it elsewhere.
///
/// # Errors
/// [`FreezerError::Refused`]
pub fn refuse_offsets_in_use(
    manifest: &Manifest,
    since: impl Fn((u32, u32)) -> bool,
) -> Result<(), FreezerError> {
    let to = offsets_on(manifest, since((6, 6)));
    let mut found = Vec::new();
    for process in &manifest.processes {
        let Some(live) = process.live().filter(|live| live.mm_of.is_none()) else {
            continue;
        };
        let Some(moves) = Moves::of(&live.mm, &manifest.descriptions, &to) else {
            continue;
        };
        let same = |other: &&Live| other.mm_of == Some(process.pid);
        let others = manifest.processes.iter().filter_map(|it| it.live());
        let lives = others.filter(same).chain([live]);
        let mut threads = lives.flat_map(Live::all_threads);
        if threads.any(|thread| in_use(&thread.regs, |word| moves.is_offset(word)))
            && !moves.are_traced_by_address(likely(process.pid, &live.mm)?)
        {
            let why = "the other kernel lays its ring out otherwise, and a thread may be using one of its offsets";
            found.push(refusal(process.pid, why));
        }
    }
    match found.is_empty() {
        true => Ok(()),
        false => Err(FreezerError::Refused(found)),
    }
}

/// Memory of the program's own, the smallest mappings first: where it keeps addresses.
fn likely(pid: Pid, mm: &AddressSpace) -> Result<impl Iterator<Item = Vec<u8>>, FreezerError> {
    /// Bytes.
    const MOST: u64 = 256 << 20;
    const WRITABLE: u32 = 3;
    let mem = proc::memory(pid).map_err(FreezerError::call(pid, "opening its memory"))?;
    let own = |backing: &Backing| match backing {
        Backing::Anonymous { .. } => true,
        Backing::File { shared, .. } => !shared,
        _ => false,
    };
    let writable = |prot: u32| prot & WRITABLE == WRITABLE;
    let vmas = mm.vmas.iter();
    let vmas = vmas.filter(|vma| writable(vma.prot) && own(&vma.backing));
    let mut ranges: Vec<(u64, u64)> = vmas.map(|vma| (vma.start, vma.end)).collect();
    ranges.sort_unstable_by_key(|(start, end)| end - start);
    let parts = ranges.into_iter().flat_map(|(start, end)| {
        let starts = (start..end).step_by(AT_ONCE as usize);
        starts.map(move |at| (at, (end - at).min(AT_ONCE)))
    });
    let mut left = MOST;
    let parts = parts.map_while(move |part| {
        left = left.checked_sub(part.1)?;
        Some(part)
    });
    Ok(parts.filter_map(move |(at, len)| mem.read_vec(at, len as usize).ok()))
}

fn rings(manifest: &Manifest) -> impl Iterator<Item = (&Description, &Ring)> {
    let descriptions = manifest.descriptions.iter();
    descriptions.filter_map(|it| match &it.kind {
        DescriptionKind::Ring(ring) => Some((it, &**ring)),
        _ => None,
    })
}

/// Where the fields of all rings are on the other kernel, by their inodes.
fn offsets_on(manifest: &Manifest, since_6_6: bool) -> BTreeMap<u64, Offsets> {
    rings(manifest)
        .map(|(_, ring)| (ring.inode, ring.offsets_on(since_6_6)))
        .collect()
}

/// What of a ring an older kernel does not know.
fn unknown(ring: &Ring, since: impl Fn((u32, u32)) -> bool) -> Option<&'static str> {
    let mut groups = ring.groups.iter().filter_map(|group| group.ring.as_ref());
    let has = |kinds: &[u8]| {
        let mut requests = ring.requests.iter();
        requests.any(|request| kinds.contains(&request.entry.opcode))
    };
    if ring.flags & NO_SQARRAY != 0 && !since((6, 6)) {
        return Some("before Linux 6.6 there is no ring with IORING_SETUP_NO_SQARRAY");
    }
    if groups.clone().any(|it| it.address.is_none()) && !since((6, 4)) {
        return Some("before Linux 6.4 there are no buffers with IOU_PBUF_RING_MMAP");
    }
    if groups.any(|it| it.flags & BufferRing::INCREMENTAL != 0) && !since((6, 12)) {
        return Some("before Linux 6.12 there are no buffers with IOU_PBUF_RING_INC");
    }
    if has(&[op::READ_MULTISHOT]) && !since((6, 7)) {
        return Some("before Linux 6.7 no read of io_uring goes on");
    }
    if has(&[op::FUTEX_WAIT, op::FUTEX_WAITV, op::WAITID]) && !since((6, 7)) {
        return Some("before Linux 6.7 no request of io_uring waits for a futex or a child");
    }
    if has(&[op::EPOLL_WAIT]) && !since((6, 15)) {
        return Some("before Linux 6.15 no request of io_uring waits for an epoll");
    }
    if ring.settings.clock.is_some() && !since((6, 12)) {
        return Some("before Linux 6.12 no ring has a clock of its own");
    }
    if ring.flags & HYBRID_IOPOLL != 0 && !since((6, 13)) {
        return Some("before Linux 6.13 there is no ring with IORING_SETUP_HYBRID_IOPOLL");
    }
    let bundles = since((6, 10));
    let ready = ring.groups.is_empty() || ring.taking(bundles, ring.ended()).is_some();
    (!ready).then_some("before Linux 6.10 its provided buffers take more requests than have ended")
}

fn refusal(pid: Pid, why: &str) -> Refusal {
    Refusal {
        pid,
        comm: proc::comm(pid),
        resource: "io_uring".into(),
        reason: why.into(),
    }
}

fn is_traced(pid: Pid, mm: &AddressSpace, moves: &Moves) -> Result<bool, FreezerError> {
    let mem = proc::memory(pid).map_err(FreezerError::call(pid, "opening its memory"))?;
    let parts = mm.extents.iter().flat_map(|extent| {
        let end = extent.va + extent.pages * PAGE_SIZE_U64;
        let starts = (extent.va..end).step_by(AT_ONCE as usize);
        starts.map(move |at| (at, (end - at).min(AT_ONCE)))
    });
    let runs = parts.filter_map(|(at, len)| mem.read_vec(at, len as usize).ok());
    Ok(moves.are_traced(runs))
}
