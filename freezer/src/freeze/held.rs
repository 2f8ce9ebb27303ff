//! Traced threads that run: their tracer waits for their next stop.
//!
//! Nobody but the tracer can stop them. So it is made to do that, by `PTRACE_INTERRUPT` or, where it has attached to
//! them, by a SIGSTOP that it does not let through, to wait for that stop, so that
//! it is not told of it later, and to let them go on before it waits again: that it does by itself, from code behind
//! the end of its vdso's image ([`sys::remainder`]), whenever it is let go, also on another kernel. It is sent there
//! before anything is stopped, so this process may die at any moment.
//!
//! One that is traced from call to call, and is in one, tells of its way out of it when it is interrupted, and of its
//! way into it when it makes it again. Its tracer is not told of either.

use super::traced::{stands_still, tracer_of};
use super::{Frozen, USED_BELOW_STACK, calls, rest};
use crate::capture::{self, Finder, Runs};
use crate::{FreezerError, proc};
use std::time::Duration;
use sys::batch::Batch;
use sys::by_tracer::{self, CallStop};
use sys::regs::{Regs, restart};
use sys::remainder::{self, Series, Step};
use sys::tracee::Tracee;
use sys::vm::ProcMem;
use sys::{Pid, Tid, ptrace};

const WAIT4: i64 = 61;
const POLL: i64 = 7;
const RESTART_SYSCALL: i64 = 219;
const TGKILL: i64 = 234;
const SIGSTOP: i32 = 19;
/// SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
const JOBS: u64 = 0b11111 << 17;
const WNOHANG: u64 = 1;
const SIGTRAP: i32 = 5;
const SIGCHLD: i32 = 17;
const GOOD: i32 = 0x80;
/// What waitid(2) tells of a thread that stopped because it was interrupted (`PTRACE_EVENT_STOP`).
const INTERRUPTED: i32 = SIGTRAP | 128 << 8;
/// `WSTOPPED`, `WEXITED`, `WNOWAIT`, `__WALL`.
const WSTOPPED: u64 = 2;
const WEXITED: u64 = 4;
const WNOWAIT: u64 = 0x0100_0000;
const WALL: u64 = 0x4000_0000;
const P_PID: u64 = 1;
/// `siginfo_t`, and where it tells the status.
const SIGINFO: usize = 128;
const SI_STATUS: u64 = 24;
/// How often a tracer is looked at until it waits.
const LOOKS: u32 = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);
/// Threads that one tracer stops.
const MOST: usize = 64;

/// A thread that is to be stopped, or was.
#[derive(Clone, Copy, Debug)]
struct Runner {
    pid: Pid,
    tid: Tid,
    runs: Runs,
    in_call: bool,
}

impl Runner {
    /// Asks it to stop: who was attached to by a signal that its tracer does not let through.
    fn ask(&self, batch: &mut Batch) {
        if self.runs.seized {
            by_tracer::Tracee(self.tid).interrupt(batch);
        } else {
            let args = [self.pid.0.into(), self.tid.0.into(), SIGSTOP.into()];
            batch.call("sending a tracee SIGSTOP", TGKILL, args);
        }
    }

    /// What waitid(2) tells of it then.
    fn stopped(&self) -> i32 {
        if self.runs.seized {
            INTERRUPTED
        } else {
            SIGSTOP
        }
    }

    /// What its stops before and behind a call look like.
    fn call_stop(&self) -> i32 {
        SIGTRAP | if self.runs.good { GOOD } else { 0 }
    }

    /// What its tracer does to let it go on.
    fn steps(&self, first: usize) -> Vec<Step> {
        let tid = u64::from(self.tid.0.cast_unsigned());
        let request = match self.runs.to_call {
            true => by_tracer::SYSCALL,
            false => by_tracer::CONT,
        };
        let nr = by_tracer::PTRACE.cast_unsigned();
        let next = |step: usize| Some(first + step);
        // One that has not stopped yet, since this process has died before that, is left alone.
        let go_on = |then, or| Step {
            call: [nr, u64::from(request.cast_unsigned()), tid, 0, 0, 0, 0],
            look: Some((Series::RESULT, 0)),
            then,
            or,
        };
        if !(self.runs.to_call && self.in_call) {
            return vec![go_on(next(1), next(1))];
        }
        let wait = |options: u64| {
            let nr = by_tracer::WAITID.cast_unsigned();
            [nr, P_PID, tid, Series::ROOM, options | WALL, 0, 0]
        };
        // What else it stops with its tracer is to be told of.
        let entry = Step {
            call: wait(WSTOPPED | WEXITED | WNOWAIT),
            look: Some((SI_STATUS, self.call_stop().cast_unsigned())),
            then: next(2),
            or: next(4),
        };
        let take = Step {
            call: wait(WSTOPPED | WNOHANG),
            look: None,
            then: next(3),
            or: None,
        };
        vec![
            go_on(next(1), next(4)),
            entry,
            take,
            go_on(next(4), next(4)),
        ]
    }
}

