//! A process whose only thread waits in vfork(2) ([`crate::freeze::vfork`]).
//!
//! Nothing can be asked inside of it. Its memory is its child's, which is asked in its place; what the thread
//! has of its own the kernel keeps ([`Kept`]); the rest `/proc` shows. What none of them shows is refused
//! ([`obstacle`]).

use super::inside::{self, Inside};
use super::process::{self, Place};
use super::timers::TimersAt;
use super::{attributes, credentials, membarrier, policy, thread};
use crate::freeze::vfork::STACK;
use crate::kernel::{self, Kernel, Unreadable, half, word};
use crate::proc::{self, Stat, Status};
use crate::{FreezerError, Frozen};
use persist_mem::manifest::{AddressSpace, Directories, Live, Rseq, Seccomp, SigAction, Thread};
use sys::batch::Batch;
use sys::regs::Regs;
use sys::{Pid, Tid, process as calls, xstate};

/// `TOP_OF_KERNEL_STACK_PADDING` (arch/x86/include/asm/thread_info.h): without and with `CONFIG_X86_FRED`.
const PADDING: [u64; 2] = [0, 16];
/// `struct pt_regs`: as [`Regs`] up to `ss`.
const PT_REGS: u64 = 21 * 8;
const SIGNALS: usize = 64;
/// `struct k_sigaction`
const ACTION: usize = 32;
/// `SIGNAL_STOP_STOPPED`, `SIGNAL_STOP_CONTINUED` (include/linux/sched/signal.h)
const CHILD_STOPS: u32 = 3;
/// `SYSCALL_WORK_SYSCALL_USER_DISPATCH` (include/linux/thread_info.h)
const DISPATCHED: u64 = 1 << 5;
const SS_ONSTACK: u32 = 1;
const SS_DISABLE: u32 = 2;
const SS_AUTODISARM: u32 = 1 << 31;
/// A length of rseq areas before the kernel noted it (6.3).
const RSEQ_LEN: u32 = 32;
/// No extended state is larger.
const STATE_MAX: u32 = 64 << 10;

/// What the kernel keeps of the thread and its process.
struct Kept {
    regs: Regs,
    /// As XSAVES wrote it, and the rights of protection keys.
    xstate: Vec<u8>,
    pkru: Option<u32>,
    /// Address, flags, size.
    altstack: (u64, u32, u64),
    clear_child_tid: u64,
    pdeathsig: i32,
    securebits: u32,
    rseq: Option<Rseq>,
    actions: Vec<SigAction>,
    child_subreaper: bool,
    /// What is not carried.
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
    let kept = look(pid, child).map_err(|e| unreadable(pid, &e))?;
    let mem = crate::proc::memory(child);
    let mem = mem.map_err(FreezerError::call(child, "opening its memory"))?;
    let mut inside = inside::threads(frozen, child, mem)?;
    let maps = place.maps;
    let (thread, attributes) = process::in_scratch(child, &mut inside, place, mm, |inside, mm| {
        memory(child, inside, maps, mm)
    })?;
    let thread = Waiting { pid, kept: &kept }.thread(thread)?;
    let umask = Status::read(pid, "status")?;
    let live = Live {
        threads: vec![thread],
        in_vfork: Some(child),
        actions: kept.actions,
        child_subreaper: kept.child_subreaper,
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
    let threads = thread::capture(&mut inside[..1], process::SCRATCH, &mut Vec::new())?;
    let thread = threads.into_iter().next();
    let thread = thread.ok_or_else(|| FreezerError::refuse(child, "threads", "it has none"))?;
    Ok((thread, attributes))
}

struct Waiting<'a> {
    pid: Pid,
    kept: &'a Kept,
}

