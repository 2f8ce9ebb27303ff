//! Threads that wait in vfork(2) ([`crate::freeze::vfork`]).
//!
//! Nothing can be asked inside of them. What such a thread has of its own the kernel keeps ([`Kept`]), and some it has
//! in common with its child, which is asked in its place. Where no other thread of its process can be asked, the
//! child is asked about the memory, too, where it is the same; else the kernel is ([`kept_memory`]). The rest `/proc`
//! shows. What none of them shows is refused ([`obstacle`]).

use super::foothold::Finder;
use super::inside::{self, Inside};
use super::io_contexts::Contexts;
use super::kept::{self, Confined, Kept, Reader};
use super::process::{self, Place};
use super::timers::TimersAt;
use super::{attributes, child_waits, credentials, mappings, membarrier, policy, signals, thread};
use super::{kept_memory, kept_timers, tiles};
use crate::confinement::Confinements;
use crate::freeze::FrozenThread;
use crate::freeze::vfork::STACK;
use crate::kernel::{Unreadable, word};
use crate::proc::{self, Stat, Status};
use crate::tables::has_no_undo_list;
use crate::{FreezerError, Frozen};
use core::cmp::Ordering;
use persist_mem::manifest::{
    AddressSpace, ChildReport, Directories, InVfork, Live, QueuedSignal, Scheduling, Seccomp,
    Thread, ThreadUndo,
};
use sys::batch::Batch;
use sys::process::{KcmpKind, kcmp};
use sys::regs::{NO_SYSCALL, Regs};
use sys::{Pid, Tid, process as calls, xstate as extended};

/// `TOP_OF_KERNEL_STACK_PADDING` (arch/x86/include/asm/thread_info.h): without and with `CONFIG_X86_FRED`.
const PADDING: [u64; 2] = [0, 16];
/// `struct pt_regs`: as [`Regs`] up to `ss`.
const PT_REGS: u64 = 21 * 8;
/// Who waits in vfork(2) takes no part in the stop of its job.
const STOPS: &str = "its process is about to be stopped";
/// No extended state is larger.
const STATE_MAX: u32 = 64 << 10;

/// What the kernel keeps of the thread, and what of it is not carried.
struct Waits {
    regs: Regs,
    /// As XSAVES wrote it, and the rights of protection keys.
    xstate: Vec<u8>,
    pkru: Option<u32>,
    kept: Kept,
    /// Signals for the thread, and for its process.
    queued: [Vec<QueuedSignal>; 2],
    confined: Confined,
    dispatched: bool,
    /// What its process has not been told about its children.
    reports: Vec<(Pid, ChildReport)>,
}

/// A thread that waits, and the filters that it gets.
pub(super) type Waiter = (InVfork, Confined);

/// Describes the threads of a process that wait; `maps` are its mappings and its children's.
pub(super) fn threads(
    frozen: &Frozen,
    pid: Pid,
    (maps, finder): (&[proc::Mapping], &mut Finder),
    mm: &mut AddressSpace,
) -> Result<Vec<Waiter>, FreezerError> {
    let mut found = Vec::new();
    let stopped = |(_, thread): &(Tid, FrozenThread)| thread.group_stop.is_some();
    for (tid, child) in frozen.in_vfork(pid) {
        if frozen.threads(pid).iter().any(stopped) {
            return Err(FreezerError::refuse(pid, "thread", STOPS));
        }
        if let Some(why) = obstacle(pid, tid)? {
            return Err(FreezerError::refuse(pid, "thread", why));
        }
        let waits = look((pid, tid)).map_err(|e| unreadable(pid, &e))?;
        let by_itself = less_than_ours((pid, tid), &waits)?.is_some();
        let finder = &mut *finder;
        let asked = asked(frozen, child);
        let ask_more =
            |asked, inside: &mut [Inside], _: &mut AddressSpace| scheduling((asked, inside), tid);
        let (like, scheduling) = match have_same_memory(pid, asked) {
            true => ask(frozen, asked, Place { maps, finder }, mm, ask_more)?,
            false => {
                let maps = &mappings::of_stopped(asked, frozen.first(asked)?)?;
                let mut its = AddressSpace::default();
                ask(frozen, asked, Place { maps, finder }, &mut its, ask_more)?
            }
        };
        let like = Thread { scheduling, ..like };
        let confined = waits.confined.clone();
        let mut thread = Waiting { pid, tid, waits }.thread(like)?;
        if by_itself {
            thread.regs.rax = u64::from(child.0.cast_unsigned());
            thread.regs.orig_rax = NO_SYSCALL;
            thread.child_wait = Some(child_waits::without_room(child));
        }
        found.push((InVfork { thread, child }, confined));
    }
    Ok(found)
}