/// Has `tracer` stop threads of these processes. False when it is busy with something else.
///
/// # Errors
/// When they cannot be stopped so.
pub(super) fn hold(
    frozen: &Frozen,
    tracer: Tid,
    threads: &[(Pid, Tid)],
) -> Result<bool, FreezerError> {
    let is_its = |of: &Pid| frozen.threads(*of).iter().any(|(tid, _)| *tid == tracer);
    let Some(owner) = frozen.pids().find(is_its) else {
        return Ok(false);
    };
    let Some(regs) = waits(frozen, owner, tracer)? else {
        return Ok(false);
    };
    let mut runners = Vec::new();
    for (pid, tid) in threads {
        if let Some(why) = obstacle_of((*pid, *tid))? {
            return Err(FreezerError::refuse(*pid, "ptrace", why));
        }
        let runs = capture::runs(*pid, &[*tid]);
        let runs = runs.map_err(|why| FreezerError::refuse(*pid, "ptrace", why.to_string()))?;
        runners.extend(runs.first().map(|runs| Runner {
            pid: *pid,
            tid: *tid,
            runs: *runs,
            in_call: call(*pid, *tid).is_some(),
        }));
    }
    if runners.len() > MOST {
        let why = format!("{tracer} traces more than {MOST} threads that run");
        return Err(FreezerError::refuse(owner, "ptrace", why));
    }
    aim((owner, tracer), &regs, &runners)?;
    let told = proc::Status::read(owner, &format!("task/{tracer}/status"))?;
    let told = told.mask("SigPnd") | told.mask("ShdPnd");
    let waits_for = told >> (SIGCHLD - 1) & 1 != 0;
    let mut finder = Finder::default();
    let held = capture::in_tracer(frozen, tracer, &mut finder, |owner, tracee| {
        let mut held = Vec::new();
        for runner in &runners {
            held.extend(stop(owner, tracee, *runner)?);
        }
        // One that has come to a stop of its own tells of it by the same signal.
        if !waits_for && held.len() == runners.len() {
            let mut batch = Batch::new();
            by_tracer::forget_stops(&mut batch);
            tracee.run(&batch).map_err(FreezerError::tracee(owner))?;
        }
        Ok(held)
    })?;
    aim((owner, tracer), &regs, &held)?;
    Ok(true)
}

/// The registers of a tracer that waits for its tracees, as if it had never been sent through a series.
fn waits(frozen: &Frozen, owner: Pid, tracer: Tid) -> Result<Option<Regs>, FreezerError> {
    let failed = || FreezerError::call(owner, "looking at a tracer");
    let regs = ptrace::get_regs(tracer).map_err(failed())?;
    let mem = ProcMem::of_thread(owner, tracer).map_err(failed())?;
    let stopped = frozen.threads(owner).into_iter();
    let mut group = stopped.filter(|(tid, _)| *tid == tracer);
    let free = group.any(|(_, thread)| thread.group_stop.is_none());
    let repeated = frozen.repeating.get(&tracer);
    if !free || repeated.is_some_and(calls::Repeated::has_an_end) {
        return Ok(None);
    }
    let Some(code) = rest::code(owner, &mem).map_err(failed())? else {
        let why = "its vdso has no room for code by which it would let its tracees go on";
        return Err(FreezerError::refuse(owner, "ptrace", why));
    };
    let before = remainder::before_series(&regs, code, |at| mem.read_u64(at).ok());
    let regs = before.unwrap_or(regs);
    let Some((nr, result)) = regs.interrupted_syscall() else {
        return Ok(None);
    };
    let nr = match nr {
        RESTART_SYSCALL => capture::interrupted_call(tracer, &regs).unwrap_or(nr),
        nr => nr,
    };
    let again = match -result {
        restart::ERESTARTSYS | restart::ERESTARTNOINTR | restart::ERESTARTNOHAND => nr != POLL,
        restart::ERESTART_RESTARTBLOCK => nr == POLL,
        _ => false,
    };
    let again = again && has_no_end(nr, regs.syscall_args());
    let orig_rax = nr.cast_unsigned();
    Ok(again.then_some(Regs { orig_rax, ..regs }))
}

