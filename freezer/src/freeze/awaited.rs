//! Calls that wait for so many bytes, or for a time after the last one, stopped when they have some of them.
//!
//! recv(2) below `SO_RCVLOWAT` or with `MSG_PEEK`, and read(2) of a terminal with `VMIN` and `VTIME` (termios(3)).
//! What they wait for is not in their arguments, so the call for the rest is another one.

use super::rest::{Pointer, Rest};
use super::{FrozenThread, sleepers};
use crate::files::apart;
use crate::proc;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, Termios, tcgetattr};
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use sys::regs::{Regs, restart};
use sys::remainder::Then;
use sys::{Errno, Pid, Tid, process, socket};

const READ: i64 = 0;
const POLL: i64 = 7;
const RECVFROM: i64 = 45;
const RECVMSG: i64 = 47;
const SOL_SOCKET: i32 = 1;
const SO_RCVLOWAT: i32 = 18;
const SO_PEEK_OFF: i32 = 42;
const MSG_OOB: u64 = 0x1;
const MSG_PEEK: u64 = 0x2;
const MSG_DONTWAIT: u64 = 0x40;
const MSG_WAITALL: u64 = 0x100;
const POLLIN: u64 = 1;
/// A unit of `VTIME`, in nanoseconds.
const TENTH: u64 = 100_000_000;

/// How a call goes on.
pub(super) enum Awaited {
    /// As if nothing had been done.
    Whole,
    Rest(Box<Rest>),
}

/// What is to be done for a thread with these registers, if it is in such a call.
pub(super) fn of((pid, tid): (Pid, Tid), regs: &Regs, thread: FrozenThread) -> Option<Awaited> {
    let (nr, result) = regs.interrupted_syscall()?;
    let waits = result == -restart::ERESTARTSYS || result > 0;
    if !waits || !matches!(nr, READ | RECVFROM | RECVMSG) {
        return None;
    }
    // Most have nothing, and are on no terminal: the kernel makes them again.
    let is_timed = thread.ends_ns.or(thread.asleep_since_ns).is_some();
    if result <= 0 && (nr != READ || !is_timed) {
        return None;
    }
    let pidfd = proc::pidfd(apart::table_of(pid, tid));
    let copy = pidfd.and_then(|pidfd| process::pidfd_getfd(pidfd.as_fd(), regs.rdi as i32));
    let file = copy.ok()?;
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).ok()?);
    if flags.contains(OFlag::O_NONBLOCK) {
        return None;
    }
    let done = u64::try_from(result).unwrap_or(0);
    if nr == READ && file.is_terminal() {
        return of_terminal(regs, &tcgetattr(&file).ok()?, done, thread);
    }
    of_stream(&file, regs, nr, done)
}

/// Stream sockets. The least that is awaited is received first, and then what there is besides.
fn of_stream(file: &OwnedFd, regs: &Regs, nr: i64, done: u64) -> Option<Awaited> {
    if done == 0 || getsockopt(file, sockopt::SockType).ok()? != SockType::Stream {
        return None;
    }
    let flags = match nr {
        RECVFROM => regs.r10,
        RECVMSG => regs.rdx,
        _ => 0,
    };
    if flags & (MSG_DONTWAIT | MSG_OOB) != 0 {
        return None;
    }
    let least = socket::int_option(file.as_fd(), SOL_SOCKET, SO_RCVLOWAT).ok()?;
    let least = u64::try_from(least).ok()?;
    let (whole, all) = (regs.rdx, flags & MSG_WAITALL != 0);
    if flags & MSG_PEEK != 0 {
        // Nothing was taken, unless the next one begins behind it. TCP has that since 6.9.
        let from = match socket::int_option(file.as_fd(), SOL_SOCKET, SO_PEEK_OFF) {
            Err(Errno::EOPNOTSUPP) => -1,
            asked => asked.ok()?,
        };
        let short = nr == RECVFROM && done < if all { whole } else { least.min(whole) };
        return (short && from < 0).then_some(Awaited::Whole);
    }
    let least = least.min(whole);
    if nr == RECVMSG || all || done >= least {
        return None;
    }
    let mut first = *regs;
    first.rsi += done;
    first.rdx = least - done;
    if nr == READ {
        // The second call has a place for an address there.
        (first.r8, first.r9) = (0, 0);
    }
    let mut rest = Rest::new(done, first);
    rest.then = (whole > least).then_some(Then {
        enough: (least - done).cast_signed(),
        counts: true,
        nr: RECVFROM,
        args: [regs.rsi + least, whole - least, flags | MSG_DONTWAIT],
    });
    Some(Awaited::Rest(Box::new(rest)))
}

/// Terminals that tell single characters. Where a time counts, it is waited for with poll(2).
fn of_terminal(
    regs: &Regs,
    settings: &Termios,
    done: u64,
    thread: FrozenThread,
) -> Option<Awaited> {
    let character = |which: SpecialCharacterIndices| settings.control_chars[which as usize];
    let least = u64::from(character(SpecialCharacterIndices::VMIN));
    let time = u64::from(character(SpecialCharacterIndices::VTIME)) * TENTH;
    let target = if least == 0 {
        regs.rdx
    } else {
        least.min(regs.rdx)
    };
    let canonical = settings.local_flags.contains(LocalFlags::ICANON);
    let short = match least {
        0 => done == 0 && time > 0,
        _ => done > 0 && done < target,
    };
    if canonical || !short {
        return None;
    }
    let mut read = *regs;
    read.rsi += done;
    read.rdx = target - done;
    if time == 0 {
        return Some(Awaited::Rest(Box::new(Rest::new(done, read))));
    }
    let since = thread.asleep_since_ns;
    let ends_ns = thread
        .ends_ns
        .or(since.map(|since| since.saturating_add(time)));
    let left = ends_ns.map_or(time, |end| end.saturating_sub(sleepers::monotonic_ns()));
    let poll = Regs {
        orig_rax: POLL.cast_unsigned(),
        rsi: 1,
        rdx: left.min(time).div_ceil(1_000_000),
        ..*regs
    };
    let mut rest = Rest::new(done, poll);
    // struct pollfd: descriptor, events.
    let entry = (regs.rdi & 0xffff_ffff) | POLLIN << 32;
    rest.beside = [entry.to_le_bytes(), [0; 8]].concat();
    rest.pointers = vec![(Pointer::Rdi, 0)];
    rest.then = Some(Then {
        enough: 1,
        counts: false,
        nr: READ,
        args: [read.rsi, read.rdx, regs.r10],
    });
    Some(Awaited::Rest(Box::new(rest)))
}
