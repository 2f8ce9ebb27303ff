//! A process whose only thread waits in vfork(2) ([`crate::freeze::vfork`]).
//!
//! Nothing can be asked inside of it. Its memory is its child's, which is asked in its place; what the thread
//! has of its own the kernel keeps ([`Kept`]); the rest `/proc` shows. What none of them shows is refused
//! ([`obstacle`]).

use super::inside::{self, Inside};
use super::kept::{self, Kept, Reader};
use super::process::{self, Place};
use super::timers::TimersAt;
use super::{attributes, credentials, membarrier, policy, thread};
use crate::freeze::vfork::STACK;
use crate::kernel::{Unreadable, word};
use crate::proc::{self, Stat, Status};
use crate::{FreezerError, Frozen};
use persist_mem::manifest::{AddressSpace, Directories, Live, Seccomp, Thread};
use sys::batch::Batch;
use sys::regs::Regs;
use sys::{Pid, process as calls, xstate as extended};

/// `TOP_OF_KERNEL_STACK_PADDING` (arch/x86/include/asm/thread_info.h): without and with `CONFIG_X86_FRED`.
const PADDING: [u64; 2] = [0, 16];
/// `struct pt_regs`: as [`Regs`] up to `ss`.
const PT_REGS: u64 = 21 * 8;
/// No extended state is larger.
const STATE_MAX: u32 = 64 << 10;

/// What the kernel keeps of the thread, and what of it is not carried.
struct Waits {
    regs: Regs,
    /// As XSAVES wrote it, and the rights of protection keys.
    xstate: Vec<u8>,
    pkru: Option<u32>,
    kept: Kept,
    obstacle: Option<&'static str>,
}

/// Describes the process; `maps` are its mappings and its child's.
pub(super) fn describe(
    frozen: &Frozen,
    (pid, child): (Pid, Pid),
    place: Place<'_>,
    mm: &mut AddressSpace,
) -> Result<(Live, TimersAt), FreezerError> {
    if let Some(why) = obstacle(pid, child)? {
        return Err(FreezerError::refuse(pid, "thread", why));
    }
    let waits = look(pid).map_err(|e| unreadable(pid, &e))?;
    let mem = crate::proc::memory(child);
    let mem = mem.map_err(FreezerError::call(child, "opening its memory"))?;
    let mut inside = inside::threads(frozen, child, mem)?;
    let maps = place.maps;
    let (thread, attributes) = process::in_scratch(child, &mut inside, place, mm, |inside, mm| {
        memory(child, inside, maps, mm)
    })?;
    let thread = Waiting { pid, waits: &waits }.thread(thread)?;
    let umask = Status::read(pid, "status")?;
    let live = Live {
        threads: vec![thread],
        in_vfork: Some(child),
        actions: waits.kept.actions,
        child_subreaper: waits.kept.child_subreaper,
        directories: Directories {
            umask: umask.umask(),
            ..Directories::default()
        },
        limits: attributes::limits(pid)?,
        oom_score_adj: attributes::number(pid, "oom_score_adj", 10)? as i32,
        dumpable: attributes.dumpable,
        ..process::nothing()
    };
    Ok((live, TimersAt::now()))
}

fn unreadable(pid: Pid, why: &Unreadable) -> FreezerError {
    FreezerError::refuse(pid, "thread", format!("it waits in vfork(2), and {why}"))
}

/// What the child tells: of the memory, which is the same, and as what its first thread was born.
fn memory(
    child: Pid,
    inside: &mut [Inside],
    maps: &[proc::Mapping],
    mm: &mut AddressSpace,
) -> Result<(Thread, attributes::Attributes), FreezerError> {
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
    let threads = thread::capture(&mut inside[..1], process::SCRATCH, &mut Vec::new())?;
    let thread = threads.into_iter().next();
    let thread = thread.ok_or_else(|| FreezerError::refuse(child, "threads", "it has none"))?;
    Ok((thread, attributes))
}

struct Waiting<'a> {
    pid: Pid,
    waits: &'a Waits,
}