/// Sends a tracer to let threads go on before it makes its call again.
fn aim((owner, tracer): (Pid, Tid), regs: &Regs, held: &[Runner]) -> Result<(), FreezerError> {
    let failed = || FreezerError::call(owner, "having a tracer let its tracees go on");
    let mut steps = Vec::new();
    for runner in held {
        steps.extend(runner.steps(steps.len()));
    }
    let Some(first) = steps.first().copied() else {
        return ptrace::set_regs(tracer, regs).map_err(failed());
    };
    let [rdi, rsi, rdx, r10, r8, r9] = regs.syscall_args();
    steps.push(Step {
        call: [regs.orig_rax, rdi, rsi, rdx, r10, r8, r9],
        look: None,
        then: None,
        or: None,
    });
    let series = Series {
        regs,
        steps,
        room: SIGINFO,
    };
    let mem = ProcMem::of_thread(owner, tracer).map_err(failed())?;
    let code = rest::code(owner, &mem).map_err(failed())?;
    let room = series.size() as u64 + USED_BELOW_STACK;
    let frame = regs.rsp.checked_sub(room).map(|at| at & !15);
    let (Some(code), Some(frame)) = (code, frame) else {
        let why = "there is no room for what a tracer is to do";
        return Err(FreezerError::refuse(owner, "ptrace", why));
    };
    mem.write(frame, &series.bytes(frame)).map_err(failed())?;
    let [nr, rdi, rsi, rdx, r10, ..] = first.call;
    let aimed = Regs {
        rsp: frame,
        rip: code + remainder::series() + 2,
        orig_rax: nr,
        rax: (-restart::ERESTARTNOINTR).cast_unsigned(),
        rdi,
        rsi,
        rdx,
        r10,
        ..*regs
    };
    ptrace::set_regs(tracer, &aimed).map_err(failed())
}

/// Has the tracer stop one. None when that one has come to a stop of its own, which its tracer is to be told of.
fn stop(owner: Pid, tracer: &mut Tracee, runner: Runner) -> Result<Option<Runner>, FreezerError> {
    let failed = || FreezerError::tracee(owner);
    let it = by_tracer::Tracee(runner.tid);
    let mut batch = Batch::new();
    it.only_if_it_runs(&mut batch);
    runner.ask(&mut batch);
    let stop = it.wait_for_any(&mut batch);
    let out = match tracer.run(&batch) {
        Err(error) if by_tracer::has_stopped(&error) => return Ok(None),
        out => out.map_err(failed())?,
    };
    let mut told = stop.read(&out);
    let mut in_call = false;
    if runner.runs.to_call && told == Some(runner.call_stop()) {
        let mut batch = Batch::new();
        let asked = it.ask(&mut batch);
        let out = tracer.run(&batch).map_err(failed())?;
        let regs = asked.regs(&out);
        if asked.call(&out) != CallStop::Exit || !is_cut_off(&regs) {
            return Ok(None);
        }
        let mut batch = Batch::new();
        it.take(&mut batch);
        // The signal waits still.
        if runner.runs.seized {
            runner.ask(&mut batch);
        }
        it.go_on(&mut batch, true);
        let stop = it.wait_for_any(&mut batch);
        let out = tracer.run(&batch).map_err(failed())?;
        told = stop.read(&out);
        in_call = true;
    }
    if told != Some(runner.stopped()) {
        return Ok(None);
    }
    let mut batch = Batch::new();
    it.take(&mut batch);
    let asked = it.ask(&mut batch);
    let out = tracer.run(&batch).map_err(failed())?;
    let regs = asked.regs(&out);
    if let Some(code) = calls::again(&regs) {
        let mut batch = Batch::new();
        let again = Regs {
            rax: (-code).cast_unsigned(),
            ..regs
        };
        it.set_regs(&mut batch, &again);
        tracer.run(&batch).map_err(failed())?;
    }
    Ok(Some(Runner { in_call, ..runner }))
}

/// Whether a call has been ended by nothing but a stop.
fn is_cut_off(regs: &Regs) -> bool {
    let Some((_, result)) = regs.interrupted_syscall() else {
        return false;
    };
    (restart::ERESTARTSYS..=restart::ERESTART_RESTARTBLOCK).contains(&-result)
        || calls::again(regs).is_some()
}

