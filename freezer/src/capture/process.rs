//! One live process.

use super::foothold::{Finder, Grown};
use super::inside::{self, Inside};
use super::timers::TimersAt;
use super::{attributes, leader, membarrier, memory, policy, reports, signals, thread, timers};
use crate::files::Table;
use crate::proc::{self, Stat, Status};
use crate::{FreezerError, Frozen};
use persist_mem::manifest::{AddressSpace, FileRef, Live, LockFuture, Process, State};
use sys::tracee::Foothold;
use sys::{PAGE_SIZE, Pid, Tid, ptrace};

/// Room for the largest batch: 64 signal actions, the timers, the rest.
const SCRATCH: usize = 64 << 10;
/// A signal frame without the extended state, and room to align it.
const FRAME: usize = 1024;

pub(super) fn capture(
    frozen: &Frozen,
    pid: Pid,
    table: &mut Table,
    finder: &mut Finder,
) -> Result<(Process, TimersAt), FreezerError> {
    let first = first(frozen, pid)?;
    let stat = Stat::read(pid, &format!("task/{first}/stat"))?;
    let ended_leader = match first == pid.leader() {
        true => None,
        false => Some(leader::capture(pid)?),
    };
    let maps = memory::mappings(pid)?;
    // Everything that looks at memory comes before the scratch mapping is made.
    let mut mm = memory::capture(pid, &stat, &maps, &mut table.objects)?;
    table.session(pid, &stat);
    let (cwd, cwd_removed) = table.directory(pid)?;
    let files = table.capture(pid)?;
    let mut threads = inside::threads(frozen, pid)?;
    let room = map_scratch(pid, &mut threads, &maps, finder)?;
    let barriers = membarrier::capture(&mut threads[0].tracee);
    let asked = policy::capture(&mut threads[0].tracee, &maps, &mut mm);
    let described = describe(frozen, pid, &mut threads);
    let unmapped = threads[room.maker]
        .tracee
        .unmap_scratch(room.gate)
        .map_err(FreezerError::tracee(pid));
    let shrunk = room.grown.map_or(Ok(()), |(grown, foothold)| {
        grown
            .give_back(foothold, &mut threads)
            .map_err(FreezerError::tracee(pid))
    });
    let put_back = threads.iter().try_for_each(Inside::put_back);
    for thread in &mut threads {
        for signal in thread.tracee.take_deferred() {
            let sent = sys::process::tgkill(pid, thread.tracee.tid(), signal);
            sent.map_err(FreezerError::call(pid, "sending on a signal"))?;
        }
    }
    let (mut live, more, timers_at) = described?;
    let leader = ended_leader.as_ref();
    let exit_signal = leader.map_or(stat.exit_signal(), |leader| leader.exit_signal);
    live.ended_leader = ended_leader;
    (live.cwd, live.cwd_removed) = (cwd, cwd_removed);
    unmapped?;
    shrunk?;
    put_back?;
    asked.map_err(FreezerError::tracee(pid))?;
    mm.membarrier = barriers.map_err(FreezerError::tracee(pid))?;
    mm.lock_future = room.lock_future?;
    mm.layout.brk = more.brk;
    mm.thp_disabled = more.thp_disabled;
    live.mm = mm;
    live.files = files;
    let process = Process {
        pid,
        ppid: stat.pid(4),
        pgid: stat.pid(5),
        sid: stat.pid(6),
        exit_signal,
        state: State::Live(Box::new(live)),
    };
    Ok((process, timers_at))
}

/// The thread that answers for the process: its leader, unless that has ended.
fn first(frozen: &Frozen, pid: Pid) -> Result<Tid, FreezerError> {
    let threads = frozen.threads(pid);
    let first = threads.first().map(|(tid, _)| *tid);
    first.ok_or_else(|| FreezerError::refuse(pid, "threads", "it has none"))
}