/// Whether `asked` tells of the memory of `pid`.
fn have_same_memory(pid: Pid, asked: Pid) -> bool {
    let same = kcmp(pid.leader(), asked.leader(), KcmpKind::Vm, 0, 0);
    same.is_ok_and(Ordering::is_eq)
}

/// How a thread is scheduled that another process is asked about.
fn scheduling((asked, inside): (Pid, &mut [Inside]), tid: Tid) -> Result<Scheduling, FreezerError> {
    let mut batch = Batch::new();
    let others = thread::Others::ask(&mut batch, tid);
    let out = inside[0].tracee.run(&batch);
    let out = out.map_err(FreezerError::tracee(asked))?;
    // The process of a thread has its directory under the thread's number, too.
    let stat = Stat::read(Pid(tid.0), "stat")?;
    Ok(others.scheduling(&out, &stat))
}

/// The process that can be asked about the memory of `child`, which may itself wait for another one.
fn asked(frozen: &Frozen, child: Pid) -> Pid {
    let next = |pid: &Pid| match frozen.all_in_vfork(*pid) {
        true => frozen.in_vfork(*pid).first().map(|(_, child)| *child),
        false => None,
    };
    let mut chain = core::iter::successors(Some(child), next);
    chain.by_ref().last().unwrap_or(child)
}

/// Describes a process whose threads all wait, but for them.
pub(super) fn describe(
    frozen: &Frozen,
    pid: Pid,
    place: Place<'_>,
    mm: &mut AddressSpace,
) -> Result<(Live, TimersAt), FreezerError> {
    let waiting = frozen.in_vfork(pid);
    let Some(&(tid, child)) = waiting.first() else {
        return Err(FreezerError::refuse(pid, "threads", "it has none"));
    };
    let waits = look((pid, tid)).map_err(|e| unreadable(pid, &e))?;
    let Waits {
        kept,
        queued,
        reports,
        ..
    } = waits;
    let [_, pending] = queued;
    let maps = place.maps;
    let asked = asked(frozen, child);
    let dumpable = match have_same_memory(pid, asked) {
        true => {
            let ask_memory = |asked, inside: &mut [Inside], mm: &mut AddressSpace| {
                memory(asked, inside, maps, mm)
            };
            ask(frozen, asked, place, mm, ask_memory)?.1.dumpable
        }
        false => {
            let has_keys = maps.iter().any(|map| map.protection_key.is_some());
            let (memory, _) = its_memory((pid, tid)).map_err(|e| unreadable(pid, &e))?;
            memory.tell(has_keys, mm);
            memory.dumpable
        }
    };
    let status = Status::read(pid, "status")?;
    let timers = kept_timers::look(pid, tid)?;
    let live = Live {
        actions: kept.actions,
        pending: signals::with_bare(pending, status.mask("ShdPnd")),
        child_subreaper: kept.child_subreaper,
        reports,
        directories: Directories {
            umask: status.umask(),
            ..Directories::default()
        },
        limits: attributes::limits(pid)?,
        oom_score: attributes::oom_score(pid)?,
        dumpable,
        itimers: timers.interval,
        timers: timers.posix,
        ..process::nothing()
    };
    Ok((live, timers.at))
}