impl Waiting<'_> {
    /// The thread. What it does with the processor and with memory nodes the child has from it.
    fn thread(&self, child: Thread) -> Result<Thread, FreezerError> {
        let (pid, waits) = (self.pid, self.waits);
        let kept = &waits.kept;
        let tid = pid.leader();
        let call = |doing: &'static str| FreezerError::call(pid, doing);
        let stat = Stat::read(pid, "stat")?;
        let status = Status::read(pid, "status")?;
        let slack = proc::read_text(pid, "timerslack_ns")?;
        let state = extended::standard(&waits.xstate, &child.xstate, waits.pkru);
        let state = state.ok_or(Unreadable::Inconsistent("the extended state"));
        let mut thread = Thread {
            tid,
            comm: stat.comm().to_vec(),
            cpu_time: process::cpu_time(pid)?,
            regs: waits.regs,
            xstate: state.map_err(|e| unreadable(pid, &e))?,
            sigmask: status.mask("SigBlk"),
            pending: Vec::new(),
            altstack: kept.altstack,
            robust_list: calls::get_robust_list(tid).map_err(call("reading its robust list"))?,
            clear_child_tid: kept.clear_child_tid,
            rseq: kept.rseq,
            credentials: credentials::capture(&status, kept.securebits),
            pdeathsig: kept.pdeathsig,
            personality: attributes::number(pid, "personality", 16)? as u32,
            no_new_privs: false,
            seccomp: Seccomp::Off,
            dispatch: None,
            directories: None,
            files: None,
            own_undo: false,
            shares_io: false,
            cgroups: None,
            socket_wait: None,
            limit: None,
            sleep: None,
            ..child
        };
        let scheduling = &mut thread.scheduling;
        scheduling.nice = stat.field(19) as i32;
        scheduling.affinity = status.cpu_mask("Cpus_allowed");
        scheduling.timer_slack = slack.trim().parse().unwrap_or(50_000);
        Ok(thread)
    }
}

/// Why a process that waits for `child` in vfork(2) is not carried, found without stopping it.
pub(crate) fn obstacle(pid: Pid, child: Pid) -> Result<Option<String>, FreezerError> {
    let told = |why: &str| Ok(Some(why.to_owned()));
    let stat = Stat::read(pid, "stat")?;
    let status = Status::read(pid, "status")?;
    let ours = Status::read(Pid(nix::unistd::getpid().as_raw()), "status")?;
    if crate::freeze::vfork::waiting_thread(child).is_some() {
        return told("its child waits in another vfork(2)");
    }
    if status.mask("SigPnd") | status.mask("ShdPnd") != 0 {
        return told("signals wait for it");
    }
    if status.mask("Seccomp") != 0 || status.mask("NoNewPrivs") != 0 {
        return told("it has seccomp filters or has given up new privileges");
    }
    // Its child is made by it, as somebody who may still do everything that makes a process.
    let lacks = ours.mask("CapEff") & !status.mask("CapEff");
    if lacks != 0 || status.numbers("Uid").get(1) != Some(&0) {
        return told("it has not all privileges");
    }
    if stat.field(41) != 0 {
        return told("it has a scheduling policy");
    }
    if !proc::read(pid, "timers")?.is_empty() {
        return told("it has POSIX timers");
    }
    match look(pid) {
        Ok(waits) => Ok(waits.obstacle.map(str::to_owned)),
        Err(why) => Ok(Some(why.to_string())),
    }
}

fn look(pid: Pid) -> Result<Waits, Unreadable> {
    let system_call = proc::read_text(pid, "syscall").unwrap_or_default();
    kept::look(pid, |reader, children| {
        let regs = regs(reader, &system_call)?;
        let (xstate, pkru) = xstate(reader)?;
        Ok(Waits {
            kept: reader.kept(regs.rsp)?,
            regs,
            xstate,
            pkru,
            obstacle: reader.obstacle(children)?,
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
        if shown(&found) == system_call.trim() {
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
fn shown(regs: &Regs) -> String {
    let mut text = (regs.orig_rax.cast_signed()).to_string();
    let all = regs.syscall_args().into_iter().chain([regs.rsp, regs.rip]);
    for value in all {
        text.push_str(&format!(" {value:#x}"));
    }
    text
}