/// Whether a call waits for events without an end (arch/x86/entry/syscalls/syscall_64.tbl), and can be made once more.
fn has_no_end(nr: i64, [_, rsi, rdx, r10, r8, _]: [u64; 6]) -> bool {
    /// `FUTEX_PRIVATE_FLAG`, `FUTEX_CLOCK_REALTIME`.
    const FLAGS: u64 = 128 | 256;
    const WAIT: u64 = 0;
    const WAIT_BITSET: u64 = 9;
    match nr {
        // read, pause, rt_sigsuspend
        WAIT4 | by_tracer::WAITID | 0 | 34 | 130 => true,
        POLL => (rdx as i32) < 0,
        // epoll_wait, epoll_pwait
        232 | 281 => (r10 as i32) < 0,
        // rt_sigtimedwait, ppoll
        128 | 271 => rdx == 0,
        // epoll_pwait2
        441 => r10 == 0,
        // select, pselect6
        23 | 270 => r8 == 0,
        // futex
        202 => matches!(rsi & !FLAGS, WAIT | WAIT_BITSET) && r10 == 0,
        _ => false,
    }
}

/// The call that a thread sleeps in, and its arguments.
fn call(pid: Pid, tid: Tid) -> Option<(i64, [u64; 6])> {
    let text = proc::read_text(pid, &format!("task/{tid}/syscall")).ok()?;
    let mut words = text.split_ascii_whitespace();
    let nr: i64 = words.next()?.parse().ok().filter(|nr| *nr >= 0)?;
    let mut args = [0; 6];
    for (place, word) in args.iter_mut().zip(words) {
        *place = u64::from_str_radix(word.trim_start_matches("0x"), 16).ok()?;
    }
    Some((nr, args))
}

/// Whether a tracer has more threads to stop than there is room for.
fn has_too_many(tracer: Tid) -> Result<bool, FreezerError> {
    let running = proc::everyone()?.into_iter().flat_map(|pid| {
        // One that has ended meanwhile has none.
        let threads = proc::threads(pid).unwrap_or_default().into_iter();
        threads.filter(move |tid| tracer_of(pid, *tid) == Some(tracer) && !stands_still(pid, *tid))
    });
    Ok(running.count() > MOST)
}

/// Why threads of a process that run could not be stopped by their tracer.
pub(crate) fn obstacle(pid: Pid, tracer: Tid) -> Result<Option<&'static str>, FreezerError> {
    for tid in proc::threads(pid)? {
        if tracer_of(pid, tid) != Some(tracer) || stands_still(pid, tid) {
            continue;
        }
        if let Some(why) = obstacle_of((pid, tid))? {
            return Ok(Some(why));
        }
    }
    if has_too_many(tracer)? {
        return Ok(Some(
            "it runs, and its tracer has more threads to stop than there is room for",
        ));
    }
    // The process of a thread has its directory under the thread's number, too.
    let waits = || {
        let call = call(Pid(tracer.0), tracer);
        call.is_none_or(|(nr, args)| match nr {
            RESTART_SYSCALL => has_no_end(POLL, args),
            nr => has_no_end(nr, args),
        })
    };
    let soon = (0..LOOKS).any(|look| {
        if look > 0 {
            std::thread::sleep(BETWEEN_LOOKS);
        }
        waits()
    });
    let why = "it runs, and its tracer does not wait in a call without a time-out";
    Ok((!soon).then_some(why))
}

fn obstacle_of((pid, tid): (Pid, Tid)) -> Result<Option<&'static str>, FreezerError> {
    let Ok(found) = capture::runs(pid, &[tid]) else {
        return Ok(Some("it runs, and how cannot be read from the kernel"));
    };
    let stat = proc::Stat::read(pid, &format!("task/{tid}/stat"))?;
    let status = proc::Status::read(pid, &format!("task/{tid}/status"))?;
    let waiting = status.mask("SigPnd") | status.mask("ShdPnd");
    Ok(match found.first() {
        Some(runs) if !runs.seized && waiting & JOBS != 0 => {
            Some("it runs, and signals that stop it or let it go on wait for it")
        }
        Some(runs) if runs.otherwise => Some("it runs, and is about to stop"),
        _ if stat.state() == 'D' => Some("it runs, in a call that cannot be interrupted"),
        _ => call(pid, tid)
            .filter(|(nr, args)| calls::waits_for_a_time(*nr, *args))
            .map(|_| "it waits for a time in a call that its tracer would see interrupted"),
    })
}
