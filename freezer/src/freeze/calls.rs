//! Calls that a stop makes fail although no signal came (signal(7): "even without handlers").
//!
//! The thread is told to make such a call again unless a handler runs, with what remains of its
//! time-out. Setting the registers is one step, so the thread goes on well whenever it is let go.

use super::barred::{self, Barred};
use super::{FrozenThread, moved, rest, sleepers, uring};
use crate::files::apart;
use crate::{FreezerError, proc};
use persist_mem::manifest::{Limit, LimitPlace};
use std::os::fd::{AsFd, OwnedFd};
use sys::regs::{Regs, restart};
use sys::socket_wait::SocketWait;
use sys::vm::ProcMem;
use sys::{Pid, Tid, ptrace};

const EINTR: i64 = 4;
const IOCTL: i64 = 16;
/// `SECCOMP_IOCTL_NOTIF_RECV`, which takes nothing before there is something.
const NOTIF_RECV: u32 = 0xc050_2100;
/// `TCSBRK`, with a number that is not 0: tcdrain(3).
const DRAIN: u32 = 0x5409;
const RECVMMSG: i64 = 299;
/// poll(2), which a read of a terminal begins with.
const POLL: u64 = 7;
/// Bytes below the stack pointer that are in use: 128 by leaf functions (the red zone of the ABI), the rest by
/// the time-out of a call that is made again.
pub(crate) const USED_BELOW_STACK: u64 = 128 + 64;

/// Where a call takes how long it waits from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeOut {
    /// It has none, or an absolute one, or one that only its socket knows.
    None,
    /// Milliseconds in r10.
    MillisecondsR10,
    /// Milliseconds in rdx.
    MillisecondsRdx,
    /// A `struct timespec` whose address is in a register.
    Rdi,
    Rdx,
    R10,
    R8,
    /// A `struct timeval` whose address is in r8.
    R8Timeval,
    /// A `struct timespec` whose address is in the structure that r8 points to, when the flags in r10 say that there
    /// is one (io_uring_enter).
    OfRing,
    /// `SO_RCVTIMEO` of the socket whose descriptor is in rdi.
    Receive,
    /// `SO_SNDTIMEO` of the socket whose descriptor is in rdi.
    Send,
}

impl TimeOut {
    /// Whether a register holds it or its address: a shorter one takes another value there.
    fn is_in_register(self) -> bool {
        !matches!(self, TimeOut::None | TimeOut::Receive | TimeOut::Send)
    }
}

/// The calls that are made again (arch/x86/entry/syscalls/syscall_64.tbl). Not among them are those
/// that must not be, such as close(2).
fn repeated(nr: i64) -> Option<TimeOut> {
    Some(match nr {
        // epoll_wait, epoll_pwait
        232 | 281 => TimeOut::MillisecondsR10,
        // rt_sigtimedwait, ppoll
        128 | 271 => TimeOut::Rdx,
        // epoll_pwait2, semtimedop
        441 | 220 => TimeOut::R10,
        // io_getevents, io_pgetevents, pselect6
        208 | 333 | 270 => TimeOut::R8,
        // select
        23 => TimeOut::R8Timeval,
        // io_uring_enter
        uring::ENTER => TimeOut::OfRing,
        // accept, recvfrom, recvmsg, accept4, recvmmsg; read, readv, preadv2; splice, of what it takes from
        43 | 45 | 47 | 288 | RECVMMSG | 0 | 19 | 327 | 275 => TimeOut::Receive,
        // connect, sendto, sendmsg, sendmmsg; write, writev, pwritev2, sendfile
        42 | 44 | 46 | 307 | 1 | 20 | 328 | 40 => TimeOut::Send,
        // semop, msgsnd, msgrcv, wait4, fcntl, flock, futex, mq_timedsend, mq_timedreceive
        65 | 69 | 70 | 61 | 72 | 73 | 202 | 242 | 243
        // waitid, fallocate, futex_waitv
        | 247 | 285 | 449 => TimeOut::None,
        _ => return None,
    })
}

/// The same of a call with these registers.
fn repeated_with(nr: i64, regs: &Regs) -> Option<TimeOut> {
    match nr {
        // A request is 32 bits wide.
        IOCTL => match regs.rsi as u32 {
            NOTIF_RECV => Some(TimeOut::None),
            DRAIN => (regs.rdx != 0).then_some(TimeOut::None),
            _ => None,
        },
        _ => repeated(nr),
    }
}