/// Room for batches in a process.
struct Room {
    /// Which thread has made it and unmaps it.
    maker: usize,
    /// Its gate.
    gate: u64,
    /// Stack that is to be given back, and the way in and out.
    grown: Option<(Grown, Foothold)>,
    /// What the new mapping tells about mappings to come.
    lock_future: Result<LockFuture, FreezerError>,
}

/// Makes room for batches, for all threads.
fn map_scratch(
    pid: Pid,
    threads: &mut [Inside],
    maps: &[proc::Mapping],
    finder: &mut Finder,
) -> Result<Room, FreezerError> {
    // A sleep that only the kernel knows the rest of would be lost if we died in these calls.
    let maker = threads
        .iter()
        .position(|thread| thread.sleep.is_none())
        .unwrap_or(0);
    let Some(thread) = threads.get_mut(maker) else {
        return Err(FreezerError::refuse(pid, "threads", "it has none"));
    };
    let tracee = &mut thread.tracee;
    let tid = tracee.tid();
    let xstate =
        ptrace::get_xstate(tid).map_err(FreezerError::call(pid, "reading its extended state"))?;
    let frame = (xstate.len() + FRAME).next_multiple_of(PAGE_SIZE) as u64;
    let way = finder.find(tracee, maps, frame).ok_or_else(|| {
        FreezerError::refuse(pid, "memory", "no system call instruction is mapped")
    })?;
    if let Some(foothold) = way.foothold {
        tracee.set_foothold(foothold);
    }
    let locked = policy::locked(pid, tid)?;
    let scratch = tracee
        .map_scratch(way.gate, SCRATCH)
        .map_err(FreezerError::tracee(pid))?;
    let lock_future = policy::lock_future((pid, tid), locked, scratch);
    for thread in threads.iter_mut() {
        let adopted = thread.tracee.adopt_scratch(scratch, true);
        adopted.map_err(FreezerError::tracee(pid))?;
    }
    Ok(Room {
        maker,
        gate: way.gate,
        grown: way.grown.zip(way.foothold),
        lock_future,
    })
}

/// What is asked from inside.
fn describe(
    frozen: &Frozen,
    pid: Pid,
    inside: &mut [Inside],
) -> Result<(Live, attributes::Attributes, TimersAt), FreezerError> {
    let first = &mut inside[0].tracee;
    let first_tid = first.tid();
    let status = Status::read(pid, &format!("task/{first_tid}/status"))?;
    let actions = signals::actions(first).map_err(FreezerError::tracee(pid))?;
    let more = attributes::capture(first).map_err(FreezerError::tracee(pid))?;
    let timers_at = TimersAt::now();
    let itimers = timers::itimers(first).map_err(FreezerError::tracee(pid))?;
    let posix = timers::posix(pid, first)?;
    let children = proc::children(pid)?;
    let reports = reports::capture(first, &children).map_err(FreezerError::tracee(pid))?;
    let mut filters = Vec::new();
    let threads = inside
        .iter_mut()
        .map(|thread| thread::capture(thread, &mut filters))
        .collect::<Result<Vec<_>, _>>()?;
    let stopped = frozen
        .threads(pid)
        .iter()
        .find_map(|(_, thread)| thread.group_stop);
    let live = Live {
        threads,
        ended_leader: None,
        mm: AddressSpace::default(),
        files: Vec::new(),
        mm_of: None,
        actions_of: None,
        files_of: None,
        fs_of: None,
        undo_of: None,
        cwd: FileRef::default(),
        cwd_removed: None,
        root: crate::files::reference(pid, "root")?,
        umask: status
            .value("Umask")
            .and_then(|t| u32::from_str_radix(t, 8).ok())
            .unwrap_or(0o22),
        actions,
        pending: signals::pending(pid, first_tid, true)?,
        stopped,
        reports,
        limits: attributes::limits(pid)?,
        itimers,
        timers: posix,
        filters,
        oom_score_adj: attributes::number(pid, "oom_score_adj", 10)? as i32,
        child_subreaper: more.child_subreaper,
        dumpable: more.dumpable,
    };
    Ok((live, more, timers_at))
}
