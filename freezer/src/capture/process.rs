//! One live process.

use super::{attributes, memory, policy, signals, thread, timers};
use crate::files::Table;
use crate::proc::{self, Stat, Status};
use crate::{FreezerError, Frozen};
use persist_mem::manifest::{AddressSpace, Live, Process, State};
use sys::Pid;
use sys::tracee::{Tracee, find_gate};

/// Room for the largest batch: 64 signal actions, the timers, the rest.
const SCRATCH: usize = 64 << 10;

pub(super) fn capture(
    frozen: &Frozen,
    pid: Pid,
    table: &mut Table,
) -> Result<Process, FreezerError> {
    let stat = Stat::read(pid, "stat")?;
    let maps = memory::mappings(pid)?;
    // Everything that looks at memory comes before the scratch mapping is made.
    let mut mm = memory::capture(pid, &stat, &maps, &mut table.objects)?;
    let files = table.capture(pid)?;
    let mut leader = Tracee::new(pid, pid.leader()).map_err(FreezerError::tracee(pid))?;
    let gate = gate(pid, &leader, &maps)?;
    let locked = policy::locked(pid)?;
    let scratch = leader
        .map_scratch(gate, SCRATCH)
        .map_err(FreezerError::tracee(pid))?;
    let lock_future = policy::lock_future(pid, locked, scratch);
    let asked = policy::capture(&mut leader, &maps, &mut mm);
    let inside = inside(frozen, pid, &mut leader);
    let unmapped = leader
        .unmap_scratch(gate)
        .map_err(FreezerError::tracee(pid));
    for signal in leader.take_deferred() {
        let sent = sys::process::tgkill(pid, pid.leader(), signal);
        sent.map_err(FreezerError::call(pid, "sending on a stop signal"))?;
    }
    let (mut live, more) = inside?;
    unmapped?;
    asked.map_err(FreezerError::tracee(pid))?;
    mm.lock_future = lock_future?;
    mm.layout.brk = more.brk;
    mm.thp_disabled = more.thp_disabled;
    live.mm = mm;
    live.files = files;
    Ok(Process {
        pid,
        ppid: stat.pid(4),
        pgid: stat.pid(5),
        sid: stat.pid(6),
        state: State::Live(Box::new(live)),
    })
}

/// What is asked from inside.
fn inside(
    frozen: &Frozen,
    pid: Pid,
    leader: &mut Tracee,
) -> Result<(Live, attributes::Attributes), FreezerError> {
    let status = Status::read(pid, "status")?;
    let Some(scratch) = leader.scratch() else {
        return Err(FreezerError::refuse(
            pid,
            "memory",
            "there is no scratch mapping",
        ));
    };
    let actions = signals::actions(leader).map_err(FreezerError::tracee(pid))?;
    let more = attributes::capture(leader).map_err(FreezerError::tracee(pid))?;
    let itimers = timers::itimers(leader).map_err(FreezerError::tracee(pid))?;
    let posix = timers::posix(pid, leader)?;
    let mut threads = Vec::new();
    for (tid, state) in frozen.threads(pid) {
        let mut tracee = Tracee::new(pid, tid).map_err(FreezerError::tracee(pid))?;
        tracee
            .adopt_scratch(scratch, true)
            .map_err(FreezerError::tracee(pid))?;
        threads.push(thread::capture(&mut tracee, state, frozen.scheduler_ns)?);
    }
    let stopped = frozen
        .threads(pid)
        .iter()
        .find_map(|(_, thread)| thread.group_stop);
    let live = Live {
        threads,
        mm: AddressSpace::default(),
        files: Vec::new(),
        cwd: crate::files::reference(pid, "cwd")?,
        root: crate::files::reference(pid, "root")?,
        umask: status
            .value("Umask")
            .and_then(|t| u32::from_str_radix(t, 8).ok())
            .unwrap_or(0o22),
        actions,
        pending: signals::pending(pid, pid.leader(), true)?,
        stopped,
        limits: attributes::limits(pid)?,
        itimers,
        timers: posix,
        oom_score_adj: attributes::number(pid, "oom_score_adj", 10)? as i32,
        child_subreaper: more.child_subreaper,
        dumpable: more.dumpable,
    };
    Ok((live, more))
}

/// A `syscall` instruction in the process: in its vdso, else in any executable mapping.
fn gate(pid: Pid, tracee: &Tracee, maps: &[proc::Mapping]) -> Result<u64, FreezerError> {
    let mut candidates: Vec<_> = maps.iter().filter(|m| m.perms[2] == b'x').collect();
    candidates.sort_by_key(|m| m.name != b"[vdso]");
    for map in candidates {
        let len = usize::try_from(map.end - map.start)
            .unwrap_or(0)
            .min(4 << 20);
        let Ok(code) = tracee.mem().read_vec(map.start, len) else {
            continue;
        };
        if let Some(offset) = find_gate(&code) {
            return Ok(map.start + offset as u64);
        }
    }
    Err(FreezerError::refuse(
        pid,
        "memory",
        "no system call instruction is mapped",
    ))
}
