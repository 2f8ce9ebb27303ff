//! What the kernel keeps of a traced thread.

use super::super::kept::{self, Confined, Kept, Reader};
use super::super::kept_memory::{self, Memory};
use crate::kernel::{Unreadable, half};
use persist_mem::manifest::TracedStop;
use sys::{Pid, Tid};

const SIGTRAP: u32 = 5;
const EVENT_STOP: u32 = 128;
/// `PT_SEIZED`, and where the options begin (include/linux/ptrace.h).
const SEIZED: u32 = 1 << 16;
const OPTIONS_SHIFT: u32 = 3;
const OPTIONS: u64 = 0x3000ff;
/// `JOBCTL_PENDING_MASK`, `JOBCTL_STOP_CONSUME`, `JOBCTL_TRAPPING`, `JOBCTL_LISTENING` (include/linux/sched/jobctl.h).
const JOBCTL: u64 = 0xfe_0000;
const LISTENING: u64 = 1 << 22;
const JOBCTL_STOP_SIGMASK: u64 = 0xffff;
const SIGNAL_STOP_STOPPED: u32 = 1;
/// `__TASK_TRACED` (include/linux/sched.h)
const TRACED: u32 = 8;
pub(super) const AT_EVENT: &str = "it stands at an event (PTRACE_O_TRACE*)";
const STOPPED: &str = "its process is stopped (job control)";
/// `SYSCALL_WORK_SYSCALL_TRACE`, `SYSCALL_WORK_SYSCALL_EMU` (include/linux/thread_info.h).
const SYSCALL_TRACE: u64 = 1 << 2;
const SYSCALL_EMU: u64 = 1 << 3;

/// What the kernel keeps of a thread.
pub(super) struct Stands {
    pub(super) kept: Kept,
    pub(super) seized: bool,
    pub(super) options: u64,
    pub(super) listens: bool,
    /// It does not make the call that it stands before.
    pub(super) makes_none: bool,
    /// Its tracer has set some.
    pub(super) break_points: bool,
    pub(super) stop: Result<TracedStop, &'static str>,
    pub(super) confined: Confined,
    pub(super) memory: Memory,
    pub(super) obstacle: Option<&'static str>,
}

/// Looks at threads of a process, of which their stack pointers tell whether they are on their signal stacks.
pub(super) fn look(pid: Pid, threads: &[(Tid, u64)]) -> Result<Vec<Stands>, Unreadable> {
    let tids: Vec<Tid> = threads.iter().map(|(tid, _)| *tid).collect();
    let mut stacks = threads.iter().map(|(_, rsp)| *rsp);
    kept::look_at(pid, &tids, |reader, children| {
        let rsp = stacks.next().unwrap_or(0);
        let flags = reader.half_of("ptrace")?;
        let mut obstacle = reader.obstacle(children)?;
        let mut refuse = |why| {
            obstacle.get_or_insert(why);
        };
        let options = u64::from((flags & !SEIZED) >> OPTIONS_SHIFT);
        if options & !OPTIONS != 0 {
            refuse("it has options that are not known");
        }
        let signal = reader.pointer("signal")?;
        let flags_at = signal + reader.offset("signal_struct", "flags")?;
        let stopped = reader.half_at(flags_at, "a process")? & SIGNAL_STOP_STOPPED != 0;
        let stands = reader.half_of("__state")? & TRACED != 0;
        let jobs = reader.pointer("jobctl")? & JOBCTL;
        if jobs & !LISTENING != 0 || stopped && !stands {
            refuse(STOPPED);
        }
        let points = reader.task + reader.offset("task_struct", "thread.ptrace_bps")?;
        let points = reader.bytes(points, 4 * 8, "break points")?;
        let traces = reader.task + reader.offset("task_struct", "ptraced")?;
        if reader.kernel.word(traces, "its tracees")? != traces {
            refuse("it traces others");
        }
        let work = reader.pointer("thread_info.syscall_work")?;
        Ok(Stands {
            kept: reader.kept(rsp)?,
            makes_none: work & SYSCALL_EMU != 0,
            break_points: points.iter().any(|byte| *byte != 0),
            seized: flags & SEIZED != 0,
            options: options & OPTIONS,
            listens: jobs & LISTENING != 0,
            stop: stop(reader, flags & SEIZED != 0, stopped)?,
            confined: reader.confined()?,
            memory: kept_memory::look(reader, &mut refuse)?,
            obstacle,
        })
    })
}