impl Waiting<'_> {
    /// The thread. What it does with the processor and with memory nodes the child has from it.
    fn thread(&self, child: Thread) -> Result<Thread, FreezerError> {
        let (pid, kept) = (self.pid, self.kept);
        let tid = pid.leader();
        let call = |doing: &'static str| FreezerError::call(pid, doing);
        let stat = Stat::read(pid, "stat")?;
        let status = Status::read(pid, "status")?;
        let slack = proc::read_text(pid, "timerslack_ns")?;
        let state = xstate::standard(&kept.xstate, &child.xstate, kept.pkru);
        let state = state.ok_or(Unreadable::Inconsistent("the extended state"));
        let mut thread = Thread {
            tid,
            comm: stat.comm().to_vec(),
            regs: kept.regs,
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
    match look(pid, child) {
        Ok(kept) => Ok(kept.obstacle.map(str::to_owned)),
        Err(why) => Ok(Some(why.to_string())),
    }
}

fn look(pid: Pid, child: Pid) -> Result<Kept, Unreadable> {
    let system_call = proc::read_text(pid, "syscall").unwrap_or_default();
    let children = proc::children(pid).unwrap_or_default();
    kernel::look(|kernel| {
        let tids: Vec<Tid> = [pid.leader(), child.leader()]
            .into_iter()
            .chain(children.iter().map(|child| child.leader()))
            .collect();
        let tasks = kernel.tasks(&tids)?;
        let [Some(task), Some(_), children @ ..] = &tasks[..] else {
            return Err(Unreadable::Inconsistent("a thread"));
        };
        let children: Vec<u64> = children.iter().flatten().copied().collect();
        Reader {
            kernel,
            task: *task,
        }
        .kept(&system_call, &children)
    })
}

/// Reads what belongs to one thread.
struct Reader<'a> {
    kernel: &'a mut Kernel,
    task: u64,
}