/// Whether a call needs to know since when its thread sleeps.
pub(super) fn has_timeout(nr: i64) -> bool {
    repeated(nr).is_some_and(|timeout| timeout != TimeOut::None)
}

/// Whether a call may be on a file as well, which has no time-out: read, write, readv, writev, preadv2, pwritev2.
pub(super) fn is_for_files(nr: i64) -> bool {
    matches!(nr, 0 | 1 | 19 | 20 | 327 | 328)
}

/// The time-out of a call that the kernel would make again with all of it: io_pgetevents, and recvmmsg that has nothing
/// yet.
fn begins_anew(nr: i64, result: i64, regs: &Regs) -> Option<TimeOut> {
    match (nr, -result) {
        (333, restart::ERESTARTNOHAND) => Some(TimeOut::R8),
        (RECVMMSG, restart::ERESTARTSYS) if regs.r8 != 0 => Some(TimeOut::R8),
        _ => None,
    }
}

/// The time-out of a call that is made `again`, or whose `rest` is made. None for calls that are left to the kernel.
fn time_out(
    (nr, regs): (i64, &Regs),
    rest: Option<&Regs>,
    anew: Option<TimeOut>,
    again: bool,
) -> Option<TimeOut> {
    let own = repeated_with(nr, regs);
    match rest {
        Some(rest) if rest.orig_rax == POLL => Some(TimeOut::MillisecondsRdx),
        Some(_) => Some(own.unwrap_or(TimeOut::None)),
        None => anew.or(own.filter(|_| again)),
    }
}

/// Whether the kernel has written what remains to where the time-out was: select, pselect6, ppoll
/// (fs/select.c, `poll_select_finish`). Where it could not, these fail.
fn tells_what_remains(nr: i64, result: i64) -> bool {
    matches!(nr, 23 | 270 | 271) && result == -restart::ERESTARTNOHAND
}

/// Whether a stop makes a call that has waited fail with EINTR: epoll_wait, epoll_pwait,
/// epoll_pwait2, rt_sigtimedwait, semop, semtimedop, io_getevents, io_uring_enter (and sockets with a time-out, which
/// is not seen from outside).
pub(super) fn is_interrupted_by_stops(nr: i64) -> bool {
    matches!(nr, 232 | 281 | 441 | 128 | 65 | 220 | 208 | uring::ENTER)
}

/// Whether a call that a stop may make fail waits for a time that only its arguments tell: `args` are they.
pub(super) fn waits_for_a_time(nr: i64, args: [u64; 6]) -> bool {
    let [_, _, rdx, r10, r8, _] = args;
    match repeated(nr) {
        Some(TimeOut::MillisecondsR10) => r10 as i32 > 0,
        Some(TimeOut::MillisecondsRdx) => rdx as i32 > 0,
        // ppoll, pselect6, select write down what remains.
        _ if tells_what_remains(nr, -restart::ERESTARTNOHAND) => false,
        Some(TimeOut::Rdx) => rdx != 0,
        Some(TimeOut::R10) => r10 != 0,
        Some(TimeOut::R8 | TimeOut::R8Timeval | TimeOut::OfRing) => r8 != 0,
        _ => false,
    }
}

/// The code by which the kernel makes a call again that a stop has made fail.
pub(super) fn again(regs: &Regs) -> Option<i64> {
    let (nr, result) = regs.interrupted_syscall()?;
    let failed = result == -EINTR && repeated_with(nr, regs).is_some();
    failed.then_some(restart::ERESTARTNOHAND)
}

/// Lets a thread that has just stopped make its call anew if we die before [`Repeated::repeat`] has told it what
/// remains of its time: rather a wait that lasts too long than one that fails.
pub(super) fn begin_again(tid: Tid, regs: &Regs) {
    if let Some(code) = again(regs) {
        let rax = (-code).cast_unsigned();
        // A thread that is killed meanwhile has no need of it.
        let _ = ptrace::set_regs(tid, &Regs { rax, ..*regs });
    }
}

/// An interrupted call that is made again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeated {
    pid: Pid,
    tid: Tid,
    /// The registers it was stopped with, or those that the rest of its call is made with.
    regs: Regs,
    /// By which the kernel makes the call again.
    code: i64,
    timeout: TimeOut,
    /// Where the time-out of its own is, if it has one.
    place: Option<LimitPlace>,
    /// CLOCK_MONOTONIC when it ends, None for never or when that is not known.
    ends_ns: Option<u64>,
}