/// How a thread was let go by its tracer when it was stopped last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs {
    pub(crate) seized: bool,
    /// By `PTRACE_SYSCALL`.
    pub(crate) to_call: bool,
    /// `PTRACE_O_TRACESYSGOOD`
    pub(crate) good: bool,
    /// By `PTRACE_SYSEMU`, or it is asked to stop.
    pub(crate) otherwise: bool,
    /// By `PTRACE_LISTEN`.
    pub(super) listens: bool,
}

/// How threads of a process run.
pub(crate) fn runs(pid: Pid, threads: &[Tid]) -> Result<Vec<Runs>, Unreadable> {
    kept::look_at(pid, threads, |reader, _| {
        let flags = reader.half_of("ptrace")?;
        let work = reader.pointer("thread_info.syscall_work")?;
        let jobs = reader.pointer("jobctl")? & JOBCTL;
        Ok(Runs {
            seized: flags & SEIZED != 0,
            to_call: work & SYSCALL_TRACE != 0,
            good: flags >> OPTIONS_SHIFT & 1 != 0,
            otherwise: work & SYSCALL_EMU != 0 || jobs != 0,
            listens: jobs & LISTENING != 0,
        })
    })
}

/// Whether threads of a process stand at events that are not carried.
pub(super) fn are_at_events(pid: Pid, threads: &[Tid]) -> Result<Vec<bool>, Unreadable> {
    kept::look_at(pid, threads, |reader, _| {
        Ok(stop(reader, false, false)? == Err(AT_EVENT))
    })
}

/// Which stop it is in: by the siginfo of the stop, and the message that tells calls apart. `stopped` tells whether its
/// process is.
fn stop(
    reader: &mut Reader<'_>,
    seized: bool,
    stopped: bool,
) -> Result<Result<TracedStop, &'static str>, Unreadable> {
    const WHAT: &str = "the signal of a stop";
    const GOOD: u32 = SIGTRAP | 0x80;
    const AT_FILTER: u32 = SIGTRAP | 7 << 8;
    let info = reader.pointer("last_siginfo")?;
    if info == 0 {
        let signal = (reader.pointer("jobctl")? & JOBCTL_STOP_SIGMASK) as i32;
        let group = !seized && stopped && signal != 0;
        return Ok(if group {
            Ok(TracedStop::Group(signal))
        } else {
            Err(STOPPED)
        });
    }
    let bytes = reader.bytes(info, 12, WHAT)?;
    let (Some(signal), Some(code)) = (half(&bytes, 0), half(&bytes, 8)) else {
        return Err(Unreadable::Inconsistent(WHAT));
    };
    let message = reader.pointer("ptrace_message")?;
    Ok(match (signal, code) {
        (SIGTRAP, SIGTRAP | GOOD) if message == 1 => Ok(TracedStop::Entry),
        (SIGTRAP, SIGTRAP | GOOD) if message == 2 => Ok(TracedStop::Exit),
        (SIGTRAP, GOOD) => Err("its stop is not understood"),
        (SIGTRAP, code) if code >> 8 == EVENT_STOP && seized && !stopped => {
            Ok(TracedStop::Interrupted)
        }
        (signal, code) if code >> 8 == EVENT_STOP && seized && stopped => {
            Ok(TracedStop::Group(signal.cast_signed()))
        }
        (_, code) if code >> 8 == EVENT_STOP => Err(STOPPED),
        _ if stopped => Err(STOPPED),
        (SIGTRAP, AT_FILTER) => Ok(TracedStop::Filter),
        (SIGTRAP, code) if code & 0xff == SIGTRAP && (1..=8).contains(&(code >> 8)) => {
            Err(AT_EVENT)
        }
        (signal, _) => Ok(TracedStop::Signal(signal.cast_signed())),
    })
}