/// Asks the first thread of another process: as what it was born, and `more`.
fn ask<T>(
    frozen: &Frozen,
    asked: Pid,
    place: Place<'_>,
    mm: &mut AddressSpace,
    more: impl FnOnce(Pid, &mut [Inside], &mut AddressSpace) -> Result<T, FreezerError>,
) -> Result<(Thread, T), FreezerError> {
    let mem = crate::proc::memory(asked);
    let mem = mem.map_err(FreezerError::call(asked, "opening its memory"))?;
    let mut inside = inside::threads(frozen, asked, mem)?;
    process::in_scratch(asked, &mut inside, place, mm, |inside, mm| {
        let more = more(asked, inside, mm)?;
        let threads = thread::capture(&mut inside[..1], process::SCRATCH, &mut Vec::new())?;
        let thread = threads.into_iter().next();
        let thread = thread.ok_or_else(|| FreezerError::refuse(asked, "threads", "it has none"))?;
        Ok((thread, more))
    })
}

fn unreadable(pid: Pid, why: &Unreadable) -> FreezerError {
    FreezerError::refuse(pid, "thread", format!("it waits in vfork(2), and {why}"))
}

/// What the child tells of the memory, which is the same.
fn memory(
    child: Pid,
    inside: &mut [Inside],
    maps: &[proc::Mapping],
    mm: &mut AddressSpace,
) -> Result<attributes::Attributes, FreezerError> {
    let failed = || FreezerError::tracee(child);
    let mut batch = Batch::new();
    let barriers = membarrier::ask(&mut batch);
    let asked = policy::ask(&mut batch, maps, mm);
    let more = attributes::ask(&mut batch);
    let first = &mut inside[0].tracee;
    let out = first.run(&batch).map_err(failed())?;
    mm.membarrier = membarrier::read(barriers, &out, first).map_err(failed())?;
    policy::read(asked, &out, first, maps, mm).map_err(failed())?;
    let attributes = attributes::read(&more, &out);
    mm.layout.brk = attributes.brk;
    mm.thp_disabled = attributes.thp_disabled;
    mm.futex_slots = attributes.futex_slots;
    Ok(attributes)
}

struct Waiting {
    pid: Pid,
    tid: Tid,
    waits: Waits,
}

impl Waiting {
    /// The thread. What it does with the processor and with memory nodes the child has from it.
    fn thread(self, child: Thread) -> Result<Thread, FreezerError> {
        let (pid, tid, waits) = (self.pid, self.tid, self.waits);
        let kept = waits.kept;
        let call = |doing: &'static str| FreezerError::call(pid, doing);
        let (stat, status) = shown(pid, tid)?;
        // It has its directory under its own number, too.
        let slack = proc::read_text(Pid(tid.0), "timerslack_ns")?;
        let personality = attributes::number(Pid(tid.0), "personality", 16)? as u32;
        let state = extended::standard(&waits.xstate, &child.xstate, waits.pkru);
        let state = state.ok_or(Unreadable::Inconsistent("the extended state"));
        let [queued, _] = waits.queued;
        let mut thread = Thread {
            tid,
            comm: stat.comm().to_vec(),
            cpu_time: process::thread_time(pid, tid).unwrap_or(0),
            regs: waits.regs,
            xstate: state.map_err(|e| unreadable(pid, &e))?,
            sigmask: status.mask("SigBlk"),
            pending: signals::with_bare(queued, status.mask("SigPnd")),
            altstack: kept.altstack,
            robust_list: calls::get_robust_list(tid).map_err(call("reading its robust list"))?,
            clear_child_tid: kept.clear_child_tid,
            rseq: kept.rseq,
            credentials: credentials::capture(&status, kept.securebits),
            pdeathsig: kept.pdeathsig,
            personality,
            no_new_privs: status.mask("NoNewPrivs") != 0,
            seccomp: Seccomp::Off,
            layers: Vec::new(),
            domains: Vec::new(),
            profile: None,
            dispatch: None,
            directories: None,
            files: None,
            undo: ThreadUndo::Shared,
            io_of: None,
            cgroups: None,
            socket_wait: None,
            limit: None,
            waits_since: None,
            sleep: None,
            child_wait: None,
            ..child
        };
        let scheduling = &mut thread.scheduling;
        scheduling.affinity = status.cpu_mask("Cpus_allowed");
        scheduling.timer_slack = slack.trim().parse().unwrap_or(50_000);
        Ok(thread)
    }
}