impl Repeated {
    /// What a stopped thread with these registers repeats.
    pub(super) fn find(
        pid: Pid,
        tid: Tid,
        regs: &Regs,
        thread: FrozenThread,
    ) -> Result<Option<Repeated>, FreezerError> {
        let Some((nr, result)) = regs.interrupted_syscall() else {
            return Ok(None);
        };
        if let Some((regs, code)) = moved::of((pid, tid), regs, thread) {
            return Ok(Some(Repeated {
                pid,
                tid,
                regs,
                code,
                timeout: TimeOut::None,
                place: None,
                ends_ns: None,
            }));
        }
        if let Some(barred) = barred::of((pid, tid), regs, thread) {
            return Repeated::barred((pid, tid), regs, barred).map(Some);
        }
        // Before completions are looked at: a time-out that is over in between has ended the wait.
        let over_at = uring::over_at((pid, tid), regs);
        let rest = rest::of((pid, tid), regs, thread);
        let stays = tells_what_remains(nr, result);
        // A job that was stopped before has had its call fail with that.
        let stopped = thread.group_stop.is_some();
        let anew = begins_anew(nr, result, regs).filter(|_| rest.is_none() && !stopped);
        let failed = !stopped
            && (result == -EINTR || result == 0 && uring::is_cut_short(pid, tid, regs, result));
        let begins_with_poll = rest.is_some_and(|rest| rest.orig_rax == POLL);
        let again = failed || stays && !stopped;
        let Some(timeout) = time_out((nr, regs), rest.as_ref(), anew, again) else {
            return Ok(None);
        };
        // recvmmsg writes what remains to where the time-out was, too, when it returns.
        let in_place = stays || anew.is_some() && nr == RECVMMSG;
        let of_rest = rest.is_some();
        let mut regs = rest.unwrap_or(*regs);
        // What was told at the stop remained then, and so did what a poll is to wait for.
        let since_ns = match stays || begins_with_poll {
            true => Some(sleepers::monotonic_ns()),
            false => thread.asleep_since_ns,
        };
        let whole = match since_ns.or(thread.ends_ns) {
            Some(_) => whole_ns((pid, tid), &regs, timeout)?,
            None => None,
        };
        if whole.is_some() && !of_rest && !in_place && timeout.is_in_register() {
            regs = rest::keeping((pid, tid), &regs).unwrap_or(regs);
        }
        let place = match whole {
            Some(whole) => aim(pid, &mut regs, timeout, in_place, whole)?,
            None => None,
        };
        // A timer knows it best.
        let known = thread.ends_ns.filter(|_| !stays);
        let ends_ns = whole.and_then(|whole| known.or(Some(since_ns?.saturating_add(whole))));
        let call = Repeated {
            pid,
            tid,
            regs,
            // Also when a handler runs whose action says so (`SA_RESTART`), as before.
            code: match -result {
                restart::ERESTARTSYS => restart::ERESTARTSYS,
                _ => restart::ERESTARTNOHAND,
            },
            timeout,
            place,
            ends_ns,
        };
        Ok(Some(call.until_time_outs(of_rest, over_at)))
    }

    /// Has a wait for a ring of io_uring end when time-outs of the ring are over before it is made.
    fn until_time_outs(self, of_rest: bool, over_at: Option<u64>) -> Repeated {
        let ends = match (self.timeout, self.place) {
            (TimeOut::OfRing, None) => over_at,
            _ => None,
        };
        let Some(over_at) = ends else { return self };
        // Rdx is to be what it was when the call returns.
        let kept = match of_rest || rest::is_within(self.pid, &self.regs) {
            true => Some(self.regs),
            false => rest::keeping((self.pid, self.tid), &self.regs),
        };
        match kept {
            Some(regs) => Repeated {
                regs,
                place: Some(LimitPlace::Completions),
                ends_ns: Some(over_at),
                ..self
            },
            None => self,
        }
    }

    /// A sleep that filters do not let go on otherwise.
    fn barred(
        (pid, tid): (Pid, Tid),
        regs: &Regs,
        Barred { timeout, left }: Barred,
    ) -> Result<Repeated, FreezerError> {
        let mut regs = *regs;
        let mut place = None;
        if let Some(left) = left {
            // Filters may ask where a call is made from.
            let kept = rest::keeping((pid, tid), &regs);
            let nr = regs.orig_rax.cast_signed();
            regs = kept
                .filter(|kept| barred::pass(tid, nr, kept))
                .unwrap_or(regs);
            place = aim(pid, &mut regs, timeout, false, left)?;
        }
        Ok(Repeated {
            pid,
            tid,
            regs,
            code: restart::ERESTARTNOHAND,
            timeout,
            place,
            ends_ns: left.map(|left| sleepers::monotonic_ns().saturating_add(left)),
        })
    }

