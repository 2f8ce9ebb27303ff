//! What the kernel keeps of a thread that cannot be asked anything inside.

use crate::kernel::{self, Kernel, Unreadable, half, word};
use crate::proc;
use persist_mem::manifest::{ChildReport, Filter, QueuedSignal, Rseq, SigAction};
use sys::{Pid, Tid, ptrace};

const SIGNALS: usize = 64;
/// Queued signals that are read.
const MOST_QUEUED: usize = 1000;
/// `struct k_sigaction`
const ACTION: usize = 32;
/// `SIGNAL_STOP_STOPPED`, `SIGNAL_STOP_CONTINUED` (include/linux/sched/signal.h)
const STOPPED: u32 = 1;
const CONTINUED: u32 = 2;
/// `SYSCALL_WORK_SYSCALL_USER_DISPATCH` (include/linux/thread_info.h)
const DISPATCHED: u64 = 1 << 5;
const SS_ONSTACK: u32 = 1;
const SS_DISABLE: u32 = 2;
const SS_AUTODISARM: u32 = 1 << 31;
/// `SECCOMP_MODE_DISABLED`, `SECCOMP_MODE_STRICT`; the most filters that are read, and the most instructions of one
/// (`BPF_MAXINSNS`).
const NO_SECCOMP: u32 = 0;
const STRICT: u32 = 1;
const MOST_FILTERS: usize = 1000;
const MOST_INSTRUCTIONS: u32 = 4096;
/// Bytes of one (`struct sock_filter`).
const INSTRUCTION: u32 = 8;
/// A length of rseq areas before the kernel noted it (6.3).
const RSEQ_LEN: u32 = 32;

/// What is the thread's, and its process's.
pub(super) struct Kept {
    /// Address, flags, size.
    pub(super) altstack: (u64, u32, u64),
    pub(super) clear_child_tid: u64,
    pub(super) pdeathsig: i32,
    pub(super) securebits: u32,
    pub(super) rseq: Option<Rseq>,
    pub(super) actions: Vec<SigAction>,
    pub(super) child_subreaper: bool,
}

/// A child, and its `task_struct`.
pub(super) type Child = (Pid, u64);

/// How a thread is confined by seccomp(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Confined {
    No,
    Strict,
    /// The filter that was installed first is the first one.
    Filters(Vec<Filter>),
}