/// What `/proc` shows of a thread.
fn shown(pid: Pid, tid: Tid) -> Result<(Stat, Status), FreezerError> {
    let task = |file: &str| format!("task/{tid}/{file}");
    Ok((
        Stat::read(pid, &task("stat"))?,
        Status::read(pid, &task("status"))?,
    ))
}

/// Why a thread that waits in vfork(2) is not carried, found without stopping it.
pub(crate) fn obstacle(pid: Pid, tid: Tid) -> Result<Option<String>, FreezerError> {
    let told = |why: &str| Ok(Some(why.to_owned()));
    if crate::landlock::concerns(&[pid]) {
        return told("its process has restricted itself with Landlock");
    }
    if Confinements::look().of(pid, tid)?.is_some() {
        return told("its process is confined by AppArmor");
    }
    if let Some(why) = tiles::obstacle(pid) {
        return told(why);
    }
    let others: Vec<Tid> = {
        let mut others = proc::threads(pid)?;
        others.retain(|other| !crate::freeze::vfork::waits(pid, *other));
        others
    };
    let alone = others.is_empty();
    if let Some(why) = kept_timers::obstacle(pid, tid)?.filter(|_| alone) {
        return told(why);
    }
    if let Some(why) = among_others(pid, tid, &others)? {
        return told(why);
    }
    let child = crate::freeze::vfork::child_of(pid, tid);
    let sharing = child.filter(|child| have_same_memory(pid, *child));
    if alone && sharing.is_none() {
        if let Some(why) = kept_memory::obstacle(pid)? {
            return told(why);
        }
        match its_memory((pid, tid)) {
            Ok((_, Some(why))) => return told(why),
            Ok((_, None)) => {}
            Err(why) => return Ok(Some(why.to_string())),
        }
    }
    let waits = match look((pid, tid)) {
        Ok(waits) => waits,
        Err(why) => return Ok(Some(why.to_string())),
    };
    if waits.dispatched {
        return told("its system calls are dispatched to user space");
    }
    if let Some(why) = waits.confined.obstacle() {
        return told(why);
    }
    if let Some(why) = queued(&waits.queued, &shown(pid, tid)?.1) {
        return told(why);
    }
    let Some(why) = less_than_ours((pid, tid), &waits)? else {
        return Ok(None);
    };
    let no_other_way = match sharing {
        Some(child) => child_waits::obstacle(pid, child, &waits.confined),
        None => Some("its child has memory of its own"),
    };
    Ok(no_other_way.map(|no_other_way| format!("{why}, and {no_other_way}")))
}

/// Why a thread cannot be made to wait in vfork(2): its child is made by it, as somebody who may still do everything
/// that makes a process, and afterwards it gets nothing.
fn less_than_ours(
    (pid, tid): (Pid, Tid),
    waits: &Waits,
) -> Result<Option<&'static str>, FreezerError> {
    let (stat, status) = shown(pid, tid)?;
    let ours = Status::read(Pid(nix::unistd::getpid().as_raw()), "status")?;
    let lacks = ours.mask("CapEff") & !status.mask("CapEff");
    if lacks != 0 || status.numbers("Uid").get(1) != Some(&0) {
        return Ok(Some("it has not all privileges"));
    }
    if stat.field(41) != 0 {
        return Ok(Some("it has a scheduling policy"));
    }
    let why = filters(pid, &waits.confined)?;
    Ok(why.or_else(|| early(&status)))
}