    /// Aims the thread at its call again, with what remains of the time-out now.
    pub(super) fn repeat(&self) -> Result<(), FreezerError> {
        let mut again = Regs {
            rax: (-self.code).cast_unsigned(),
            ..self.regs
        };
        if let Some(limit) = self.limit() {
            match limit.bytes() {
                Some((at, bytes)) => memory(self.pid)?
                    .write(at, &bytes)
                    .map_err(FreezerError::call(self.pid, "writing a time-out"))?,
                None => limit.set(&mut again),
            }
        }
        let doing = || format!("repeating a call of thread {}", self.tid);
        ptrace::set_regs(self.tid, &again).map_err(FreezerError::call(self.pid, doing()))
    }
}

impl Repeated {
    /// Whether it waits for a time.
    pub(super) fn has_an_end(&self) -> bool {
        self.ends_ns.is_some() || self.place.is_some() || self.socket_wait().is_some()
    }

    /// Whether it is over by now.
    pub(super) fn is_over(&self, soon: u64) -> bool {
        self.left_ns().is_some_and(|left| left <= soon)
    }

    /// What remains of the time-out.
    fn left_ns(&self) -> Option<u64> {
        let now = sleepers::monotonic_ns();
        self.ends_ns.map(|end| end.saturating_sub(now))
    }

    /// What remains of a time-out of its own, and where the call reads it.
    pub(super) fn limit(&self) -> Option<Limit> {
        let (place, remaining) = (self.place?, self.left_ns()?);
        Some(Limit { place, remaining })
    }

    /// The wait of a thread whose socket has a time-out: the descriptor, whether it sends, and the
    /// nanoseconds that remain.
    pub(super) fn socket_wait(&self) -> Option<(i32, bool, u64)> {
        match self.timeout {
            TimeOut::Receive | TimeOut::Send => {
                let sends = self.timeout == TimeOut::Send;
                Some((self.regs.rdi as i32, sends, self.left_ns()?))
            }
            _ => None,
        }
    }

    /// Shortens the time-out of the socket for a thread that is about to be let go.
    pub(super) fn begin_socket_wait(&self) -> Option<SocketWait> {
        let (fd, sends, left) = self.socket_wait()?;
        let table = apart::table_of(self.pid, self.tid);
        let wait = SocketWait::of(proc::pidfd(table).ok()?.as_fd(), fd, sends).ok()??;
        wait.begin(self.tid, left).ok()?.then_some(wait)
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }
}

/// The register that holds the address of a time-out.
fn pointer(regs: &mut Regs, timeout: TimeOut) -> Option<&mut u64> {
    let register = match timeout {
        TimeOut::None | TimeOut::MillisecondsR10 | TimeOut::MillisecondsRdx => return None,
        TimeOut::Receive | TimeOut::Send | TimeOut::OfRing => return None,
        TimeOut::Rdi => &mut regs.rdi,
        TimeOut::Rdx => &mut regs.rdx,
        TimeOut::R10 => &mut regs.r10,
        TimeOut::R8 | TimeOut::R8Timeval => &mut regs.r8,
    };
    (*register != 0).then_some(register)
}

fn memory(pid: Pid) -> Result<ProcMem, FreezerError> {
    proc::memory(pid).map_err(FreezerError::call(pid, "opening its memory"))
}

