//! One live process.

use super::foothold::{Below, Finder, Grown};
use super::inside::{self, Inside};
use super::room::Raised;
use super::timers::TimersAt;
use super::{
    attributes, leader, mappings, membarrier, memory, policy, reports, seccomp, signals, thread,
    timers, traced, vfork,
};
use crate::files::{self, Table, sent};
use crate::proc::{self, Stat};
use crate::{FreezerError, Frozen};
use persist_mem::manifest::{AddressSpace, Directories, Live, LockFuture, Process, State};
use sys::batch::{Batch, CallIndex};
use sys::cpu_clock::{self, Counted, Whose};
use sys::tracee::Foothold;
use sys::{PAGE_SIZE, Pid, Tid, ptrace};

/// Room for the largest batch: 64 signal actions, the timers, the rest.
pub(super) const SCRATCH: usize = 72 << 10;
/// A signal frame without the extended state, and room to align it.
const FRAME: usize = 1024;

pub(super) fn capture(
    frozen: &Frozen,
    (pid, stat): (Pid, &Stat),
    children: &[Pid],
    table: &mut Table,
    finder: &mut Finder,
) -> Result<(Process, TimersAt), FreezerError> {
    let tids: Vec<Tid> = frozen.threads(pid).iter().map(|(tid, _)| *tid).collect();
    let ended_leader = match tids.contains(&pid.leader()) {
        true => None,
        false => Some(leader::capture(pid)?),
    };
    let maps = mappings::of_stopped(pid, frozen.first(pid)?)?;
    // Everything that looks at memory comes before the scratch mapping is made.
    let mem = proc::memory(pid).map_err(FreezerError::call(pid, "opening its memory"))?;
    let mut mm = memory::capture(stat, (pid, &mem), &maps, &mut table.objects)?;
    let told = files::userfault::ranges(&maps);
    if !told.is_empty() {
        table.faults.insert(pid, told);
    }
    table.session(pid, stat);
    let directories = table.directories(pid, "")?;
    let first = frozen.first(pid)?;
    let senders = sent::needed(pid, first, &tids);
    let mut files = Vec::new();
    if senders.is_empty() {
        files = table.capture(pid)?;
    }
    // What is asked of others comes before what their answers leave in the same memory.
    let vforks = vfork::threads(frozen, pid, (&maps, finder), &mut mm)?;
    let place = Place {
        maps: &maps,
        finder,
    };
    let (mut live, timers_at) = match frozen.traced_by(pid) {
        _ if frozen.all_in_vfork(pid) => vfork::describe(frozen, pid, place, &mut mm)?,
        Some(tracer) => traced::describe(frozen, (pid, tracer), place, &mut mm)?,
        None => {
            let mut threads = inside::threads(frozen, pid, mem)?;
            let (found, sent) = in_scratch(pid, &mut threads, place, &mut mm, |threads, mm| {
                let sent = hand_over(threads, &senders)?;
                Ok((describe(pid, threads, children, &maps, mm)?, sent))
            })?;
            table.sent.extend(sent);
            found
        }
    };
    if !senders.is_empty() {
        files = table.capture(pid)?;
    }
    let exit_signal = exit_signal((pid, stat), first)?;
    live.ended_leader = ended_leader;
    for (mut waiting, confined) in vforks {
        waiting.thread.seccomp = seccomp::of_kept(confined, &mut live.filters);
        live.vforks.push(waiting);
    }
    live.cpu_time = cpu_time(pid)?;
    count_on(pid, &mut live, &cpu_clock::take_out(&mut mm.vdso));
    live.directories = Directories {
        umask: live.directories.umask,
        ..directories
    };
    let states = frozen.threads(pid);
    live.stopped = states.iter().find_map(|(_, thread)| thread.group_stop);
    live.mm = mm;
    live.files = files;
    let process = Process {
        pid,
        ppid: stat.pid(4),
        parent_thread: None,
        place: 0,
        pgid: stat.pid(5),
        sid: stat.pid(6),
        exit_signal,
        state: State::Live(Box::new(live)),
    };
    Ok((process, timers_at))
}

/// What its parent gets at the end of a process, `stat` of which is that of its thread `first`: the leader's alone
/// shows it, also when that has ended.
fn exit_signal((pid, stat): (Pid, &Stat), first: Tid) -> Result<i32, FreezerError> {
    let leader = pid.leader();
    if first == leader {
        return Ok(stat.exit_signal());
    }
    Ok(Stat::read(pid, &format!("task/{leader}/stat"))?.exit_signal())
}

/// Processor time of all threads of a process.
pub(super) fn cpu_time(pid: Pid) -> Result<u64, FreezerError> {
    let time = sys::clock::process_cpu_ns(pid);
    let time = time.map_err(FreezerError::call(pid, "asking for its processor time"))?;
    Ok(u64::try_from(time).unwrap_or(0))
}