/// A thread that waits gets its filters from another one of its process, which has these and no others by then
/// (`SECCOMP_FILTER_FLAG_TSYNC`).
fn filters(pid: Pid, confined: &Confined) -> Result<Option<&'static str>, FreezerError> {
    let Confined::Filters(own) = confined else {
        return Ok(None);
    };
    let threads = proc::threads(pid)?;
    let begins = kept::look_at(pid, &threads, |reader, _| {
        Ok(match reader.confined()? {
            Confined::Filters(all) => all.starts_with(own),
            Confined::No | Confined::Strict => false,
        })
    });
    Ok(match begins {
        Ok(all) if all.iter().all(|begins| *begins) => None,
        Ok(_) => Some("it has seccomp filters that other threads of its process have not"),
        Err(_) => Some("its process's seccomp filters cannot be read"),
    })
}

/// What a thread that waits has not in common with the others of its process.
fn among_others(pid: Pid, tid: Tid, others: &[Tid]) -> Result<Option<&'static str>, FreezerError> {
    let ended = |other: &Tid| {
        Stat::read(pid, &format!("task/{other}/stat"))
            .map_or(true, |stat| matches!(stat.state(), 'Z' | 'X'))
    };
    if others.iter().all(ended) && !others.is_empty() {
        return Ok(Some("its leader has ended"));
    }
    let first = others.iter().find(|other| !ended(other)).copied();
    let first = first.unwrap_or(pid.leader());
    let differs = |kind| kcmp(first, tid, kind, 0, 0).is_ok_and(Ordering::is_ne);
    if [KcmpKind::Files, KcmpKind::Fs].into_iter().any(differs) {
        return Ok(Some("it has descriptors or directories of its own"));
    }
    if differs(KcmpKind::Sysvsem) && !has_no_undo_list(tid) {
        return Ok(Some("it has an undo list of its own"));
    }
    let groups = |tid: Tid| proc::read_text(pid, &format!("task/{tid}/cgroup"));
    if groups(first)? != groups(tid)? {
        return Ok(Some("it is in another control group than its process"));
    }
    let stopped = |other: &Tid| {
        Stat::read(pid, &format!("task/{other}/stat")).is_ok_and(|stat| stat.state() == 'T')
    };
    if others.iter().any(stopped) {
        return Ok(Some(STOPS));
    }
    let contexts = Contexts::of(&proc::threads(pid)?);
    let shares = |other: &Tid| *other != tid && contexts.same(*other, tid);
    if proc::threads(pid)?.iter().any(shares) {
        return Ok(Some("it shares its I/O context with other threads"));
    }
    Ok(None)
}

/// Signals that cannot be queued for it before it waits in vfork(2) again.
fn early(status: &Status) -> Option<&'static str> {
    /// SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS; SIGTSTP, SIGTTIN, SIGTTOU.
    const NEVER: [u32; 9] = [4, 5, 7, 8, 11, 31, 20, 21, 22];
    let never = waiting(status) & mask_of(&NEVER) != 0;
    never.then_some("signals wait for it that faults raise, or that stop it")
}

/// Signals that cannot be queued for it.
fn queued(queued: &[Vec<QueuedSignal>; 2], status: &Status) -> Option<&'static str> {
    /// SIGKILL, SIGSTOP
    const NEVER: [u32; 2] = [9, 19];
    const SI_TIMER: [u8; 4] = (-2_i32).to_le_bytes();
    if waiting(status) & mask_of(&NEVER) != 0 {
        return Some("signals wait for it that end or stop it, whatever it does");
    }
    let of_timer = |queued: &QueuedSignal| queued.0.get(8..12) == Some(&SI_TIMER);
    let timers = queued.iter().flatten().any(of_timer);
    timers.then_some("signals of timers wait for it")
}

fn waiting(status: &Status) -> u64 {
    status.mask("SigPnd") | status.mask("ShdPnd")
}

fn mask_of(signals: &[u32]) -> u64 {
    let bit = |signal: &u32| 1_u64 << (signal - 1);
    signals.iter().map(bit).fold(0, |all, bit| all | bit)
}

/// What the kernel keeps of its process's memory, and why that is not carried.
fn its_memory(
    (pid, tid): (Pid, Tid),
) -> Result<(kept_memory::Memory, Option<&'static str>), Unreadable> {
    kept::look((pid, tid), |reader, _| {
        let mut why = None;
        let memory = kept_memory::look(reader, &mut |obstacle| why = Some(obstacle))?;
        Ok((memory, why))
    })
}