/// How long a call was to wait.
fn whole_ns(
    (pid, tid): (Pid, Tid),
    regs: &Regs,
    timeout: TimeOut,
) -> Result<Option<u64>, FreezerError> {
    let milliseconds = match timeout {
        TimeOut::MillisecondsR10 => Some(regs.r10 as i32),
        TimeOut::MillisecondsRdx => Some(regs.rdx as i32),
        _ => None,
    };
    if let Some(whole) = milliseconds {
        return Ok((whole > 0).then(|| u64::from(whole.cast_unsigned()) * 1_000_000));
    }
    if let TimeOut::Receive | TimeOut::Send = timeout {
        let of = |pidfd: OwnedFd| {
            SocketWait::of(pidfd.as_fd(), regs.rdi as i32, timeout == TimeOut::Send)
        };
        let wait = proc::pidfd(apart::table_of(pid, tid)).and_then(of);
        // Whatever cannot be asked starts from the beginning.
        return Ok(wait.ok().flatten().map(|wait| wait.whole_ns()));
    }
    let mut regs = *regs;
    let mem = memory(pid)?;
    let of_ring = (timeout == TimeOut::OfRing).then(|| uring::time_out(&mem, &regs));
    let mut of_ring = of_ring.flatten();
    let Some(va) = pointer(&mut regs, timeout).or(of_ring.as_mut()) else {
        return Ok(None);
    };
    let word = |va| {
        mem.read_u64(va)
            .map_err(FreezerError::call(pid, "reading a time-out"))
    };
    let (seconds, rest) = (word(*va)?, word(*va + 8)?);
    let unit = match timeout {
        TimeOut::R8Timeval => 1000,
        _ => 1,
    };
    Ok(Some(
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(rest.saturating_mul(unit)),
    ))
}

/// Where a call is to read its time-out: where it is (`stays`), or in a copy below the stack, which `regs` point
/// to then. The call reads that before anything else can run on this stack. None where there is no such
/// time-out, and where the stack cannot be written: then the call starts from the beginning.
fn aim(
    pid: Pid,
    regs: &mut Regs,
    timeout: TimeOut,
    stays: bool,
    whole: u64,
) -> Result<Option<LimitPlace>, FreezerError> {
    match timeout {
        TimeOut::MillisecondsR10 => return Ok(Some(LimitPlace::R10)),
        TimeOut::MillisecondsRdx => return Ok(Some(LimitPlace::Rdx)),
        _ => {}
    }
    let copy = (regs.rsp.wrapping_sub(USED_BELOW_STACK)) & !15;
    if timeout == TimeOut::OfRing {
        let limit = LimitPlace::Timespec(copy);
        let aimed = uring::aim(&memory(pid)?, regs, copy, whole);
        return Ok(aimed.is_ok().then_some(limit));
    }
    let Some(register) = pointer(regs, timeout) else {
        return Ok(None);
    };
    let at = if stays { *register } else { copy };
    let place = match timeout {
        TimeOut::R8Timeval => LimitPlace::Timeval(at),
        _ => LimitPlace::Timespec(at),
    };
    let limit = Limit {
        place,
        remaining: whole,
    };
    let Some((at, bytes)) = limit.bytes() else {
        return Ok(None);
    };
    if memory(pid)?.write(at, &bytes).is_err() {
        return Ok(None);
    }
    *register = at;
    Ok(Some(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_are_shortened_and_endless_waits_are_not() {
        let whole = |timeout: i32| {
            let regs = Regs {
                r10: u64::from(timeout.cast_unsigned()),
                ..Regs::default()
            };
            whole_ns((Pid(1), Tid(1)), &regs, TimeOut::MillisecondsR10).unwrap()
        };
        assert_eq!(whole(1000), Some(1_000_000_000));
        assert_eq!((whole(-1), whole(0)), (None, None));
        let place = LimitPlace::R10;
        let remaining = 599_999_999;
        let mut regs = Regs::default();
        Limit { place, remaining }.set(&mut regs);
        assert_eq!(regs.r10, 600);
    }

    #[test]
    fn of_ioctls_only_waits_are_made_again() {
        let regs = |request: u64, result: i64| Regs {
            orig_rax: IOCTL.cast_unsigned(),
            rax: result.cast_unsigned(),
            rsi: request,
            ..Regs::default()
        };
        let receive = u64::from(NOTIF_RECV);
        assert_eq!(again(&regs(receive, -EINTR)), Some(restart::ERESTARTNOHAND));
        assert_eq!(again(&regs(receive, -2)), None);
        assert_eq!(again(&regs(0x5401, -EINTR)), None);
        let drain = |rdx| Regs {
            rdx,
            ..regs(DRAIN.into(), -EINTR)
        };
        assert_eq!(again(&drain(1)), Some(restart::ERESTARTNOHAND));
        assert_eq!(again(&drain(0)), None, "a break would be sent twice");
    }

    #[test]
    fn a_closed_descriptor_is_not_closed_twice() {
        assert_eq!(repeated(3), None);
        assert!(has_timeout(232) && has_timeout(0) && !has_timeout(61));
    }
}
