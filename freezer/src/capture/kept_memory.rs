//! What the kernel keeps of the memory of a process that cannot be asked anything inside.

use super::kept::Reader;
use crate::FreezerError;
use crate::kernel::Unreadable;
use crate::proc;
use persist_mem::manifest::{AddressSpace, LockFuture};
use sys::Pid;

/// `MMF_HAS_MDWE`, its inheritance, and `MMF_VM_MERGE_ANY` (include/linux/mm_types.h, linux/sched/coredump.h).
const MM_SETTINGS: u32 = 7 << 28;
const VM_LOCKED: u64 = 0x2000;
const VM_LOCKONFAULT: u64 = 0x8_0000;

/// What is kept of an address space.
pub(super) struct Memory {
    pub(super) brk: u64,
    pub(super) dumpable: u8,
    pub(super) membarrier: u32,
    pub(super) lock_future: LockFuture,
    pub(super) protection_keys: u16,
}

impl Memory {
    /// Notes it, where no other process has the memory that could be asked about it.
    pub(super) fn tell(&self, has_keys: bool, mm: &mut AddressSpace) {
        mm.layout.brk = self.brk;
        mm.membarrier = self.membarrier;
        mm.lock_future = self.lock_future;
        mm.protection_keys = if has_keys { self.protection_keys } else { 1 };
    }
}

/// What is not carried of memory is told to `refuse`.
pub(super) fn look(
    reader: &mut Reader<'_>,
    refuse: &mut impl FnMut(&'static str),
) -> Result<Memory, Unreadable> {
    const WHAT: &str = "an address space";
    let mm = reader.pointer("mm")?;
    let at = |reader: &Reader<'_>, path: &str| Ok(mm + reader.offset("mm_struct", path)?);
    let flags = at(reader, "flags")?;
    let flags = reader.half_at(flags, WHAT)?;
    if flags & MM_SETTINGS != 0 {
        refuse("its memory has settings that only it can tell (PR_SET_MDWE, PR_SET_MEMORY_MERGE)");
    }
    let table = at(reader, "context.ldt")?;
    if reader.kernel.word(table, WHAT)? != 0 {
        refuse("it has segments of its own");
    }
    if reader.offset("task_struct", "mempolicy").is_ok() && reader.pointer("mempolicy")? != 0 {
        refuse("its memory has a policy");
    }
    let keys = at(reader, "context.pkey_allocation_map");
    let protection_keys = match keys {
        Ok(place) => reader.half_at(place, WHAT)? as u16,
        Err(_) => 1,
    };
    let [brk, locked] = [at(reader, "brk")?, at(reader, "def_flags")?];
    let locked = reader.kernel.word(locked, WHAT)?;
    let barriers = at(reader, "membarrier_state")?;
    Ok(Memory {
        brk: reader.kernel.word(brk, WHAT)?,
        dumpable: (flags & 3) as u8,
        membarrier: registrations(reader.half_at(barriers, WHAT)?),
        lock_future: match (locked & VM_LOCKED, locked & VM_LOCKONFAULT) {
            (0, _) => LockFuture::No,
            (_, 0) => LockFuture::Now,
            _ => LockFuture::OnFault,
        },
        protection_keys,
    })
}

/// The commands of membarrier(2) that register for what the state allows (`MEMBARRIER_STATE_*`,
/// include/linux/sched/mm.h).
fn registrations(state: u32) -> u32 {
    const STATES: [(u32, u32); 4] = [
        (1 << 0, 1 << 4),
        (1 << 2, 1 << 2),
        (1 << 4, 1 << 6),
        (1 << 6, 1 << 8),
    ];
    let ready = STATES.iter().filter(|(ready, _)| state & ready != 0);
    ready.fold(0, |all, (_, command)| all | command)
}

/// What is not carried of such memory, as `/proc` tells.
pub(super) fn obstacle(pid: Pid) -> Result<Option<&'static str>, FreezerError> {
    if has_policies(pid)? {
        return Ok(Some("its memory has policies"));
    }
    let status = proc::Status::read(pid, "status")?;
    let off = status.value("THP_enabled") == Some("0");
    Ok(off.then_some("huge pages are switched off for it"))
}

/// Policies of nodes, of its own or of mappings (`/proc/PID/numa_maps`: address, policy, the rest).
fn has_policies(pid: Pid) -> Result<bool, FreezerError> {
    let text = match proc::read_text(pid, "numa_maps") {
        Ok(text) => text,
        // A kernel without CONFIG_NUMA.
        Err(FreezerError::Proc { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {
            return Ok(false);
        }
        Err(e) => return Err(e),
    };
    let policy = |line: &str| line.split(' ').nth(1).is_some_and(|word| word != "default");
    Ok(text.lines().any(policy))
}