/// Looks at a thread of a process; `work` gets its children, too.
pub(super) fn look<T>(
    (pid, tid): (Pid, Tid),
    work: impl FnOnce(&mut Reader<'_>, &[Child]) -> Result<T, Unreadable>,
) -> Result<T, Unreadable> {
    let mut work = Some(work);
    let mut found = None;
    look_at(pid, &[tid], |reader, children| {
        if let Some(work) = work.take() {
            found = Some(work(reader, children)?);
        }
        Ok(())
    })?;
    found.ok_or(Unreadable::Inconsistent("a thread"))
}

/// Looks at some threads of a process, one after the other.
pub(super) fn look_at<T>(
    pid: Pid,
    threads: &[Tid],
    mut work: impl FnMut(&mut Reader<'_>, &[Child]) -> Result<T, Unreadable>,
) -> Result<Vec<T>, Unreadable> {
    let children = proc::children(pid).unwrap_or_default();
    let all: Vec<Tid> = threads
        .iter()
        .copied()
        .chain(children.iter().map(|child| child.leader()))
        .collect();
    kernel::look(|kernel| {
        let tasks = kernel.tasks(&all)?;
        let (threads, tasks) = tasks.split_at(threads.len());
        let children = children.iter().zip(tasks);
        let children: Vec<Child> = children
            .filter_map(|(child, task)| Some((*child, (*task)?)))
            .collect();
        let one = |task: &Option<u64>| {
            let task = task.ok_or(Unreadable::Inconsistent("a thread"))?;
            work(&mut Reader { kernel, task }, &children)
        };
        threads.iter().map(one).collect()
    })
}

/// Reads what belongs to one thread.
pub(super) struct Reader<'a> {
    pub(super) kernel: &'a mut Kernel,
    pub(super) task: u64,
}

impl Reader<'_> {
    /// `rsp` tells whether it is on its signal stack.
    pub(super) fn kept(&mut self, rsp: u64) -> Result<Kept, Unreadable> {
        let signal = self.pointer("signal")?;
        let (byte, bit) = self
            .kernel
            .btf()
            .flag("signal_struct", "is_child_subreaper")?;
        let flags = self.bytes(signal + byte, 1, "signals")?;
        let credentials = self.pointer("cred")?;
        let securebits = self.kernel.btf().field("cred", "securebits")?.offset;
        let securebits = self.half_at(credentials + securebits, "credentials")?;
        Ok(Kept {
            altstack: self.altstack(rsp)?,
            clear_child_tid: self.pointer("clear_child_tid")?,
            pdeathsig: self.half_of("pdeath_signal")?.cast_signed(),
            securebits,
            rseq: self.rseq()?,
            actions: self.actions()?,
            child_subreaper: flags[0] & bit != 0,
        })
    }

    pub(super) fn offset(&self, structure: &str, path: &str) -> Result<u64, Unreadable> {
        Ok(self.kernel.btf().field(structure, path)?.offset)
    }

    pub(super) fn bytes(
        &mut self,
        at: u64,
        len: usize,
        what: &'static str,
    ) -> Result<Vec<u8>, Unreadable> {
        let found = self.kernel.read(&[(at, len)])?.pop().flatten();
        found.ok_or(Unreadable::Inconsistent(what))
    }

    pub(super) fn half_at(&mut self, at: u64, what: &'static str) -> Result<u32, Unreadable> {
        let bytes = self.bytes(at, 4, what)?;
        half(&bytes, 0).ok_or(Unreadable::Inconsistent(what))
    }

    /// A field of eight bytes of the thread.
    pub(super) fn pointer(&mut self, path: &str) -> Result<u64, Unreadable> {
        let at = self.task + self.offset("task_struct", path)?;
        self.kernel.word(at, "a thread")
    }

    /// One of four bytes.
    pub(super) fn half_of(&mut self, path: &str) -> Result<u32, Unreadable> {
        let at = self.task + self.offset("task_struct", path)?;
        self.half_at(at, "a thread")
    }

    /// As sigaltstack(2) tells it.
    fn altstack(&mut self, rsp: u64) -> Result<(u64, u32, u64), Unreadable> {
        let (start, size) = (self.pointer("sas_ss_sp")?, self.pointer("sas_ss_size")?);
        let kept = self.half_of("sas_ss_flags")? & SS_AUTODISARM;
        let on_it = rsp.wrapping_sub(start) <= size && rsp > start;
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

    /// Signals queued for it, or (`shared`) for its process.
    pub(super) fn queued(&mut self, shared: bool) -> Result<Vec<QueuedSignal>, Unreadable> {
        const WHAT: &str = "signals";
        let pending = match shared {
            true => self.pointer("signal")? + self.offset("signal_struct", "shared_pending")?,
            false => self.task + self.offset("task_struct", "pending")?,
        };
        let list = pending + self.offset("sigpending", "list")?;
        let info = self.kernel.btf().field("sigqueue", "info")?;
        let entry = self.offset("sigqueue", "list")?;
        let mut queued = Vec::new();
        let mut at = self.kernel.word(list, WHAT)?;
        while at != list {
            if queued.len() == MOST_QUEUED {
                return Err(Unreadable::Inconsistent(WHAT));
            }
            let start = at.wrapping_sub(entry).wrapping_add(info.offset);
            let mut bytes = self.bytes(start, info.size as usize, WHAT)?;
            bytes.resize(ptrace::SIGINFO_SIZE, 0);
            queued.push(QueuedSignal(bytes));
            at = self.kernel.word(at, WHAT)?;
        }
        Ok(queued)
    }

    /// Its seccomp filters, as they were installed: the kernel keeps that for who asks by ptrace(2).
    pub(super) fn confined(&mut self) -> Result<Confined, Unreadable> {
        const WHAT: &str = "a seccomp filter";
        match self.half_of("seccomp.mode")? {
            NO_SECCOMP => return Ok(Confined::No),
            STRICT => return Ok(Confined::Strict),
            _ => {}
        }
        let field = |reader: &Self, path| reader.offset("seccomp_filter", path);
        let (log, before) = (field(self, "log")?, field(self, "prev")?);
        let program = field(self, "prog")?;
        let original = self.offset("bpf_prog", "orig_prog")?;
        let (len, code) = (
            self.offset("sock_fprog_kern", "len")?,
            self.offset("sock_fprog_kern", "filter")?,
        );
        let mut found = Vec::new();
        let mut at = self.pointer("seccomp.filter")?;
        while at != 0 {
            if found.len() == MOST_FILTERS {
                return Err(Unreadable::Inconsistent(WHAT));
            }
            let program = self.kernel.word(at + program, WHAT)?;
            let original = self.kernel.word(program + original, WHAT)?;
            let count = self.half_at(original + len, WHAT)? & 0xffff;
            if original == 0 || !(1..=MOST_INSTRUCTIONS).contains(&count) {
                return Err(Unreadable::Inconsistent(WHAT));
            }
            let code = self.kernel.word(original + code, WHAT)?;
            found.push(Filter {
                code: self.bytes(code, (count * INSTRUCTION) as usize, WHAT)?,
                log: self.bytes(at + log, 1, WHAT)?[0] != 0,
                listener: None,
            });
            at = self.kernel.word(at + before, WHAT)?;
        }
        found.reverse();
        Ok(Confined::Filters(found))
    }

    /// Whether its system calls are dispatched to user space.
    pub(super) fn is_dispatched(&mut self) -> Result<bool, Unreadable> {
        Ok(self.pointer("thread_info.syscall_work")? & DISPATCHED != 0)
    }

    /// What is not carried of a process that cannot be asked.
    pub(super) fn obstacle(
        &mut self,
        children: &[Child],
    ) -> Result<Option<&'static str>, Unreadable> {
        if self.is_dispatched()? {
            return Ok(Some("its system calls are dispatched to user space"));
        }
        for child in children {
            if self.stops(child)?.0 != 0 {
                return Ok(Some("a child of it was stopped or continued"));
            }
        }
        Ok(None)
    }

    /// What wait(2) would tell of its children that have not ended (kernel/exit.c, wait_task_stopped and
    /// wait_task_continued).
    pub(super) fn reports(
        &mut self,
        children: &[Child],
    ) -> Result<Vec<(Pid, ChildReport)>, Unreadable> {
        let mut found = Vec::new();
        for child in children {
            match self.stops(child)? {
                (STOPPED, true) => found.push((child.0, ChildReport::Stopped)),
                (CONTINUED, _) => found.push((child.0, ChildReport::Continued)),
                _ => {}
            }
        }
        Ok(found)
    }

    /// Whether a child has stopped or gone on, and whether it has a code for who waits for it.
    fn stops(&mut self, (_, task): &Child) -> Result<(u32, bool), Unreadable> {
        const WHAT: &str = "a child";
        let field = |path| self.offset("signal_struct", path);
        let (flags, code) = (field("flags")?, field("group_exit_code")?);
        let signals = self.offset("task_struct", "signal")?;
        let signal = self.kernel.word(task + signals, WHAT)?;
        let flags = self.half_at(signal + flags, WHAT)? & (STOPPED | CONTINUED);
        Ok((flags, self.half_at(signal + code, WHAT)? != 0))
    }
}