/// Processor time of a thread, as the scheduler shows it; its clock is for threads of the same process only.
pub(super) fn thread_time(pid: Pid, tid: Tid) -> Option<u64> {
    let text = proc::read_text(pid, &format!("task/{tid}/schedstat")).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// Adds what was counted before this life of a process, which its clocks show, too.
fn count_on(pid: Pid, live: &mut Live, before: &[Counted]) {
    let found = |whose| before.iter().find(|(other, _)| *other == whose);
    let before = |whose| found(whose).map_or(0, |(_, time)| *time);
    live.cpu_time = live.cpu_time.saturating_add(before(Whose::Process(pid.0)));
    let waiting = live.vforks.iter_mut().map(|waiting| &mut waiting.thread);
    for thread in live.threads.iter_mut().chain(waiting) {
        let own = before(Whose::Thread(thread.tid.0));
        thread.cpu_time = thread.cpu_time.saturating_add(own);
    }
}

/// What threads hand over of their tables.
fn hand_over(threads: &mut [Inside], senders: &[(Pid, Tid)]) -> Result<sent::Copies, FreezerError> {
    let mut copies = sent::Copies::new();
    for (table, tid) in senders {
        let sender = threads
            .iter_mut()
            .find(|thread| thread.tracee.tid() == *tid);
        if let Some(thread) = sender {
            copies.insert(*table, sent::hand_over(&mut thread.tracee, *table)?);
        }
    }
    Ok(copies)
}

/// Where a way into a process is looked for.
pub(super) struct Place<'a> {
    pub(super) maps: &'a [proc::Mapping],
    pub(super) finder: &'a mut Finder,
}

/// Does something with a process's threads while there is room for batches, and leaves everything as it was.
pub(super) fn in_scratch<T>(
    pid: Pid,
    threads: &mut [Inside],
    place: Place<'_>,
    mm: &mut AddressSpace,
    work: impl FnOnce(&mut [Inside], &mut AddressSpace) -> Result<T, FreezerError>,
) -> Result<T, FreezerError> {
    let room = map_scratch(pid, threads, place.maps, place.finder)?;
    let done = work(threads, mm);
    let unmapped = threads[room.maker]
        .tracee
        .unmap_scratch(room.gate)
        .map_err(FreezerError::tracee(pid));
    let shrunk = room.grown.map_or(Ok(()), |(grown, foothold)| {
        grown
            .give_back(foothold, threads)
            .map_err(FreezerError::tracee(pid))
    });
    let below = room.put_back(threads);
    let put_back = threads.iter().try_for_each(Inside::put_back);
    for thread in threads {
        let own = thread.status.mask("SigPnd");
        let its = |signal: i32| own >> (signal - 1) & 1 != 0;
        for signal in thread.tracee.take_deferred() {
            let sent = match its(signal) {
                true => sys::process::tgkill(pid, thread.tracee.tid(), signal),
                false => sys::process::kill(pid, signal),
            };
            sent.map_err(FreezerError::call(pid, "sending on a signal"))?;
        }
    }
    let done = done?;
    unmapped?;
    shrunk?;
    below?;
    put_back?;
    mm.lock_future = room.lock_future?;
    Ok(done)
}

/// A process that has nothing yet.
pub(super) fn nothing() -> Live {
    Live {
        dumpable: 1,
        ..Live::default()
    }
}

/// Room for batches in a process.
struct Room {
    /// Which thread has made it and unmaps it.
    maker: usize,
    /// Its gate.
    gate: u64,
    /// Stack that is to be given back, and the way in and out.
    grown: Option<(Grown, Foothold)>,
    /// What lay where its way back was put.
    below: Option<Below>,
    /// What the new mapping tells about mappings to come.
    lock_future: Result<LockFuture, FreezerError>,
}