impl Reader<'_> {
    fn kept(&mut self, system_call: &str, children: &[u64]) -> Result<Kept, Unreadable> {
        let signal = self.pointer("signal")?;
        let regs = self.regs(system_call)?;
        let (xstate, pkru) = self.xstate()?;
        let (byte, bit) = self
            .kernel
            .btf()
            .flag("signal_struct", "is_child_subreaper")?;
        let flags = self.bytes(signal + byte, 1, "signals")?;
        let credentials = self.pointer("cred")?;
        let securebits = self.kernel.btf().field("cred", "securebits")?.offset;
        let securebits = self.half_at(credentials + securebits, "credentials")?;
        Ok(Kept {
            altstack: self.altstack(&regs)?,
            regs,
            xstate,
            pkru,
            clear_child_tid: self.pointer("clear_child_tid")?,
            pdeathsig: self.half_of("pdeath_signal")?.cast_signed(),
            securebits,
            rseq: self.rseq()?,
            actions: self.actions()?,
            child_subreaper: flags[0] & bit != 0,
            obstacle: self.obstacle(signal, children)?,
        })
    }

    fn offset(&self, structure: &str, path: &str) -> Result<u64, Unreadable> {
        Ok(self.kernel.btf().field(structure, path)?.offset)
    }

    fn bytes(&mut self, at: u64, len: usize, what: &'static str) -> Result<Vec<u8>, Unreadable> {
        let found = self.kernel.read(&[(at, len)])?.pop().flatten();
        found.ok_or(Unreadable::Inconsistent(what))
    }

    fn half_at(&mut self, at: u64, what: &'static str) -> Result<u32, Unreadable> {
        let bytes = self.bytes(at, 4, what)?;
        half(&bytes, 0).ok_or(Unreadable::Inconsistent(what))
    }

    /// A field of eight bytes of the thread.
    fn pointer(&mut self, path: &str) -> Result<u64, Unreadable> {
        let at = self.task + self.offset("task_struct", path)?;
        self.kernel.word(at, "a thread")
    }

    /// One of four bytes.
    fn half_of(&mut self, path: &str) -> Result<u32, Unreadable> {
        let at = self.task + self.offset("task_struct", path)?;
        self.half_at(at, "a thread")
    }

    /// General registers: at the top of its kernel stack, compared with what `/proc/PID/syscall` shows; segments,
    /// which are saved when it stops running.
    fn regs(&mut self, system_call: &str) -> Result<Regs, Unreadable> {
        const WHAT: &str = "a kernel stack";
        let top = self.pointer("stack")? + STACK;
        let segments = ["thread.fsbase", "thread.gsbase"].map(|path| self.pointer(path));
        let [fs_base, gs_base] = [segments[0].clone()?, segments[1].clone()?];
        let selectors = ["thread.ds", "thread.es", "thread.fsindex", "thread.gsindex"];
        let mut selected = [0; 4];
        for (value, path) in selected.iter_mut().zip(selectors) {
            *value = u64::from(self.half_of(path)? & 0xffff);
        }
        for padding in PADDING {
            let bytes = self.bytes(top - padding - PT_REGS, PT_REGS as usize, WHAT)?;
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

    fn xstate(&mut self) -> Result<(Vec<u8>, Option<u32>), Unreadable> {
        const WHAT: &str = "the extended state";
        // Behind the thread since Linux 6.16.
        let place = match self.offset("task_struct", "thread.fpu.fpstate") {
            Ok(inside) => self.task + inside,
            Err(_) => {
                let behind = self.kernel.btf().size_of("task_struct")?;
                self.task + behind + self.offset("fpu", "fpstate")?
            }
        };
        let state = self.kernel.word(place, WHAT)?;
        let size = state + self.offset("fpstate", "size")?;
        let size = self.half_at(size, WHAT)?;
        if size > STATE_MAX {
            return Err(Unreadable::Inconsistent(WHAT));
        }
        let registers = state + self.offset("fpstate", "regs")?;
        let bytes = self.bytes(registers, size as usize, WHAT)?;
        let pkru = match self.offset("task_struct", "thread.pkru") {
            Ok(_) => Some(self.half_of("thread.pkru")?),
            Err(_) => None,
        };
        Ok((bytes, pkru))
    }

    /// As sigaltstack(2) tells it.
    fn altstack(&mut self, regs: &Regs) -> Result<(u64, u32, u64), Unreadable> {
        let (start, size) = (self.pointer("sas_ss_sp")?, self.pointer("sas_ss_size")?);
        let kept = self.half_of("sas_ss_flags")? & SS_AUTODISARM;
        let on_it = regs.rsp.wrapping_sub(start) <= size && regs.rsp > start;
        let flags = match (size, on_it) {
            (0, _) => SS_DISABLE,
            (_, true) => SS_ONSTACK,
            _ => 0,
        };
        Ok((start, flags | kept, size))
    }

    fn rseq(&mut self) -> Result<Option<Rseq>, Unreadable> {
        // A structure of its own since Linux 6.19.
        let newer = self.offset("task_struct", "rseq.usrptr").is_ok();
        let [pointer, len, signature] = match newer {
            true => ["rseq.usrptr", "rseq.len", "rseq.sig"],
            false => ["rseq", "rseq_len", "rseq_sig"],
        };
        let pointer = self.pointer(pointer)?;
        let size = match self.offset("task_struct", len) {
            Ok(_) => self.half_of(len)?,
            Err(_) => RSEQ_LEN,
        };
        let signature = self.half_of(signature)?;
        Ok((pointer != 0).then_some(Rseq {
            pointer,
            size,
            signature,
        }))
    }

    fn actions(&mut self) -> Result<Vec<SigAction>, Unreadable> {
        const WHAT: &str = "signal actions";
        let table = self.pointer("sighand")?;
        let field = self.kernel.btf().field("sighand_struct", "action")?;
        if field.size != (SIGNALS * ACTION) as u64 {
            return Err(Unreadable::Inconsistent(WHAT));
        }
        let bytes = self.bytes(table + field.offset, SIGNALS * ACTION, WHAT)?;
        let word = |at: usize| word(&bytes, at as u64).ok_or(Unreadable::Inconsistent(WHAT));
        (0..SIGNALS)
            .map(|index| {
                let at = index * ACTION;
                Ok(SigAction {
                    handler: word(at)?,
                    flags: word(at + 8)?,
                    restorer: word(at + 16)?,
                    mask: word(at + 24)?,
                })
            })
            .collect()
    }

    fn obstacle(
        &mut self,
        signal: u64,
        children: &[u64],
    ) -> Result<Option<&'static str>, Unreadable> {
        if self.pointer("thread_info.syscall_work")? & DISPATCHED != 0 {
            return Ok(Some("its system calls are dispatched to user space"));
        }
        let queued = self.offset("sigpending", "list")?;
        let own = self.task + self.offset("task_struct", "pending")? + queued;
        let shared = signal + self.offset("signal_struct", "shared_pending")? + queued;
        for list in [own, shared] {
            if self.kernel.word(list, "signals")? != list {
                return Ok(Some("signals wait for it"));
            }
        }
        let real = signal + self.offset("signal_struct", "it_real_incr")?;
        let armed = self
            .offset("signal_struct", "real_timer.state")
            .or_else(|_| self.offset("signal_struct", "real_timer.is_queued"))?;
        let counting = self.kernel.btf().field("signal_struct", "it")?;
        let timers = [
            (real, 8),
            (signal + armed, 1),
            (signal + counting.offset, counting.size as usize),
        ];
        for (at, len) in timers {
            if self.bytes(at, len, "timers")?.iter().any(|byte| *byte != 0) {
                return Ok(Some("it has interval timers"));
            }
        }
        let flags = self.offset("signal_struct", "flags")?;
        let signals = self.offset("task_struct", "signal")?;
        for child in children {
            let signal = self.kernel.word(child + signals, "a child")?;
            if self.half_at(signal + flags, "a child")? & CHILD_STOPS != 0 {
                return Ok(Some("a child of it was stopped or continued"));
            }
        }
        Ok(None)
    }
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