fn look((pid, tid): (Pid, Tid)) -> Result<Waits, Unreadable> {
    let system_call = proc::read_text(pid, &format!("task/{tid}/syscall")).unwrap_or_default();
    kept::look((pid, tid), |reader, children| {
        let regs = regs(reader, &system_call)?;
        let (xstate, pkru) = xstate(reader)?;
        Ok(Waits {
            kept: reader.kept(regs.rsp)?,
            regs,
            xstate,
            pkru,
            queued: [reader.queued(false)?, reader.queued(true)?],
            confined: reader.confined()?,
            dispatched: reader.is_dispatched()?,
            reports: reader.reports(children)?,
        })
    })
}

/// General registers: at the top of its kernel stack, compared with what `/proc/PID/syscall` shows; segments,
/// which are saved when it stops running.
fn regs(reader: &mut Reader<'_>, system_call: &str) -> Result<Regs, Unreadable> {
    const WHAT: &str = "a kernel stack";
    let top = reader.pointer("stack")? + STACK;
    let segments = ["thread.fsbase", "thread.gsbase"].map(|path| reader.pointer(path));
    let [fs_base, gs_base] = [segments[0].clone()?, segments[1].clone()?];
    let selectors = ["thread.ds", "thread.es", "thread.fsindex", "thread.gsindex"];
    let mut selected = [0; 4];
    for (value, path) in selected.iter_mut().zip(selectors) {
        *value = u64::from(reader.half_of(path)? & 0xffff);
    }
    for padding in PADDING {
        let bytes = reader.bytes(top - padding - PT_REGS, PT_REGS as usize, WHAT)?;
        let words: Vec<u64> = (0..PT_REGS / 8)
            .filter_map(|n| word(&bytes, n * 8))
            .collect();
        let found = Regs::from_words(&words);
        // What else is in the words of cs and ss is the processor's (FRED).
        let found = Regs {
            cs: found.cs & 0xffff,
            ss: found.ss & 0xffff,
            ..found
        };
        if in_words(&found) == system_call.trim() {
            return Ok(Regs {
                fs_base,
                gs_base,
                ds: selected[0],
                es: selected[1],
                fs: selected[2],
                gs: selected[3],
                ..found
            });
        }
    }
    Err(Unreadable::Inconsistent(WHAT))
}

fn xstate(reader: &mut Reader<'_>) -> Result<(Vec<u8>, Option<u32>), Unreadable> {
    const WHAT: &str = "the extended state";
    // Behind the thread since Linux 6.16.
    let place = match reader.offset("task_struct", "thread.fpu.fpstate") {
        Ok(inside) => reader.task + inside,
        Err(_) => {
            let behind = reader.kernel.btf().size_of("task_struct")?;
            reader.task + behind + reader.offset("fpu", "fpstate")?
        }
    };
    let state = reader.kernel.word(place, WHAT)?;
    let size = state + reader.offset("fpstate", "size")?;
    let size = reader.half_at(size, WHAT)?;
    if size > STATE_MAX {
        return Err(Unreadable::Inconsistent(WHAT));
    }
    let registers = state + reader.offset("fpstate", "regs")?;
    let bytes = reader.bytes(registers, size as usize, WHAT)?;
    let pkru = match reader.offset("task_struct", "thread.pkru") {
        Ok(_) => Some(reader.half_of("thread.pkru")?),
        Err(_) => None,
    };
    Ok((bytes, pkru))
}

/// As `/proc/PID/syscall` shows them: number, arguments, stack pointer, instruction pointer.
fn in_words(regs: &Regs) -> String {
    let mut text = (regs.orig_rax.cast_signed()).to_string();
    let all = regs.syscall_args().into_iter().chain([regs.rsp, regs.rip]);
    for value in all {
        text.push_str(&format!(" {value:#x}"));
    }
    text
}