impl Room {
    /// Puts back what frames were put over.
    fn put_back(&self, threads: &[Inside]) -> Result<(), FreezerError> {
        let maker = &threads[self.maker].tracee;
        let failed = FreezerError::call(maker.pid(), "putting its stack back");
        let below = self.below.as_ref();
        below.map_or(Ok(()), |below| below.put_back(maker.mem()).map_err(failed))
    }
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
    let stacks: Vec<u64> = threads.iter().map(|thread| thread.regs.rsp).collect();
    let Some(thread) = threads.get_mut(maker) else {
        return Err(FreezerError::refuse(pid, "threads", "it has none"));
    };
    let locked = policy::locked(&thread.status);
    let tracee = &mut thread.tracee;
    let tid = tracee.tid();
    let xstate =
        ptrace::get_xstate(tid).map_err(FreezerError::call(pid, "reading its extended state"))?;
    let frame = (xstate.len() + FRAME).next_multiple_of(PAGE_SIZE) as u64;
    let way = finder.find(tracee, &stacks, maps, frame).ok_or_else(|| {
        FreezerError::refuse(pid, "memory", "no system call instruction is mapped")
    })?;
    if let Some(foothold) = way.foothold {
        tracee.set_foothold(foothold);
    }
    let mapped = tracee.map_scratch(way.gate, SCRATCH).or_else(|_| {
        let _raised = Raised::of(pid, &thread.status, maps.len());
        tracee.map_scratch(way.gate, SCRATCH)
    });
    let scratch = match mapped {
        Ok(scratch) => scratch,
        Err(why) => {
            if let Some(below) = way.below {
                let put_back = below.put_back(threads[maker].tracee.mem());
                put_back.map_err(FreezerError::call(pid, "putting its stack back"))?;
            }
            if let Some((grown, foothold)) = way.grown.zip(way.foothold) {
                grown
                    .give_back(foothold, threads)
                    .map_err(FreezerError::tracee(pid))?;
            }
            return Err(FreezerError::tracee(pid)(why));
        }
    };
    let lock_future = policy::lock_future((pid, tid), locked, scratch);
    for thread in threads.iter_mut() {
        let adopted = thread.tracee.adopt_scratch(scratch, true);
        adopted.map_err(FreezerError::tracee(pid))?;
    }
    Ok(Room {
        maker,
        gate: way.gate,
        grown: way.grown.zip(way.foothold),
        below: way.below,
        lock_future,
    })
}

/// What one thread is asked about its process, in one batch.
struct Asked {
    barriers: membarrier::Asked,
    policy: policy::Asked,
    actions: signals::Asked,
    attributes: attributes::Asked,
    itimers: timers::Asked,
    timer_ids: CallIndex,
    reports: reports::Asked,
}

impl Asked {
    fn add(
        batch: &mut Batch,
        children: &[Pid],
        maps: &[proc::Mapping],
        mm: &AddressSpace,
    ) -> Asked {
        Asked {
            reports: reports::ask(batch, children),
            barriers: membarrier::ask(batch),
            policy: policy::ask(batch, maps, mm),
            actions: signals::ask(batch),
            attributes: attributes::ask(batch),
            itimers: timers::ask(batch),
            timer_ids: timers::ask_ids(batch),
        }
    }
}

/// What is asked from inside.
fn describe(
    pid: Pid,
    inside: &mut [Inside],
    children: &[Pid],
    maps: &[proc::Mapping],
    mm: &mut AddressSpace,
) -> Result<(Live, TimersAt), FreezerError> {
    let mut batch = Batch::new();
    let asked = Asked::add(&mut batch, children, maps, mm);
    let own = thread::Question::add(&mut batch);
    let failed = || FreezerError::tracee(pid);
    let first = &mut inside[0].tracee;
    let first_tid = first.tid();
    let timers_at = TimersAt::now();
    let out = first.run(&batch).map_err(failed())?;
    let posix = timers::posix(pid, first, timers_at)?;
    let reports = reports::read(&asked.reports, &out, first, children).map_err(failed())?;
    mm.membarrier = membarrier::read(asked.barriers, &out, first).map_err(failed())?;
    policy::read(asked.policy, &out, first, maps, mm).map_err(failed())?;
    let more = attributes::read(&asked.attributes, &out);
    mm.layout.brk = more.brk;
    mm.thp_disabled = more.thp_disabled;
    mm.futex_slots = more.futex_slots;
    let umask = inside[0].status.umask();
    let mut filters = Vec::new();
    let pending = signals::pending((pid, first_tid), &inside[0].status, true)?;
    let mut threads = Vec::with_capacity(inside.len());
    let (first, others) = inside.split_at_mut(1);
    for thread in first {
        threads.push(thread::describe(thread, own.read(&out), &mut filters)?);
    }
    threads.extend(thread::capture(others, SCRATCH, &mut filters)?);
    let live = Live {
        threads,
        directories: Directories {
            umask,
            ..Directories::default()
        },
        actions: signals::actions(asked.actions, &out),
        pending,
        reports,
        limits: attributes::limits(pid)?,
        itimers: timers::itimers(&asked.itimers, &out, timers_at, first_tid),
        timers: posix,
        chooses_timer_ids: out.result(asked.timer_ids) == Ok(1),
        filters,
        oom_score: attributes::oom_score(pid)?,
        child_subreaper: more.child_subreaper,
        dumpable: more.dumpable,
        ..nothing()
    };
    Ok((live, timers_at))
}
